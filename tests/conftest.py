"""Shared fixtures: tiny models with random weights, and the reference arrays imported through the
public way in."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ["CASCADE_CLIP_CACHE"] = tempfile.mkdtemp(prefix="cascade-clip-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import that reads it

import numpy as np
import pytest
import torch
import yaml

from cascade_clip.checkpoints.checkpoint import Checkpoint, save_checkpoint
from cascade_clip.checkpoints.released import import_released
from cascade_clip.config import Config
from cascade_clip.config.serialization import config_from_dict
from cascade_clip.encoders.clip import load_clip
from cascade_clip.encoders.text import build_text_encoder
from cascade_clip.inference.loading import load_predictor
from cascade_clip.inference.predictor import Predictor
from cascade_clip.models.builder import build_segmenter
from cascade_clip.vocabulary import load_vocabulary
from paths import REFERENCE

TINY_CLIP = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 12, "width": 64, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
"""The geometry of the reference models, as an open_clip model configuration."""

TINY_MODEL: dict[str, Any] = {
    "clip": {"name": "tiny", "weights": "random", "architecture": TINY_CLIP},
    "prompts": {"kind": "deep", "tokens": 3, "dropout": 0.0},
    "decoder": {"layers": 3, "heads": 4, "feedforward": 128, "dropout": 0.0},
    "position_grid": [4, 4],
}
TINY_SETTINGS: dict[str, Any] = {
    "model": TINY_MODEL,
    "data": {"classes": "a, b, c, d, e, f, g", "unseen": "c, f"},
    "inference": {
        "window": 64,
        "stride": 43,
        "resize": False,
        "calibration": 0.1,
        "class_chunk": 3,
    },
}
TINY_NAMES = "abcdefg"


# tests run in several processes; threads that wait for each other on busy cores cost more than they
# bring
torch.set_num_threads(1)


def read_reference(name: str) -> Mapping[str, np.ndarray]:
    """The arrays of one reference file."""
    with np.load(REFERENCE / f"{name}.npz") as arrays:
        return dict(arrays)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def import_reference(
    name: str,
    folder: Path,
    settings: Mapping[str, Any],
    extra: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write a reference state dict as the released trainer would, import it, and return the
    checkpoint folder."""
    state = {key: tensor(value) for key, value in read_reference(name).items()} | dict(extra or {})
    torch.save({"state_dict": state, "meta": {"iter": 1}, "optimizer": {}}, folder / "released.pth")
    (folder / "released.yaml").write_text(yaml.safe_dump(dict(settings)))
    import_released(folder / "released.pth", folder / "released.yaml", folder / "model")
    return folder / "model"


def with_model(**changes: Any) -> dict[str, Any]:
    """TINY_SETTINGS with some model settings replaced."""
    return {**TINY_SETTINGS, "model": {**TINY_MODEL, **changes}}


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


def build_tiny(
    model: Mapping[str, Any] | None = None, classes: str = "cat, dog, grass", unseen: str = "grass"
) -> Checkpoint:
    """A tiny cascade with random weights and a text tower."""
    values = {
        **TINY_SETTINGS,
        "model": dict(model or TINY_MODEL),
        "data": {"classes": classes, "unseen": unseen},
    }
    config = config_from_dict(Config, values)
    torch.manual_seed(0)
    clip = load_clip(config.model.clip)
    encoder = build_text_encoder(clip)
    vocabulary = load_vocabulary(classes, unseen)
    segmenter = build_segmenter(config.model, clip).eval()
    return Checkpoint(
        segmenter,
        encoder,
        config,
        vocabulary,
        ("a photo of a {}",),
        clip.fingerprint,
        clip.architecture,
    )


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
