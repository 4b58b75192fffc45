"""The threshold of a few labelled images, against counting every threshold by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cascade_clip.config import DataConfig
from cascade_clip.data.registry import build_dataset
from cascade_clip.data.samples import Sample
from cascade_clip.evaluation.metrics import ConfusionMatrix, compute_metrics
from cascade_clip.evaluation.threshold import (
    STEPS,
    choose_threshold,
    count_scores,
    mious_by_threshold,
)
from cascade_clip.inference.loading import load_predictor
from cascade_clip.inference.predictor import Predictor
from cascade_clip.vocabulary import IGNORED, Vocabulary, parse_classes


class Relabelled:
    """Scenes of the built-in world of which some classes are asked for; all others are background
    or unlabelled."""

    def __init__(self, names: str, other: int, count: int = 6) -> None:
        self.scenes = build_dataset(DataConfig(name="sandbox", seed=4, limit=count))
        self.vocabulary: Vocabulary = parse_classes(names)
        old = list(self.scenes.vocabulary.names)
        self.table = torch.full((len(old),), other)
        for index, name in enumerate(self.vocabulary.names):
            if name in old:
                self.table[old.index(name)] = index

    def __len__(self) -> int:
        return len(self.scenes)

    def sample(self, index: int) -> Sample:
        sample = self.scenes.sample(index)
        return Sample(sample.image, self.table[sample.labels], sample.path)


@pytest.fixture(scope="module")
def mini() -> Predictor:
    return load_predictor("mini", "cpu")


def test_mious_by_hand() -> None:
    labels = torch.tensor([[0, 0, 1, 2, IGNORED]])  # 2 is the background
    winners = torch.tensor([[0, 1, 1, 0, 0]])
    level = torch.tensor([[0.9, 0.4, 0.6, 0.2, 0.1]])
    mious = mious_by_threshold(count_scores(labels, winners, level, 3).numpy(), background=2)
    # no threshold: class 0: 1 hit of 3, class 1: 1 of 2, background 0 of 1
    assert mious[0] == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)
    # 0.3: the background pixel falls below, and is right
    assert mious[round(0.3 * STEPS)] == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    # 0.5: the wrong pixel of class 0 falls below, too
    assert mious[round(0.5 * STEPS)] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    # 0.95: everything is background; class 1 and 0 are missed
    assert mious[round(0.95 * STEPS)] == pytest.approx((0 + 0 + 1 / 4) / 3)


def test_the_choice_is_what_evaluation_gives(mini: Predictor) -> None:
    dataset = Relabelled("background, grass, water, star, tree", other=0)
    found = choose_threshold(mini, dataset)
    for threshold, expected in (
        (found.threshold, found.miou),
        (float(found.thresholds[90]), float(found.mious[90])),
    ):
        target = mini.bind(dataset.vocabulary, threshold=threshold)
        matrix = ConfusionMatrix(5)
        for index in range(len(dataset)):
            sample = dataset.sample(index)
            matrix.update(mini.label_map(sample.image, target).labels, sample.labels)
        assert compute_metrics(matrix, dataset.vocabulary.names, (True,) * 5).miou == pytest.approx(
            expected, abs=2e-4
        )
    assert found.miou > found.miou_without and 0 < found.threshold < 1
    assert np.all(found.mious <= found.miou)


def test_pixels_without_a_label_can_stand_for_background(mini: Predictor) -> None:
    named = choose_threshold(mini, Relabelled("grass, water, star, tree, background", other=4))
    ignored = choose_threshold(
        mini, Relabelled("grass, water, star, tree", other=IGNORED), ignored_is_background=True
    )
    assert ignored.threshold == named.threshold and ignored.miou == pytest.approx(named.miou)
    with pytest.raises(ValueError, match="no class of this data set is named 'background'"):
        choose_threshold(mini, Relabelled("grass, water", other=IGNORED))


def run_with_other_settings(
    words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every flag of inference and the file of embeddings have their effect; on two images."""
    from cascade_clip.cli.main import main

    dataset = Relabelled("background, grass, water, star, tree", other=0, count=2)
    mini = load_predictor("mini", "cpu")
    rows = torch.randn(5, mini.model.joint_width, generator=torch.Generator().manual_seed(0))
    np.save(folder / "rows.npy", rows.numpy())
    plain = choose_threshold(mini, dataset, calibration=0.2).mious
    mini = mini.with_settings(window=64, stride=48, flip=True, background="stone")
    flags = [
        "--limit",
        "2",
        "--window",
        "64",
        "--stride",
        "48",
        "--flip",
        "--background",
        "stone",
        "--calibration",
        "0.2",
    ]
    for more, text in (([], None), (["--text-embeddings", str(folder / "rows.npy")], rows)):
        assert (
            main(["threshold", "mini", *words, *flags, *more, "--out", str(folder / "other.json")])
            == 0
        )
        curve = json.loads((folder / "other.json").read_text())
        expected = choose_threshold(mini, dataset, calibration=0.2, text=text)
        assert curve["mious"] == expected.mious.tolist() != plain.tolist()
        assert curve["calibration"] == 0.2
    assert main(["threshold", "mini", *words, "--threshold", "0.5"]) == 2
    assert "is what this command chooses" in capsys.readouterr().err


