"""What killed processes have left is removed by the next write; what is being written stays;
checkpoints change places in one step."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cascade_clip.checkpoints import checkpoint
from cascade_clip.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from cascade_clip.files import partial as partial_files
from cascade_clip.files.partial import exchange, partial_name, remove_stale
from cascade_clip.results.segmentation import Segmentation
from conftest import build_tiny

KILLED = """
import os, sys
from pathlib import Path
from cascade_clip.files.partial import partial_name
file, folder = partial_name(Path(sys.argv[1]) / "a.png"), partial_name(Path(sys.argv[1]) / "model")
file.touch()
folder.mkdir()
(folder / "inside").touch()
os.kill(os.getpid(), 9)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def leave_behind(folder: Path) -> list[str]:
    assert subprocess.run([sys.executable, "-c", KILLED, str(folder)]).returncode == -9
    return names(folder)


def test_the_next_write_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    left = leave_behind(tmp_path)
    assert len(left) == 2 and all(
        re.fullmatch(r"\.part(-[0-9a-f]{8}){2}-\d+-[0-9a-f]{8}-\d+(\.png)?", name) for name in left
    )
    Segmentation(np.zeros((2, 2), dtype=np.int64), ("a",), ((0, 0, 0),)).save(
        tmp_path, "b", outputs=("index",)
    )
    assert names(tmp_path) == ["b.json", "b_index.png"]


def test_what_others_are_writing_stays(tmp_path: Path) -> None:
    (mine := partial_name(tmp_path / "mine.png")).touch()
    alive = tmp_path / mine.name.replace(f"-{os.getpid()}-", f"-{os.getppid()}-")
    dead = tmp_path / mine.name.replace(f"-{os.getpid()}-", "-999999999-")
    elsewhere = tmp_path / dead.name.replace(partial_files._machine(), "0" * 8)  # another machine
    others = [tmp_path / name for name in (".part-abc.png", "part-0000.parquet", ".hidden")]
    for path in (alive, elsewhere, dead, *others):
        path.touch()
    assert remove_stale(tmp_path) == [dead]
    assert names(tmp_path) == sorted(path.name for path in (mine, alive, elsewhere, *others))
    assert remove_stale(tmp_path / "nowhere") == []


def test_a_container_that_is_started_again_has_the_same_numbers(tmp_path: Path) -> None:
    (mine := partial_name(tmp_path / "mine.png")).touch()
    before = tmp_path / mine.name.replace(partial_files._TOKEN, "0" * 8)
    before.mkdir()
    assert remove_stale(tmp_path) == [before]
    assert names(tmp_path) == [mine.name]


def test_what_another_start_of_the_machine_wrote_goes_after_an_hour(tmp_path: Path) -> None:
    """Machines of one image may share name and id: what was changed a short time ago may be
    theirs."""
    name = partial_name(tmp_path / "model").name.replace(partial_files._start(), "0" * 8)
    found = {age: tmp_path / f"{name}{number}" for number, age in enumerate((10, 3500, 3700))}
    elsewhere = tmp_path / f"{name.replace(partial_files._machine(), '0' * 8)}9"
    busy = tmp_path / f"{name}8"  # a folder in which a file was written a short time ago
    for path, age in [
        *((path, age) for age, path in found.items()),
        (elsewhere, 10**6),
        (busy, 3700),
    ]:
        path.mkdir()
        (path / "weights").touch()
        for one in (path / "weights", path) if path != busy else (path,):
            os.utime(one, (time.time() - age,) * 2)
    assert remove_stale(tmp_path) == [found[3700]]
    assert names(tmp_path) == sorted(
        path.name for path in (found[10], found[3500], elsewhere, busy)
    )


def test_names_tell_machines_starts_and_processes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from cascade_clip.files import partial as p; print(p._machine(), p._start(), p._TOKEN)"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert other[:2] == [partial_files._machine(), partial_files._start()]
    assert other[2] != partial_files._TOKEN
    machine, start = partial_files._machine.__wrapped__, partial_files._start.__wrapped__
    found = []
    for identity, boot in (("a", "a"), ("b", "a"), ("a", "b")):
        monkeypatch.setattr(
            partial_files,
            "_read",
            {"/etc/machine-id": identity, "/proc/sys/kernel/random/boot_id": boot}.__getitem__,
        )
        found.append((machine(), start()))
    assert found[0][0] != found[1][0] and found[0][1] == found[1][1]
    assert found[0][0] == found[2][0] and found[0][1] != found[2][1]


def test_no_two_names_are_alike(tmp_path: Path) -> None:
    found = [partial_name(tmp_path / "a.png") for _ in range(3)]
    assert len(set(found)) == 3
    assert {path.suffix for path in found} == {".png"} and {path.parent for path in found} == {
        tmp_path
    }


def test_exchange(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    done = exchange(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path / "a") == (["b"] if done else ["a"])
    assert not exchange(tmp_path / "a", tmp_path / "nowhere")
    assert names(tmp_path) == ["a", "b"]
    assert done or sys.platform != "linux"


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_checkpoint_takes_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(checkpoint, "exchange", lambda first, second: False)
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
        if source.name.startswith(".part-") and target == folder:
            raise OSError("no space")
        replace(source, target)

    monkeypatch.setattr(checkpoint, "exchange", lambda first, second: False)
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
