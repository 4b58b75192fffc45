"""Evaluation is the predictor over a data set, counted once; the report says what it rests on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cascade_clip.__main__ import main
from cascade_clip.config import DataConfig
from cascade_clip.data import SandboxScenes, build_dataset
from cascade_clip.datasets.folder import Sample
from cascade_clip.evaluate import default_calibration, evaluate
from cascade_clip.predictor import Predictor, load_predictor


@pytest.fixture
def predictor(tiny_folder: Path) -> Predictor:
    return load_predictor(tiny_folder, device="cpu")


def test_report_equals_a_count_by_hand(predictor: Predictor) -> None:
    dataset = SandboxScenes(3, seed=0, size=64)
    steps: list[tuple[int, int]] = []
    report = evaluate(predictor, dataset, calibration=0.0, progress=lambda done, total: steps.append((done, total)))
    target = predictor.bind(dataset.vocabulary)
    predictions = np.stack([predictor.label_map(dataset.sample(index).image, target).labels.numpy() for index in range(3)])
    truth = np.stack([dataset.sample(index).labels.numpy() for index in range(3)])
    assert report.scores.pixel_accuracy == pytest.approx(float((predictions == truth).mean()))
    for index, iou in enumerate(report.scores.iou):
        both, either = ((predictions == index) & (truth == index)).sum(), ((predictions == index) | (truth == index)).sum()
        assert np.isnan(iou) if either == 0 else iou == pytest.approx(both / either)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert report.images == 3


def test_embeddings_can_stand_in_for_the_text_tower(predictor: Predictor) -> None:
    dataset = SandboxScenes(1, seed=0, size=64)
    rows = torch.randn(len(dataset.vocabulary), 32)
    first = evaluate(predictor, dataset, text=rows)
    second = evaluate(predictor, dataset)
    assert first.scores.iou != second.scores.iou


@pytest.mark.parametrize(("protocol", "expected"), [("inductive", 0.1), ("transductive", 0.0), ("supervised", 0.0)])
def test_calibration_follows_the_protocol(predictor: Predictor, protocol: str, expected: float) -> None:
    checkpoint = dataclasses.replace(predictor.checkpoint, record={"protocol": protocol})
    assert default_calibration(checkpoint) == expected


def test_the_report_says_its_assumptions(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "evaluate",
        str(tiny_folder),
        "--data",
        "sandbox",
        "--limit",
        "2",
        "--calibration",
        "0.2",
        "--out",
        str(tmp_path / "report.json"),
    ]
    assert main(words) == 0
    out = " ".join(capsys.readouterr().out.split())
    for text in ("2 images", "star (unseen)", "hIoU", "all 26 class names compete", "one confusion matrix"):
        assert text in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["images"] == 2
    assert len(report["classes"]) == 26
    assert set(report["summary"]) == {"seen_miou", "unseen_miou", "hiou", "miou", "pixel_accuracy"}


def test_sandbox_as_a_data_set() -> None:
    dataset = build_dataset(DataConfig(name="sandbox", seed=4, limit=5, size=64, unseen="grass, star"))
    assert len(dataset) == 5
    assert dataset.vocabulary.unseen == ("grass", "star")
    sample = dataset.sample(4)
    assert sample.image.shape == (3, 64, 64) and sample.labels.shape == (64, 64)
    with pytest.raises(IndexError, match="5 of this data set"):
        dataset.sample(5)
    with pytest.raises(ValueError, match="unicorn"):
        build_dataset(DataConfig(name="sandbox", unseen="unicorn"))


def test_across_data_sets_every_class_counts_as_seen_for_calibration(predictor: Predictor) -> None:
    """The published cross-data-set figures subtract nothing; on the training's own names the protocol decides."""
    dataset = SandboxScenes(1, seed=0, size=64)
    assert evaluate(predictor, dataset).calibration == 0.0
    dataset.vocabulary = predictor.vocabulary
    dataset.sample = lambda index: Sample(torch.zeros(3, 64, 64, dtype=torch.uint8), torch.zeros(64, 64, dtype=torch.int64), Path("x"))  # type: ignore[method-assign]
    assert evaluate(predictor, dataset).calibration == 0.1


def test_the_split_of_the_model_holds_where_the_data_set_names_none(predictor: Predictor) -> None:
    dataset = SandboxScenes(1, seed=0, size=64)
    dataset.vocabulary = dataset.vocabulary.with_unseen([])
    report = evaluate(predictor, dataset)  # the model holds out grass
    assert [name for name, seen in zip(report.scores.names, report.scores.seen, strict=True) if not seen] == ["grass"]
    assert any("1 of them count as unseen: grass" in line for line in report.assumptions)
