"""Tiny training runs: eight generated images with masks of four classes, and settings that train on
them in a second."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cascade_clip.checkpoints.checkpoint import load_checkpoint
from cascade_clip.config import Config
from cascade_clip.config.serialization import config_from_dict
from tiny_models import TINY_MODEL

NAMES = ("cat", "dog", "grass", "sky")
DROPOUT = {
    "prompts": {"tokens": 3, "dropout": 0.1},
    "decoder": {"heads": 4, "feedforward": 128, "dropout": 0.1},
}
"""Model settings that make random draws in every step."""
ZERO_GRADIENT = r"attention\.key\.bias"
"""A softmax does not see a shift, so the true gradient of these is 0; AdamW turns its rounding
noise into whole steps."""


def write_folders(root: Path) -> Path:
    """Eight images with masks of four classes and some ignored pixels."""
    generator = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for index in range(8):
        mask = generator.integers(0, 4, (3, 4)).repeat(24, 0).repeat(24, 1).astype(np.uint8)
        mask[:4] = 255
        pixels = (mask[..., None] * 50 + generator.integers(0, 50, (*mask.shape, 3))).astype(
            np.uint8
        )
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
        Image.fromarray(pixels).save(root / "images" / f"{index}.png")
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


def tiny_config(folders: Path, model: dict[str, Any] | None = None, **train: Any) -> Config:
    values = {
        "model": {**TINY_MODEL, **(model or {})},
        "data": {
            "images": str(folders / "images"),
            "masks": str(folders / "masks"),
            "classes": str(folders / "classes.txt"),
            "unseen": "sky",
            "workers": 0,
        },
        "train": {
            "steps": 4,
            "batch_size": 4,
            "augment": {"scale": [128, 64], "crop": 64},
            "optimizer": {"warmup_steps": 2, "learning_rate": 1e-3},
            "device": "cpu",
            "save_every": 2,
            "log_every": 1,
            **train,
        },
        "inference": {"window": 64, "stride": 48},
    }
    return config_from_dict(Config, values)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(folder / "model").model.state_dict())


def largest_gap(
    first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], leave_out: str = "nothing"
) -> float:
    assert first.keys() == second.keys()
    return max(
        float((first[name] - second[name]).abs().max())
        for name in first
        if not re.search(leave_out, name)
    )
