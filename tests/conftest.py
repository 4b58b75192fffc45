"""Shared fixtures: models that are loaded once, and tiny runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["CASCADE_CLIP_CACHE"] = tempfile.mkdtemp(prefix="cascade-clip-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import that reads it

import pytest
import torch

from cascade_clip.checkpoints.checkpoint import save_checkpoint
from cascade_clip.inference.loading import load_predictor
from cascade_clip.inference.predictor import Predictor
from tiny_models import TINY_SETTINGS, build_tiny, import_reference, with_model

# tests run in several processes; threads that wait for each other on busy cores cost more than they
# bring
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cascade_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_reference("state", tmp_path_factory.mktemp("cascade"), TINY_SETTINGS)


@pytest.fixture(scope="session")
def zegclip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_reference(
        "zegclip_state", tmp_path_factory.mktemp("zegclip"), with_model(stages=[[12]])
    )


@pytest.fixture
def cascade(cascade_folder: Path) -> Predictor:
    return load_predictor(cascade_folder, device="cpu")


@pytest.fixture
def zegclip(zegclip_folder: Path) -> Predictor:
    return load_predictor(zegclip_folder, device="cpu")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("tiny") / "model", build_tiny())


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of tiny runs (see `tiny_runs`)."""
    from tiny_runs import write_folders

    return write_folders(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def finished(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a finished tiny run with the given settings of `tiny_config`, trained once for
    all tests, which must leave it as it is."""
    from cascade_clip.training.fit import fit
    from tiny_runs import tiny_config

    runs: dict[str, Path] = {}

    def find(model: dict[str, Any] | None = None, **train: Any) -> Path:
        key = repr((model, sorted(train.items())))
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("finished") / "run"
            fit(tiny_config(folders, model, **train), runs[key])
        return runs[key]

    return find
