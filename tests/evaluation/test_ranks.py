"""Several processes share the images and count what one process counts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cascade_clip.cli.main import main
from cascade_clip.evaluation.ranks import Ranks, join_ranks

WORDS = ["--data", "sandbox", "--limit", "5", "--pictures", "1", "--device", "cpu"]


def test_every_index_belongs_to_one_process() -> None:
    shares = [list(Ranks(rank, 3).share(8)) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert list(Ranks().share(3)) == [0, 1, 2]


def test_progress_is_told_after_each_index() -> None:
    told: list[object] = []
    for index in Ranks(1, 2).share(5, lambda done, total: told.append((done, total))):
        told.append(index)
    assert told == [1, (1, 2), 3, (2, 2)]


def test_one_process_alone_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_ranks() as ranks:
        assert ranks == Ranks(0, 1)
        assert not torch.distributed.is_initialized()
        counts = torch.tensor([1, 2])
        assert ranks.sum(counts) is counts
        assert ranks.gather("a") == ["a"]


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_ranks_outside_the_world_are_refused(rank: int, world: int) -> None:
    with pytest.raises(ValueError, match="rank must lie in"):
        Ranks(rank, world)


def test_broken_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="RANK must be a whole number, got ''"), join_ranks():
        pass


def test_two_processes_give_the_identical_report(tiny_folder: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "cascade_clip",
        "evaluate",
        str(tiny_folder),
        *WORDS,
        "--out",
        str(tmp_path / "two"),
    ]
    running = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    # meanwhile
    assert main(["evaluate", str(tiny_folder), *WORDS, "--out", str(tmp_path / "one")]) == 0
    try:
        printed = [process.communicate(timeout=100) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], printed
    # PyTorch 2.10 prints such a line itself
    second = [line for line in printed[1][0].splitlines() if not line.startswith("[Gloo]")]
    assert "5 images" in printed[0][0] and not second  # the first prints, the second does not
    one, two = (
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")
    )
    assert one == two
    assert sum(map(sum, one["confusion"])) == 5 * 128 * 128
    assert len(one["worst"]) == len(one["best"]) == 1
    pages = [(tmp_path / name / "report.html").read_text() for name in ("one", "two")]
    assert pages[0] == pages[1]