def test_the_default_calibration_is_that_of_evaluate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cascade_clip.cli.main import main

    words = [
        "threshold",
        "mini",
        "--data",
        "sandbox",
        "--limit",
        "1",
        "--ignored-is-background",
        "--out",
        str(tmp_path / "curve.json"),
    ]
    assert main(words) == 0
    assert "- 0.1 subtracted from the scores of seen classes" in capsys.readouterr().out
    assert json.loads((tmp_path / "curve.json").read_text())["calibration"] == 0.1


def test_embeddings_stand_in_where_unlabelled_pixels_are_background(mini: Predictor) -> None:
    """The background has no row of its own, and needs none."""
    dataset = Relabelled("grass, water, star, tree", other=IGNORED, count=2)
    rows = mini.bind(dataset.vocabulary).text
    own = choose_threshold(mini, dataset, ignored_is_background=True)
    assert np.array_equal(
        choose_threshold(mini, dataset, text=rows, ignored_is_background=True).mious, own.mious
    )
    other = choose_threshold(mini, dataset, text=rows.flip(0), ignored_is_background=True)
    assert not np.array_equal(other.mious, own.mious)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cascade_clip.cli.main import main

    dataset = Relabelled("background, grass, water, star, tree", other=0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for index in range(len(dataset)):
        sample = dataset.sample(index)
        Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(
            tmp_path / "images" / f"{index}.png"
        )
        Image.fromarray(sample.labels.numpy().astype(np.uint8)).save(
            tmp_path / "masks" / f"{index}.png"
        )
    (tmp_path / "classes.txt").write_text("background\ngrass\nwater\nstar\ntree\n")
    words = [
        "--images",
        str(tmp_path / "images"),
        "--masks",
        str(tmp_path / "masks"),
        "--classes",
        str(tmp_path / "classes.txt"),
    ]
    assert main(["threshold", "mini", *words, "--out", str(tmp_path / "curve.json")]) == 0
    expected = choose_threshold(load_predictor("mini", "cpu"), dataset)
    out = capsys.readouterr().out
    assert f"--threshold {expected.threshold:g} is best here: mIoU {100 * expected.miou:.2f}" in out
    # the class list is not the training's
    assert "- 0 subtracted from the scores of seen classes" in out
    curve = json.loads((tmp_path / "curve.json").read_text())
    assert (curve["threshold"], curve["calibration"], curve["mious"]) == (
        expected.threshold,
        0.0,
        expected.mious.tolist(),
    )
    run_with_other_settings(words, tmp_path, capsys)
    (tmp_path / "classes.txt").write_text("ground\ngrass\nwater\nstar\ntree\n")
    assert main(["threshold", "mini", *words]) == 2
    assert "--ignored-is-background" in capsys.readouterr().err
