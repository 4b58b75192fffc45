"""`verify` repeats the evaluation that a checkpoint stores, and says whether the figures are the
same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cascade_clip.cli.main import main
from cascade_clip.config import DataConfig
from cascade_clip.data.registry import build_dataset
from cascade_clip.evaluation.evaluator import evaluate, evaluation_record, read_evaluation
from cascade_clip.inference.loading import load_predictor

DATA = DataConfig(name="sandbox", seed=3, limit=2, size=64)


@pytest.fixture
def evaluated(tiny_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint with an evaluation in its record, at another calibration than the default."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    report = evaluate(
        load_predictor(folder, device="cpu"), build_dataset(DATA, "val"), calibration=0.3
    )
    store(folder, evaluation_record(report, DATA))
    return folder


def store(folder: Path, evaluation: Any) -> None:
    record = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps({**record, "evaluation": evaluation}))


def stored(folder: Path) -> dict[str, Any]:
    evaluation: dict[str, Any] = json.loads((folder / "checkpoint.json").read_text())["evaluation"]
    return evaluation


def test_the_figures_come_out_again(evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(evaluated), "--tolerance", "0"]) == 0
    out = capsys.readouterr().out
    assert "every figure agrees within 0" in out and "2 images" in out
    assert "0.3 subtracted" in out  # the stored calibration, not the default
    assert "not the recorded one" not in out


@pytest.mark.parametrize(
    ("shift", "tolerance", "code"), [(0.002, "0.001", 1), (0.002, "0.003", 0), (-0.002, "0.001", 1)]
)
def test_a_figure_that_differs_is_named(
    evaluated: Path, capsys: pytest.CaptureFixture[str], shift: float, tolerance: str, code: int
) -> None:
    evaluation = stored(evaluated)
    evaluation["summary"]["pixel_accuracy"] += shift
    store(evaluated, evaluation)
    assert main(["verify", str(evaluated), "--tolerance", tolerance]) == code
    out = capsys.readouterr().out
    assert ("differs by more than 0.001: pixel accuracy\n" in out) is (code == 1)
    assert f"{-100 * shift:+.2f}" in out


def test_a_figure_that_could_not_be_computed_differs_from_a_number(
    evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = stored(evaluated)
    evaluation["summary"]["hiou"] = None
    store(evaluated, evaluation)
    assert main(["verify", str(evaluated)]) == 1
    assert "differs by more than 0.001: hIoU" in capsys.readouterr().out


def test_other_data_is_said(evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = stored(evaluated)
    evaluation["data_sha256"] = "0" * 64
    store(evaluated, evaluation)
    assert main(["verify", str(evaluated)]) == 0  # the figures agree all the same
    assert "the data set is not the recorded one" in capsys.readouterr().out


def test_data_may_have_moved(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = tmp_path / "world"
    assert (
        main(
            ["sandbox", "export", "--out", str(world), "--train", "1", "--val", "2", "--size", "64"]
        )
        == 0
    )
    images, masks = world / "images" / "val", world / "masks" / "val"
    config = DataConfig(
        images=str(images),
        masks=str(masks),
        classes=str(world / "classes.txt"),
        unseen=str(world / "unseen.txt"),
    )
    report = evaluate(load_predictor(evaluated, device="cpu"), build_dataset(config))
    gone = DataConfig(
        images="/gone/i", masks="/gone/m", classes="/gone/c.txt", unseen=config.unseen
    )
    store(evaluated, evaluation_record(report, gone))
    capsys.readouterr()
    assert main(["verify", str(evaluated)]) == 2
    assert "/gone/" in capsys.readouterr().err
    words = [
        "--images",
        str(images),
        "--masks",
        str(masks),
        "--classes",
        str(world / "classes.txt"),
    ]
    assert main(["verify", str(evaluated), *words, "--tolerance", "0"]) == 0
    # a copy elsewhere is the same data
    assert "not the recorded one" not in capsys.readouterr().out


@pytest.mark.parametrize("evaluation", [None, {}, {"data": {"name": "sandbox"}}])
def test_without_stored_figures_there_is_nothing_to_verify(
    evaluated: Path, capsys: pytest.CaptureFixture[str], evaluation: Any
) -> None:
    store(evaluated, evaluation)
    assert main(["verify", str(evaluated)]) == 2
    assert "stores no figures to verify" in capsys.readouterr().err


def test_wrong_words_are_refused(evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # fewer images would give other figures
    assert main(["verify", str(evaluated), "--limit", "3"]) == 2
    assert "--limit" in capsys.readouterr().err
    assert main(["verify", str(evaluated), "--tolerance", "-1"]) == 2
    assert "--tolerance must be 0 or more" in capsys.readouterr().err


def test_a_record_that_names_data_in_words_falls_back_on_the_settings() -> None:
    """The packaged models were stored before the record held the settings of the data."""
    found = read_evaluation("mini")
    assert (found.data.name, found.data.seed, found.data.limit) == ("sandbox", 2, 300)
    assert found.calibration is None and found.data_sha256 == ""
    assert set(found.summary) == {"seen_miou", "unseen_miou", "hiou", "miou", "pixel_accuracy"}


def test_a_record_without_data_is_refused(evaluated: Path) -> None:
    evaluation = stored(evaluated)
    store(evaluated, {**evaluation, "data": "somewhere"})
    with pytest.raises(ValueError, match="does not say on which data"):
        read_evaluation(evaluated)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mini", "mini-last"])
def test_the_packaged_models_are_what_they_say(name: str) -> None:
    assert main(["verify", name]) == 0
