"""The calibration curve of one pass against one evaluation after the other, and the choice with
held-out classes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from cascade_clip.cli.main import main
from cascade_clip.config import DataConfig
from cascade_clip.data.registry import LabelledImages, build_dataset
from cascade_clip.data.samples import Sample
from cascade_clip.evaluation.calibration import (
    VALUES,
    CalibrationSweep,
    HeldOut,
    decide,
    sweep_calibration,
)
from cascade_clip.evaluation.evaluator import evaluate
from cascade_clip.evaluation.metrics import ConfusionMatrix, compute_metrics
from cascade_clip.evaluation.ranks import Ranks
from cascade_clip.inference.class_binding import BoundClasses
from cascade_clip.inference.loading import load_predictor
from cascade_clip.inference.predictor import LabelMap, Predictor
from cascade_clip.vocabulary import Vocabulary

UNSEEN = ("sand", "brick wall", "star", "fish", "mushroom", "umbrella")


@pytest.fixture(scope="module")
def mini() -> Predictor:
    return load_predictor("mini", "cpu")


def scenes(limit: int = 3, **changes: str) -> LabelledImages:
    return build_dataset(DataConfig(name="sandbox", seed=2, limit=limit, **changes))


def bound(rows: int, **changes: object) -> BoundClasses:
    names = tuple("abcd"[:rows])
    return BoundClasses(
        names,
        ((0, 0, 0),) * rows,
        torch.zeros(rows, 2),
        torch.ones(rows, dtype=torch.bool),
        **changes,
    )  # type: ignore[arg-type]


def test_decisions_by_hand() -> None:
    seen = LabelMap(torch.tensor([0, 0, 3, 3]), torch.tensor([0.75, 0.5, 0.75, 0.25]))
    other = LabelMap(torch.tensor([1, 1, 1, 1]), torch.tensor([0.5, 0.5, 0.5, 0.5]))
    # of equal scores the first row
    assert decide(seen, other, bound(4), 0.0).tolist() == [0, 0, 3, 1]
    # a tie again: row 0 wins it, row 3 does not
    assert decide(seen, other, bound(4), 0.25).tolist() == [0, 1, 1, 1]
    assert decide(seen, other, bound(4), 0.5).tolist() == [1, 1, 1, 1]
    # 0.75 - 0.125 is above the threshold, 0.5 is not; rows 2 and 3 mean label 2
    several = bound(4, threshold=0.6, labels=torch.tensor([0, 1, 2, 2]))
    assert decide(seen, other, several, 0.125).tolist() == [0, -1, 2, -1]


@pytest.mark.parametrize(
    "settings",
    [{}, {"flip": True, "background": "stone, sand", "threshold": 0.3, "class_chunk": 5}],
    ids=["plain", "all"],
)
def test_one_pass_gives_what_separate_evaluations_give(
    mini: Predictor, settings: dict[str, object]
) -> None:
    predictor = Predictor(mini.checkpoint, dataclasses.replace(mini.settings, **settings), "cpu")  # type: ignore[arg-type]
    found = sweep_calibration(predictor, scenes(), (0.3, 0.0, 0.1))
    assert (
        found.values == (0.0, 0.1, 0.3)
        and found.images == 3
        and found.usual == 0.1
        and found.held_out == ()
    )
    for value, row in zip(found.values, found.scores, strict=True):
        assert row.to_json() == evaluate(predictor, scenes(), value).scores.to_json()
    assert len({row.pixel_accuracy for row in found.scores}) == 3


def test_the_other_classes_do_not_count_when_some_are_held_out(mini: Predictor) -> None:
    """Against the same images with a shorter class list and labels that are ignored."""
    found = sweep_calibration(mini, scenes(), (0.05, 0.2), held_out=["Sand", "star"])
    assert found.held_out == ("sand", "star")
    whole = scenes()
    names = [
        name for name in whole.vocabulary.names if name not in UNSEEN or name in ("sand", "star")
    ]
    bound = mini.bind(names, 0.2)
    assert bound.seen.sum() == len(names) - 2
    matrix = ConfusionMatrix(len(names))
    for index in range(3):
        sample = whole.sample(index)
        table = [names.index(name) if name in names else -1 for name in whole.vocabulary.names]
        matrix.update(
            mini.label_map(sample.image, bound).labels, torch.tensor(table)[sample.labels]
        )
    expected = compute_metrics(matrix, names, [name not in ("sand", "star") for name in names])
    assert found.scores[1].to_json() == expected.to_json()
    assert found.scores[1].unseen_miou is not None


def test_labels_of_a_held_out_data_set() -> None:
    class Rows:
        vocabulary = Vocabulary(
            tuple("abcd"), tuple((name,) for name in "abcd"), ((0, 0, 0),) * 4, ("b", "d")
        )

        def __len__(self) -> int:
            return 1

        def sample(self, index: int) -> Sample:
            return Sample(
                torch.zeros(3, 1, 5, dtype=torch.uint8), torch.tensor([[0, 1, 2, 3, -1]]), Path("x")
            )

    found = HeldOut(Rows(), ("a", "C"), ("D",))
    assert found.vocabulary.names == ("a", "c", "d") and found.vocabulary.unseen == ("d",)
    assert found.kept == [0, 2, 3]
    assert found.sample(0).labels.tolist() == [[0, -1, 1, 2, -1]]


def test_embeddings_follow_the_classes_that_are_left(mini: Predictor) -> None:
    whole = scenes(1)
    rows = mini.bind(whole.vocabulary).text
    plain = sweep_calibration(mini, whole, (0.1,), held_out=["star"])
    assert (
        sweep_calibration(mini, whole, (0.1,), held_out=["star"], text=rows).scores[0].to_json()
        == plain.scores[0].to_json()
    )


def test_processes_that_share_the_images_count_the_same(mini: Predictor) -> None:
    class Second(Ranks):
        """Of two processes, with the counts of both known to it."""

        def sum(self, counts: torch.Tensor) -> torch.Tensor:
            return counts + first.pop(0)

    first: list[torch.Tensor] = []

    class First(Ranks):
        def sum(self, counts: torch.Tensor) -> torch.Tensor:
            first.append(counts)
            return counts

    sweep_calibration(mini, scenes(), (0.0, 0.1), ranks=First(0, 2))
    shared = sweep_calibration(mini, scenes(), (0.0, 0.1), ranks=Second(1, 2))
    alone = sweep_calibration(mini, scenes(), (0.0, 0.1))
    assert [row.to_json() for row in shared.scores] == [row.to_json() for row in alone.scores]


def scores_with(hiou: float | None) -> object:
    matrix = ConfusionMatrix(2)
    return dataclasses.replace(compute_metrics(matrix, ("a", "b"), (True, False)), hiou=hiou)


def test_the_first_of_the_highest_is_chosen() -> None:
    rows = tuple(scores_with(value) for value in (None, 0.2, 0.4, 0.4, 0.1))
    assert CalibrationSweep((0.0, 0.1, 0.2, 0.3, 0.4), rows, 1, 0.1).best == 2  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is no hIoU to choose by"):
        _ = CalibrationSweep((0.0,), rows[:1], 1, 0.1).best  # type: ignore[arg-type]


def test_without_anything_to_choose_by_the_curve_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = CalibrationSweep((0.0, 0.1), (scores_with(None), scores_with(None)), 1, 0.1)  # type: ignore[arg-type]
    monkeypatch.setattr("cascade_clip.evaluation.sweep_calibration", lambda *words, **flags: sweep)
    assert (
        main(
            [
                "calibration",
                "mini",
                "--data",
                "sandbox",
                "--limit",
                "1",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    assert "there is no hIoU to choose by" in capsys.readouterr().err
    found = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert found["chosen"] is None and [row["calibration"] for row in found["rows"]] == [0.0, 0.1]
    assert (tmp_path / "out" / "calibration.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("values", "held_out", "unseen", "message"),
    [
        ((), (), "", "calibration values must be numbers, got none"),
        ((0.1, float("nan")), (), "", r"must be numbers, got \[nan\]"),
        ((0.1,), ("zebra",), "", r"held-out names \['zebra'\] are no class names of this data set"),
        (
            (0.1,),
            ("grass",),
            "",
            (
                r"without hiding \['grass'\]; train another one .* --data.unseen \"sand, brick"
                r" wall, .*umbrella, grass\""
            ),
        ),
    ],
)
def test_choices_that_cannot_be_made(
    mini: Predictor, values: tuple[float, ...], held_out: tuple[str, ...], unseen: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sweep_calibration(mini, scenes(1), values, held_out=held_out)


def test_a_calibration_needs_seen_and_unseen_names(mini: Predictor) -> None:
    only = HeldOut(scenes(1), mini.vocabulary.seen, ())
    with pytest.raises(ValueError, match="all of these class names had masks"):
        sweep_calibration(mini, only)
    supervised = Predictor(
        dataclasses.replace(mini.checkpoint, record={"protocol": "supervised"}),
        mini.settings,
        "cpu",
    )
    with pytest.raises(ValueError, match="trained with masks of every class"):
        sweep_calibration(supervised, scenes(1), held_out=["star"])


def test_from_the_command_line(
    mini: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["calibration", "mini", "--data", "sandbox", "--seed", "2", "--limit", "3"]
    assert (
        main(
            [
                *words,
                "--values",
                "0.3,0,0.1",
                "--held-out",
                "sand, brick wall",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    expected = sweep_calibration(mini, scenes(), (0.0, 0.1, 0.3), held_out=("sand", "brick wall"))
    text = capsys.readouterr().out
    chosen = expected.values[expected.best]
    assert (
        f"--calibration {chosen:g} gives the highest hIoU here:"
        f" {100 * float(expected.scores[expected.best].hiou or 0):.2f}" in text
    )
    assert "- held out and in the place of unseen classes: sand, brick wall" in text
    assert "- without --calibration `evaluate` subtracts 0.1 on this class list" in text
    assert json.loads((tmp_path / "out" / "calibration.json").read_text()) == expected.to_json()
    assert (tmp_path / "out" / "calibration.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "calibration.json",
        "calibration.png",
    ]
    assert main([*words, "--limit", "1", "--window", "64", "--stride", "64"]) == 0
    text = capsys.readouterr().out
    assert "labels of unseen classes were used" in text
    assert main([*words, "--values", "low"]) == 2
    assert "--values must be numbers" in capsys.readouterr().err


def test_the_usual_values() -> None:
    assert len(VALUES) == 21 and VALUES[0] == 0 and VALUES[4] == 0.1 and VALUES[-1] == 0.5
