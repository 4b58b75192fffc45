"""Public names, their parameters, and the import paths that the documentation has shown: all stay
importable."""

from __future__ import annotations

import importlib

import pytest
from observe import public_names, read_fixture

FROZEN = read_fixture("public_names.json")
DOCUMENTED = (
    ("cascade_clip", "Predictor"),  # docs/hub.md
    ("cascade_clip.__main__", "main"),  # the program that pyproject.toml names
    ("cascade_clip.analysis", "compare_stages"),  # docs/tour.ipynb
    ("cascade_clip.config", "DataConfig"),  # docs/tour.ipynb
    ("cascade_clip.data", "SandboxScenes"),  # README.md, docs/tour.ipynb, docs/python_figure.py
    ("cascade_clip.data", "build_dataset"),  # docs/tour.ipynb
    ("cascade_clip.evaluate", "evaluate"),  # docs/tour.ipynb
    ("cascade_clip.manifest", "read_manifest"),  # docs/scaling_figure.py
    ("cascade_clip.sandbox.pretrain", "evaluate_presence"),  # docs/sandbox.md
    ("cascade_clip.sandbox.scenes", "make_scene"),  # docs/sandbox.md
)
"""Modules and names of `from MODULE import NAME` as they stood in README.md and docs before the
modules moved."""


@pytest.mark.parametrize("module, name", DOCUMENTED, ids=".".join)
def test_documented_paths_stay_importable(module: str, name: str) -> None:
    assert callable(getattr(importlib.import_module(module), name))


def test_public_names_stay() -> None:
    now = public_names()
    assert set(FROZEN["__all__"]) <= set(now["__all__"])
    for owner, names in FROZEN["attributes"].items():
        assert set(names) <= set(now["attributes"][owner]), owner


@pytest.mark.parametrize("function", FROZEN["parameters"])
def test_parameters_keep_names_and_places(function: str) -> None:
    """Old calls by position and by name both still mean the same; new parameters come after the old
    ones."""
    frozen = FROZEN["parameters"][function]
    assert public_names()["parameters"][function][: len(frozen)] == frozen
