"""Settings: every key and default, and what the published files resolve to."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from observe import FIXTURES, RENAMED, ROOT, dotted, present_name, read_fixture, settings_of

import cascade_clip

OLD_DEFAULTS = dotted(yaml.safe_load((FIXTURES / "defaults.yaml").read_text(encoding="utf-8")))
DEFAULTS = {present_name(key): value for key, value in OLD_DEFAULTS.items()}
CONFIGS = {
    name: {present_name(key): value for key, value in values.items()}
    for name, values in read_fixture("configs.json").items()
}


def test_defaults_keep_keys_and_values() -> None:
    now = dotted(dataclasses.asdict(cascade_clip.Config()))
    assert {key: now.get(key, "no such key") for key in DEFAULTS} == DEFAULTS


def test_renamed_settings_were_frozen_and_their_old_names_are_gone() -> None:
    """A key that is listed here without need would hide that it was lost."""
    now = dotted(dataclasses.asdict(cascade_clip.Config()))
    assert set(RENAMED) <= set(OLD_DEFAULTS)
    assert not set(RENAMED) & set(now)


def test_an_old_file_with_every_key_loads() -> None:
    now = settings_of(FIXTURES / "defaults.yaml")
    assert {key: now.get(key, "no such key") for key in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("name", CONFIGS)
def test_published_file_resolves_as_before(name: str) -> None:
    frozen = {**DEFAULTS, **CONFIGS[name]}
    if any(key.startswith("evaluation.") for key in frozen):
        del frozen["evaluation"]  # null by default
    now = settings_of(ROOT / "configs" / name)
    assert {key: now.get(key, "no such key") for key in frozen} == frozen
