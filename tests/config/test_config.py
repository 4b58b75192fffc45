"""Settings: round trip, and every wrong value named with its place."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from cascade_clip.config import Config, DataConfig, TrainConfig, serialization
from cascade_clip.config.serialization import (
    config_from_dict,
    config_to_dict,
    differing_settings,
    rename_settings,
)


def test_round_trip_through_yaml() -> None:
    values = {
        "model": {"stages": [[3, 4], [12]], "position_grid": None},
        "train": {"steps": 3},
        "evaluation": {"name": "sandbox"},
    }
    config = config_from_dict(Config, values)
    assert config.model.stages == ((3, 4), (12,))
    assert config.model.position_grid is None
    assert config.evaluation == DataConfig(name="sandbox")
    assert (
        config_from_dict(Config, yaml.safe_load(yaml.safe_dump(config_to_dict(config)))) == config
    )
    assert config_from_dict(Config, {}) == Config()


def test_numbers_that_yaml_reads_as_text() -> None:
    assert (
        config_from_dict(
            Config, yaml.safe_load("train: {optimizer: {learning_rate: 1e-4}}")
        ).train.optimizer.learning_rate
        == 1e-4
    )
    assert config_from_dict(TrainConfig, {"loss": {"focal": 20}}).loss.focal == 20.0


def test_renamed_settings_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config_from_dict(Config, {"train": {"sheet_every": 3}}).train.preview_every == 3
    values = {"train": {"sheet_every": 3, "steps": 7}, "data": {"limit": 1}}
    assert rename_settings(values) == {
        "train": {"preview_every": 3, "steps": 7},
        "data": {"limit": 1},
    }
    assert values["train"] == {"sheet_every": 3, "steps": 7}  # the caller's own is left alone
    with pytest.raises(ValueError, match=r"train\.sheet_every is the old name of train\.preview_"):
        rename_settings({"train": {"sheet_every": 3, "preview_every": 3}})
    # a name may move to another section, at any depth
    monkeypatch.setitem(serialization.RENAMED, "old.deep.key", "new.key")
    assert rename_settings({"old": {"deep": {"key": 1, "other": 2}}}) == {
        "old": {"deep": {"other": 2}},
        "new": {"key": 1},
    }
    assert rename_settings({"old": None, "new": {}}) == {"old": None, "new": {}}


def test_differing_settings() -> None:
    old = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": None, "g": 4}
    new = {"a": 1, "b": {"c": [1, 3], "d": 0}, "e": {"f": 1}, "h": 5}
    assert list(differing_settings(old, new).items()) == [
        ("b.c", ([1, 2], [1, 3])),
        ("b.d", (None, 0)),
        ("e", (None, {"f": 1})),  # a section that is there once is not looked into
        ("g", (4, None)),
        ("h", (None, 5)),
    ]
    assert differing_settings(old, old) == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": {}}, r"unknown setting config\.modle; choose one of .*model"),
        ({"model": {"prompts": {"token": 3}}}, r"unknown setting config\.model\.prompts\.token;"),
        (
            {"model": {"prompts": {"kind": "wide"}}},
            r"config\.model\.prompts\.kind must be one of .*got 'wide'",
        ),
        ({"model": {"stages": 12}}, r"config\.model\.stages must be a list"),
        (
            {"model": {"stages": [[6, "7"]]}},
            r"config\.model\.stages\[0\]\[1\] must be int, got '7'",
        ),
        ({"model": {"mean": [0.5, 0.5]}}, r"config\.model\.mean must have 3 entries"),
        ({"train": {"steps": 2.5}}, r"config\.train\.steps must be int, got 2\.5"),
        ({"train": {"steps": True}}, r"config\.train\.steps must be int"),
        ({"train": {"loss": {"focal": "much"}}}, r"config\.train\.loss\.focal must be a number"),
        ({"train": None}, r"config\.train must be a mapping"),
        ({"model": {"stages": []}}, "at least one stage"),
        ({"model": {"stages": [[]]}}, "empty stage"),
        ({"model": {"stages": [[0]]}}, "counts blocks from 1"),
        ({"model": {"stages": [[3, 3]]}}, "twice"),
        ({"model": {"prompts": {"tokens": 0}}}, r"1\.\.4096"),
        ({"train": {"batch_size": 16, "devices": 3}}, "cannot be shared by 3"),
        ({"train": {"batch_size": 16, "micro_batch": 3}}, "does not divide"),
        ({"train": {"steps": 10, "schedule_steps": 5}}, "schedule_steps"),
        ({"inference": {"stride": 600}}, "stride must lie in 1..window"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_dict(Config, values)
