"""Files and folders appear whole or not at all; what killed processes have left is removed by a
later write; checkpoints change places in one step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cascade_clip.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from cascade_clip.files import atomic, write_folder, write_json, write_whole
from cascade_clip.results.segmentation import Segmentation
from tiny_models import build_tiny

KILLED = """
import os, sys
from pathlib import Path
from cascade_clip.files import write_folder, write_whole
def die(part):
    part.write_text("half") if sys.argv[2] == "file" else (part / "inside").touch()
    os.kill(os.getpid(), 9)
(write_whole if sys.argv[2] == "file" else write_folder)(Path(sys.argv[1]) / "a.png", die)
"""


@pytest.fixture(autouse=True)
def nothing_cleaned_yet() -> None:
    """Folders are cleaned once an hour: each test begins a new one."""
    atomic._remove_stale.cache_clear()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def leave_behind(folder: Path, kind: str) -> Path:
    before = set(folder.iterdir())
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), kind], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = set(folder.iterdir()) - before
    return left


def set_age(path: Path, seconds: float) -> None:
    for one in (*path.rglob("*"), path):
        os.utime(one, (time.time() - seconds,) * 2)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_later_write_removes_what_a_killed_process_left(tmp_path: Path, kind: str) -> None:
    old, young = leave_behind(tmp_path, kind), leave_behind(tmp_path, kind)
    set_age(old, 3700)
    set_age(young, 3500)
    (tmp_path / ".part-1.parquet.begun").touch()  # a note of ours, and any other hidden file
    Segmentation(np.zeros((2, 2), dtype=np.int64), ("a",), ((0, 0, 0),)).save(
        tmp_path, "b", outputs=("index",)
    )
    assert names(tmp_path) == sorted([young.name, ".part-1.parquet.begun", "b.json", "b_index.png"])


def test_what_was_written_to_a_short_time_ago_stays(tmp_path: Path) -> None:
    busy = leave_behind(tmp_path, "file")
    os.utime(busy, (time.time() - 4000,) * 2)  # the file in it is younger
    write_whole(tmp_path / "b.txt", "b")
    assert names(tmp_path) == [busy.name, "b.txt"]


def test_a_long_process_cleans_every_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "b.txt", "b")
    left = leave_behind(tmp_path, "file")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * atomic.STALE_AFTER)
    write_whole(tmp_path / "b.txt", "b")
    assert not left.exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [("grün\n", "grün\n".encode()), (b"\x00\xff", b"\x00\xff"), (Path.touch, b"")],
)
def test_contents(tmp_path: Path, content: object, expected: bytes) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    assert write_whole(path, content) == path  # type: ignore[arg-type]
    assert path.read_bytes() == expected
    assert names(path.parent) == ["a.txt"]
    # as the user's mask of rights says, not for its owner alone
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"name": "grün", "values": [1]})
    assert path.read_text(encoding="utf-8") == '{\n "name": "grün",\n "values": [\n  1\n ]\n}\n'


@pytest.mark.parametrize("write", [write_whole, write_folder])
def test_a_failed_write_changes_nothing(tmp_path: Path, write: object) -> None:
    write_folder(tmp_path / "a", lambda new: (new / "old").touch())

    def fail(part: Path) -> None:
        (part / "new" if part.is_dir() else part).write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device") as found:
        write(tmp_path / "a", fail)  # type: ignore[operator]
    assert (found.value.errno, found.value.filename) == (28, str(tmp_path / "a"))
    assert (names(tmp_path), names(tmp_path / "a")) == (["a"], ["old"])


def test_errors_of_the_system_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError) as found:
        write_whole(tmp_path / "file" / "a.txt", "a")
    assert found.value.filename == str(tmp_path / "file" / "a.txt")


def test_exchange(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    done = atomic._exchange(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path / "a") == (["b"] if done else ["a"])
    assert not atomic._exchange(tmp_path / "a", tmp_path / "nowhere")
    assert names(tmp_path) == ["a", "b"]
    assert done or sys.platform != "linux"


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_checkpoint_takes_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    model = build_tiny()
    save_checkpoint(tmp_path / "model", model)
    with torch.no_grad():
        changed = next(model.model.parameters()).mul_(2)
    save_checkpoint(tmp_path / "model", model)
    assert torch.equal(next(load_checkpoint(tmp_path / "model").model.parameters()), changed)
    assert names(tmp_path) == ["model"]


def test_the_old_model_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder, replace = build_tiny(), tmp_path / "model", os.replace
    save_checkpoint(folder, model)
    kept = (folder / "model.safetensors").read_bytes()

    def fail(source: Path, target: Path) -> None:
        if source.name == folder.name and target == folder:
            raise OSError("no space")
        replace(source, target)

    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    monkeypatch.setattr(os, "replace", fail)
    with torch.no_grad():
        next(model.model.parameters()).mul_(2)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(folder, model)
    assert names(tmp_path) == ["model"]
    assert (folder / "model.safetensors").read_bytes() == kept


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, value: float) -> None:
    weights = save_checkpoint(tmp_path / "model", build_tiny()) / "model.safetensors"
    state = load_file(weights)
    state["decoders.1.layers.0.expand.bias"][3] = value
    save_file(state, weights)
    with pytest.raises(
        ValueError,
        match=(
            r"model.safetensors contains NaN or infinite weights in"
            r" \['decoders.1.layers.0.expand.bias'\]"
        ),
    ):
        load_checkpoint(tmp_path / "model")
