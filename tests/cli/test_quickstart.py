"""The tour runs from one end to the other and draws what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascade_clip.checkpoints.checkpoint import find_checkpoint
from cascade_clip.cli.main import main
from cascade_clip.cli.quickstart import LOSS_FILE, read_curve


def test_quickstart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "quickstart",
        "--out",
        str(tmp_path / "tour"),
        "--scenes",
        "4",
        "--pictures",
        "2",
        "--minutes",
        "0.05",
    ]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "U: mIoU of unseen" in out and "last layer" in out and "cascade" in out
    page = np.array(Image.open(tmp_path / "tour" / "quickstart.png").convert("RGB"))
    assert page.shape[1] > 1000
    assert (page != 255).any(axis=2).mean() > 0.1  # not an empty page
    text = (tmp_path / "tour" / "index.html").read_text()
    assert (
        "data:image/png;base64," in text
        and "brick wall" in text
        and "{" not in text.split("</style>")[1]
    )
    assert read_curve(tmp_path / "tour" / "training" / "metrics.csv")
    for flag, small in (("--scenes", "1"), ("--pictures", "1"), ("--minutes", "0.001")):
        words[words.index(flag) + 1] = small
    (tmp_path / "tour" / "training" / "left").touch()
    assert main(words) == 0  # a second tour replaces the first
    assert not (tmp_path / "tour" / "training" / "left").exists()


def test_a_folder_of_somebody_else_is_not_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "thesis.txt").write_text("years")
    assert (
        main(
            [
                "quickstart",
                "--out",
                str(tmp_path),
                "--scenes",
                "1",
                "--pictures",
                "1",
                "--minutes",
                "0.01",
            ]
        )
        == 2
    )
    assert "not a run of an earlier tour" in capsys.readouterr().err
    assert (tmp_path / "training" / "thesis.txt").read_text() == "years"


def test_the_curve_of_the_full_run_is_shipped() -> None:
    curve = read_curve(find_checkpoint("mini") / LOSS_FILE)
    assert len(curve) > 20
    assert curve[-1][1] < curve[0][1]


def test_bad_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstart", "--scenes", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
