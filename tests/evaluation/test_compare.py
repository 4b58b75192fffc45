"""`cascade-clip compare`: what it counts is what an evaluation counts, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascade_clip.checkpoints.checkpoint import save_checkpoint
from cascade_clip.cli.main import main
from cascade_clip.data.registry import SandboxScenes
from cascade_clip.evaluation.bootstrap import collect_tallies, figures
from cascade_clip.evaluation.evaluator import evaluate
from cascade_clip.evaluation.ranks import Ranks
from cascade_clip.inference.loading import load_predictor
from tiny_models import build_tiny

WORDS = ["--data", "sandbox", "--limit", "3", "--device", "cpu"]


def test_tallies_are_the_counts_of_an_evaluation(tiny_folder: Path) -> None:
    predictor, dataset = (
        load_predictor(tiny_folder, device="cpu"),
        SandboxScenes(3, seed=0, size=64),
    )
    steps: list[tuple[int, int]] = []
    tallies, vocabulary = collect_tallies(
        predictor, dataset, progress=lambda done, total: steps.append((done, total))
    )
    report = evaluate(predictor, dataset)
    found = figures(
        tallies.intersection.sum(axis=0), tallies.union.sum(axis=0), np.array(report.scores.seen)
    )
    assert found == pytest.approx(
        [report.scores.seen_miou, report.scores.unseen_miou, report.scores.hiou], rel=1e-12
    )
    assert tallies.union.shape == (3, 26) and vocabulary.unseen == dataset.vocabulary.unseen
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_processes_share_the_images(tiny_folder: Path) -> None:
    predictor, dataset = (
        load_predictor(tiny_folder, device="cpu"),
        SandboxScenes(3, seed=0, size=64),
    )
    whole, _ = collect_tallies(predictor, dataset)

    class Alone(Ranks):
        def sum(self, counts):  # type: ignore[no-untyped-def]
            return counts

    parts = [collect_tallies(predictor, dataset, ranks=Alone(rank, 2))[0] for rank in range(2)]
    assert (parts[0].union + parts[1].union == whole.union).all()
    assert not parts[0].union[1].any() and parts[1].union[1].any()


def test_the_command(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "difference.json"
    assert (
        main(
            [
                "compare",
                "mini",
                str(tiny_folder),
                *WORDS,
                "--resamples",
                "50",
                "--bootstrap-seed",
                "5",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    values = json.loads(out.read_text())
    assert (values["first"], values["second"], values["images"]) == ("mini", str(tiny_folder), 3)
    assert (values["resamples"], values["seed"]) == (50, 5)
    seen = values["figures"][0]
    # trained against random weights
    assert seen["figure"] == "S" and seen["wins"] == 1 and seen["interval"][0] > 0
    assert seen["difference"] == seen["first"] - seen["second"]
    printed = capsys.readouterr().out
    assert "S: A is ahead: the interval does not hold 0" in printed
    assert "3 images, 50 resamples" in printed and f"wrote {out}" in printed


def test_the_better_model_may_be_the_second(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(tiny_folder), "mini", *WORDS, "--resamples", "20"]) == 0
    assert "S: B is ahead: the interval does not hold 0" in capsys.readouterr().out


def test_a_model_is_equal_to_itself(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tiny_folder), str(tiny_folder), *WORDS, "--resamples", "20"]) == 0
    printed = capsys.readouterr().out
    assert "S: equal, whichever images are drawn" in printed and "+0.00 .. +0.00" in printed


def test_one_image_cannot_say(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["compare", "mini", str(tiny_folder), *WORDS, "--limit", "1", "--resamples", "20"])
        == 0
    )
    printed = capsys.readouterr().out
    assert "one image cannot say how sure a difference is" in printed and "is ahead" not in printed


def test_other_splits_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the data set names no unseen class, each model's own split would count."""
    folders = [save_checkpoint(tmp_path / name, build_tiny(unseen=name)) for name in ("cat", "dog")]
    scenes = tmp_path / "scenes"
    for kind in ("images", "masks"):
        (scenes / kind).mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(scenes / "images" / "a.png")
    Image.new("L", (64, 64), 1).save(scenes / "masks" / "a.png")
    data = [
        "--images",
        str(scenes / "images"),
        "--masks",
        str(scenes / "masks"),
        "--classes",
        "cat, dog, grass",
        "--device",
        "cpu",
    ]
    assert main(["compare", str(folders[0]), str(folders[1]), *data]) == 2
    assert "count other classes as unseen; say which with --unseen" in capsys.readouterr().err
    assert (
        main(
            [
                "compare",
                str(folders[0]),
                str(folders[1]),
                *data,
                "--unseen",
                "cat",
                "--resamples",
                "5",
            ]
        )
        == 0
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--resamples", "0"], "--resamples must be at least 1"), ([], "no checkpoint at nowhere")],
)
def test_wrong_words_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "nowhere", "mini", *WORDS, *words]) == 2
    assert message in capsys.readouterr().err
