"""The published model at its real size, with random weights: slow tests."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
import yaml
from PIL import Image

from archives import random_clip, write_openai_archive
from cascade_clip.cli.main import main
from cascade_clip.config import ClipConfig, Config, ModelConfig, PromptConfig
from cascade_clip.losses.mask_losses import mask_loss
from cascade_clip.models.builder import build_segmenter
from paths import PHOTOS

pytestmark = pytest.mark.slow


def test_forward_loss_and_backward_at_full_size() -> None:
    """ViT-B/16, 512 x 512, 171 classes, 50 prompt tokens: every trained parameter gets a finite
    gradient, no other gets one."""
    model = build_segmenter(
        ModelConfig(
            clip=ClipConfig(weights="random", tokenizer=False), prompts=PromptConfig(tokens=50)
        )
    ).train()
    logits = model(
        torch.randn(1, 3, 512, 512), torch.nn.functional.normalize(torch.randn(171, 512), dim=-1)
    )
    assert logits.shape == (1, 171, 32, 32)
    result = mask_loss(
        logits, torch.randint(-1, 171, (1, 512, 512)), model.patch_size, Config().train.loss
    )
    (result.total / result.masks).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), name


def test_from_files_to_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The main job on real photos: an archive in OpenAI's format, 20 steps, an evaluation, and
    segmented photos."""
    settings = open_clip.get_model_config("ViT-B-16-quickgelu")
    archive = write_openai_archive(tmp_path / "ViT-B-16.pt", random_clip(settings), 224)
    assert 300e6 < archive.stat().st_size < 400e6  # as large as the published one
    values = {
        "model": {"clip": {"weights": str(archive), "sha256": "any"}, "prompts": {"tokens": 5}},
        "data": {
            "images": str(PHOTOS / "images"),
            "masks": str(PHOTOS / "masks"),
            "classes": str(PHOTOS / "classes.txt"),
            "unseen": "hat, boots, skirt",
            "workers": 1,
        },
        "train": {
            "steps": 20,
            "batch_size": 1,
            "augment": {"scale": [1024, 256], "crop": 256},
            "optimizer": {"warmup_steps": 2},
        },
        "inference": {"window": 256, "stride": 212},
    }
    (tmp_path / "photos.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", str(tmp_path / "photos.yaml"), "--out", str(tmp_path / "run")]) == 0
    model = str(tmp_path / "run" / "model")
    weights = tmp_path / "run" / "model" / "model.safetensors"
    assert weights.stat().st_size < 150e6  # the frozen CLIP is not in it
    folders = [
        "--images",
        str(PHOTOS / "images"),
        "--masks",
        str(PHOTOS / "masks"),
        "--classes",
        str(PHOTOS / "classes.txt"),
    ]
    words = [
        "evaluate",
        model,
        *folders,
        "--unseen",
        "hat, boots, skirt",
        "--limit",
        "4",
        "--out",
        str(tmp_path / "report.json"),
    ]
    assert main(words) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["images"] == 4
    assert report["calibration"] == 0.1
    photo = PHOTOS / "images" / "0001.jpg"
    assert (
        main(
            [
                "segment",
                str(photo),
                "--classes",
                "skin, hair, coat",
                "--model",
                model,
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    assert Image.open(tmp_path / "out" / "0001_index.png").size == Image.open(photo).size
    assert "hIoU" in capsys.readouterr().out
