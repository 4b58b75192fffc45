"""Tiny models with random weights, and the reference arrays imported through the public way in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from cascade_clip.checkpoints.checkpoint import Checkpoint
from cascade_clip.checkpoints.released import import_released
from cascade_clip.config import Config
from cascade_clip.config.serialization import config_from_dict
from cascade_clip.encoders.clip import load_clip
from cascade_clip.encoders.text import build_text_encoder
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
