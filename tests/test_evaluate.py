"""Evaluation is the predictor over a data set, counted once; the report says what it rests on."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascade_clip.__main__ import main
from cascade_clip.config import DataConfig
from cascade_clip.data import SandboxScenes, build_dataset
from cascade_clip.datasets.folder import Sample
from cascade_clip.evaluate import default_calibration, evaluate
from cascade_clip.evaluate_commands import FolderOptions
from cascade_clip.fingerprints import hash_checkpoint, hash_dataset
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
    for text in (
        "2 images",
        "star (unseen)",
        "hIoU",
        "all 26 class names compete",
        "one confusion matrix",
        "training protocol of the model: inductive",
    ):
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


def run_words(folder: Path, out: Path, *words: str) -> dict[str, Any]:
    """The report of the command with some more words."""
    assert main(["evaluate", str(folder), "--data", "sandbox", "--limit", "1", "--out", str(out), *words]) == 0
    values: dict[str, Any] = json.loads(out.read_text())
    return values


def test_flags_replace_the_settings_of_the_checkpoint(tiny_folder: Path, tmp_path: Path) -> None:
    plain = run_words(tiny_folder, tmp_path / "a.json")
    assert (plain["inference"]["window"], plain["inference"]["stride"], plain["inference"]["flip"]) == (64, 43, False)
    assert "images at their own size, windows of 64 pixels every 43, fp32; no test-time augmentation" in plain["assumptions"]
    found = run_words(
        tiny_folder, tmp_path / "b.json", "--window", "48", "--stride", "40", "--flip", "--scales", "0.5, 1", "--precision", "bf16"
    )
    assert [found["inference"][name] for name in ("window", "stride", "flip", "scales", "precision")] == [48, 40, True, [0.5, 1.0], "bf16"]
    assert any(
        "windows of 48 pixels every 40, bf16; test-time augmentation: scales 0.5, 1, mirrored too" in line for line in found["assumptions"]
    )
    assert found["confusion"] != plain["confusion"]


def test_clip_alone_is_evaluated_too(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    assert main(["evaluate", "clip:mini", "--data", "sandbox", "--limit", "1", "--out", str(out), "--against", "clip:mini"]) == 0
    values = json.loads(out.read_text())
    assert values["checkpoint"]["name"] == "clip:mini" and values["checkpoint"]["sha256"] == ""
    assert len(values["checkpoint"]["clip_sha256"]) == 64
    assert "training protocol of the model: training-free" in values["assumptions"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scales", "1; 2"], "--scales must be numbers separated by commas"),
        (["--scales", "0"], "scales must be positive"),
        (["--window", "16"], r"stride must lie in 1..window \(16\)"),
        (["--pictures", "-1", "--out", "report"], "0 or more"),
    ],
)
def test_wrong_flags_are_refused(
    tiny_folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(tiny_folder), "--data", "sandbox", "--limit", "1", *words]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_pixels_without_a_class_of_the_data_set_are_errors(tiny_folder: Path, tmp_path: Path) -> None:
    """Background words and a threshold take pixels away from the classes; the last column of the matrix counts them."""
    nothing = run_words(tiny_folder, tmp_path / "a.json", "--threshold", "1")
    confusion = np.array(nothing["confusion"])
    assert confusion[:, -1].sum() == confusion.sum() == 128 * 128
    assert nothing["pixel_accuracy"] == 0.0
    assert any("background policy: threshold 1; a labelled pixel that gets no class" in line for line in nothing["assumptions"])
    words = run_words(tiny_folder, tmp_path / "b.json", "--background", "scenery")
    confusion = np.array(words["confusion"])
    assert confusion.shape == (26, 27) and confusion.sum() == 128 * 128
    assert confusion[:, -1].sum() > 0
    assert any("background policy: words (cloud, wall, ceiling" in line for line in words["assumptions"])


def test_the_report_says_where_model_and_data_come_from(tiny_folder: Path, tmp_path: Path) -> None:
    values = run_words(tiny_folder, tmp_path / "a.json", "--seed", "7")
    assert values["checkpoint"] == {"name": str(tiny_folder), "sha256": hash_checkpoint(tiny_folder), "clip_sha256": ""}
    assert values["data"]["sha256"] == hash_dataset(SandboxScenes(1, 7, 128))
    assert (values["data"]["settings"]["name"], values["data"]["settings"]["seed"]) == ("sandbox", 7)
    assert "the first 1 images of the data set, as a limit was set" in values["assumptions"]
    assert values["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert values["inference"]["templates"] == ["a photo of a {}"]


def test_only_the_wished_number_of_images_is_kept(predictor: Predictor) -> None:
    dataset = SandboxScenes(5, seed=0, size=64)
    report = evaluate(predictor, dataset, keep=1)
    single = [evaluate(predictor, Only(dataset, index), keep=1).worst[0].miou for index in range(5)]
    assert [record.index for record in report.worst] == [int(np.argmin(single))]
    assert report.worst[0].miou == min(single) and report.best[0].miou == max(single)
    assert report.best[0].name == f"scene-0-{report.best[0].index}"
    assert evaluate(predictor, dataset).worst == ()


class Only:
    """One image of a data set."""

    def __init__(self, dataset: SandboxScenes, index: int) -> None:
        self.vocabulary, self.dataset, self.index = dataset.vocabulary, dataset, index

    def __len__(self) -> int:
        return 1

    def sample(self, index: int) -> Sample:
        return self.dataset.sample(self.index + index)


def test_images_without_labels_are_no_worst_images(predictor: Predictor) -> None:
    dataset = SandboxScenes(2, seed=0, size=64)
    empty = Sample(torch.zeros(3, 64, 64, dtype=torch.uint8), torch.full((64, 64), -1), Path("empty"))
    scene = dataset.sample(1)
    dataset.sample = lambda index: (empty, scene)[index]  # type: ignore[method-assign]
    report = evaluate(predictor, dataset, keep=2)
    assert [record.index for record in report.worst + report.best] == [1]
    assert report.counts.sum() == 64 * 64


def test_a_report_file_is_whole_or_not_there(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = evaluate(predictor, SandboxScenes(1, seed=0, size=64))
    path = report.save(tmp_path / "report.json")
    before = path.read_text()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.save(path)
    assert path.read_text() == before
    assert [found.name for found in tmp_path.iterdir()] == ["report.json"]


def test_flags_say_which_data() -> None:
    assert FolderOptions(data="voc", root="r", split="train", limit=3).to_config() == DataConfig(
        name="voc", root="r", split="train", limit=3, seed=2
    )
    assert FolderOptions(data="sandbox").to_config().limit == 300
    assert FolderOptions(data="sandbox", limit=4, seed=9).to_config() == DataConfig(name="sandbox", limit=4, seed=9)
    assert FolderOptions(images="i", masks="m", classes="c").to_config().limit == 0


def test_a_named_data_set_is_looked_for_below_its_root(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tiny_folder), "--data", "voc", "--root", str(tmp_path / "here")]) == 2
    assert str(tmp_path / "here") in capsys.readouterr().err
