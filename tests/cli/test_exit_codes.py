"""Every exit code, each from a command as users run it."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cascade_clip import training
from cascade_clip.cli import models as models_command
from cascade_clip.cli import quickstart
from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.main import main
from cascade_clip.config.serialization import config_to_dict
from cascade_clip.errors import Interrupted
from cascade_clip.files import defects, write_whole
from cascade_clip.inference.predictor import Predictor
from cascade_clip.training.engine import STOPPED
from paths import ROOT
from tiny_runs import tiny_config, write_folders


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for reports of defects, and none of them written yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(defects, "_reports", {})


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = main([str(word) for word in words])
    return code, capsys.readouterr().err


def start(*words: object, **settings: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cascade_clip", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        **settings
    )  # fmt: skip


def wait_for(pattern: str) -> None:
    end = time.monotonic() + 120
    while not list(Path.cwd().glob(pattern)):
        assert time.monotonic() < end, f"no {pattern}"
        time.sleep(0.02)


def reports() -> list[str]:
    return [path.read_text() for path in sorted(Path.cwd().glob("cascade-clip-defect-*.txt"))]


def write_images(count: int) -> None:
    Path("images").mkdir()
    for number in range(count):
        pixels = np.full((40, 60, 3), 40 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(f"images/{number}.png")


def test_the_page_has_the_same_codes() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.M)] == list(ExitCode)
    assert ExitCode.RESUMABLE == STOPPED


def test_0_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "env") == (0, "")


@pytest.mark.parametrize("debug", [False, True])
def test_1_a_defect(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, debug: bool
) -> None:
    """Also errors that were once taken for bad input, as a ValueError of a library is."""

    def fail() -> int:
        raise ValueError("of our\nmaking")

    monkeypatch.setattr(models_command, "env", fail)
    monkeypatch.setattr(sys, "argv", ["cascade-clip", "env"])
    code, error = run(capsys, "env", *["--debug"] * debug)
    assert code == 1
    (report,) = reports()
    assert "in fail" in report and "ValueError: of our\nmaking" in report
    assert (
        f"torch {torch.__version__.split('+')[0]}" in report
        and "command: cascade-clip env" in report
    )
    last = error.splitlines()[-1]
    assert last.startswith(
        "cascade-clip: error: defect in cascade-clip, ValueError: of our making;"
    )
    assert str(next(Path.cwd().glob("cascade-clip-defect-*.txt"))) in last
    assert ("Traceback" in error) is debug and (debug or error.count("\n") == 1)


def test_1_a_defect_where_nothing_can_be_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(defects.tempfile, "gettempdir", lambda: str(elsewhere))
    monkeypatch.setattr(models_command, "env", lambda: [].pop())
    code, error = run(capsys, "env")
    (written,) = elsewhere.iterdir()
    assert code == 1 and str(written) in error and "IndexError" in written.read_text()
    # and where that is impossible too, the command still ends with its line
    monkeypatch.setattr(defects, "_reports", {})
    monkeypatch.setattr(defects.tempfile, "gettempdir", lambda: str(tmp_path / "gone"))
    code, error = run(capsys, "env")
    assert code == 1 and "--debug" in error


def test_1_a_defect_at_one_image_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    write_images(4)
    segment = Predictor.segment_pixels

    def fail_for_some(self: Predictor, pixels: torch.Tensor, *rest: Any) -> Any:
        if pixels[0, 0, 0] in (40, 80):
            raise ValueError("of our making")
        return segment(self, pixels, *rest)

    monkeypatch.setattr(Predictor, "segment_pixels", fail_for_some)
    words = ("segment", "images", "--model", tiny_folder, "--classes", "cat", "--quiet")
    code, error = run(capsys, *words)
    assert code == 1
    assert sorted(path.name for path in Path("output").glob("*.json")) == ["0.json", "3.json"]
    assert len(reports()) == 1  # one place of the program, one report
    lines = [line for line in error.splitlines() if "defect" in line]
    assert [line.split(":")[2].strip() for line in lines] == ["images/1.png", "images/2.png"]


def test_1_findings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_folders(tmp_path)
    words = ("data", "check", "--images", "images", "--masks", "masks", "--workers", 0)
    assert run(capsys, *words, "--classes", "cat, dog")[0] == 1  # the masks have four classes
    assert run(capsys, *words, "--classes", "classes.txt", "--ignore", 255)[0] == 0
    assert reports() == []


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "a/b.txt"), "a/b.txt: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (MemoryError(), "not enough memory (MemoryError); use smaller images"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "not enough memory (CUDA out of"),
    ],
)
def test_2_the_environment_of_the_user(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    line: str,
) -> None:
    def fail() -> int:
        raise error

    monkeypatch.setattr(models_command, "env", fail)
    code, text = run(capsys, "env")
    assert code == 2 and text.startswith(f"cascade-clip: error: {line}") and text.count("\n") == 1
    assert reports() == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["segment", "nowhere.png"], "nowhere.png does not exist"),
        (["sandbox", "preview", "--count", "1", "--out", "file/a.png"], "file/a.png: "),
        (["sandbox", "preview", "--count", "1", "--out", "a.doc"], "--out must end in .png"),
        (["sandbox", "preview", "--count", "1", "--seed", "-1"], "seed of scenes must be 0 "),
        (["cost", "--side", "0"], "--side in 1..100,000, got 171, 0"),
        (["analyse", "similarity", "file", "--out", "a"], "--out must end in .png"),
    ],
)
def test_2_bad_input(capsys: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    Path("file").touch()
    code, error = run(capsys, *words)
    assert code == 2 and line in error and error.splitlines()[-1].startswith("cascade-clip: error")
    assert reports() == []


def test_2_some_files_of_a_batch(capsys: pytest.CaptureFixture[str], tiny_folder: Path) -> None:
    write_images(2)
    Path("images/1.png").write_bytes(b"no image")
    words = ("segment", "images", "--model", tiny_folder, "--classes", "cat", "--quiet")
    code, error = run(capsys, *words)
    assert code == 2 and "images/1.png" in error and Path("output/0.json").exists()
    assert reports() == []


def test_2_a_full_disk() -> None:
    """A limit on the size of files fails a write in its middle, as a full disk does."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))  # noqa: E731
    process = start("sandbox", "preview", "--out", "a.png", preexec_fn=limit)
    _, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (2, "cascade-clip: error: a.png: File too large\n")
    assert not list(Path.cwd().iterdir())


def test_75_train_stopped_and_resumable(tmp_path: Path) -> None:
    """Ctrl-C; tests/training/test_resume.py has the signals of schedulers."""
    config = tiny_config(write_folders(tmp_path), steps=500, save_every=400, sheet_every=0)
    Path("run.yaml").write_text(yaml.safe_dump(config_to_dict(config)))
    process = start("train", "run.yaml", "--out", "run", "--quiet", start_new_session=True)
    wait_for("run/metrics.csv")
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 75, error
    assert "go on with --resume auto" in error
    assert list(Path("run/state").glob("step-*.ckpt"))


def test_143_in_the_middle_of_a_write_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(part: Path) -> None:
        part.write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(models_command, "env", lambda: write_whole(Path("a.txt"), stop))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as found:
        main(["env"])
    assert found.value.code == 143
    assert not list(Path.cwd().iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_130_and_143_while_the_tour_trains(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    """The tour cannot be resumed as `train` can."""

    def stop(*_: Any, **__: Any) -> None:
        raise Interrupted(STOPPED, number)

    monkeypatch.setattr(training, "fit", stop)
    with pytest.raises(SystemExit) as found:
        quickstart.train_for(0.01, Path("training"))
    assert found.value.code == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_130_and_143_stopped_elsewhere(number: signal.Signals, code: int) -> None:
    process = start("sandbox", "export", "--out", "world", "--train", "99999", "--size", "32")
    wait_for("world/images/train/000002.png")
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == code, error
    assert error == ("cascade-clip: error: interrupted\n" if code == 130 else "")
    assert not list(Path("world").rglob(".unfinished-*"))
