"""The engine `ray` on a cluster of two workers on this machine, one of which is killed; and the
page about it."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cascade_clip.cli.main import main
from cascade_clip.inference.ray_batch import require_ray
from cascade_clip.inference.ray_manifest import FOLDER, read_manifest
from many_pictures import NAMES, read_results, write_pictures
from paths import ROOT


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two workers on this machine."""
    pytest.importorskip("ray.data")
    ray = require_ray()
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 * 2**20,
        logging_level="ERROR",
    )
    yield ray
    ray.shutdown()


def list_actors() -> list[psutil.Process]:
    """Actor processes of the cluster of this test, and of no other."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ray::MapWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
class TestCluster:
    """The command itself, with two actors."""

    @pytest.fixture(scope="class")
    def pictures(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("pictures")
        write_pictures(folder, 96, (150, 170))
        return folder

    @pytest.fixture(scope="class")
    def expected(
        self, pictures: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> dict[str, bytes]:
        """What the local engine writes."""
        out = tmp_path_factory.mktemp("local")
        assert (
            main(
                [
                    "segment",
                    str(pictures),
                    "--model",
                    str(tiny_folder),
                    "--classes",
                    NAMES,
                    "--out",
                    str(out),
                    "--quiet",
                ]
            )
            == 0
        )
        return read_results(out)

    def test_a_killed_actor_loses_nothing(
        self,
        pictures: Path,
        expected: dict[str, bytes],
        tiny_folder: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """kill -9 of an actor in the middle: every picture once, none lost, the manifest complete
        and without duplicates."""
        out = tmp_path / "out"
        words = [
            "segment",
            str(pictures),
            "--model",
            str(tiny_folder),
            "--classes",
            NAMES,
            "--out",
            str(out),
            "--engine",
            "ray",
        ]
        killed: list[tuple[int, dict[Path, int]]] = []

        def kill() -> None:
            deadline = time.monotonic() + 300
            while time.monotonic() < deadline:
                done = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
                actors = list_actors()
                if len(done) >= 20 and len(actors) == 2:
                    os.kill(actors[0].pid, signal.SIGKILL)
                    killed.append((actors[0].pid, done))
                    return
                time.sleep(0.01)

        killer = threading.Thread(target=kill)
        killer.start()
        code = main([*words, "--actors", "2"])
        killer.join()
        assert code == 0 and len(killed) == 1
        assert 20 <= len(killed[0][1]) < 90  # in the middle
        # what was done is not touched again
        assert {path: path.stat().st_mtime_ns for path in killed[0][1]} == killed[0][1]
        assert read_results(out) == expected and len(expected) == 3 * 96
        rows = read_manifest(out)
        assert [row["name"] for row in rows] == [f"{index:03d}" for index in range(96)]
        assert all(row["error"] is None for row in rows)
        assert all(
            row["sha256"] == hashlib.sha256(Path(row["path"]).read_bytes()).hexdigest()
            for row in rows
        )
        assert {path.suffix for path in (out / FOLDER).iterdir()} == {".parquet"}
        assert (
            "96 images segmented" in (printed := capsys.readouterr().out)
            and "0 done before, 0 failed" in printed
        )
        # nothing is left to do, and the manifest stays the same
        assert main([*words, "--actors", "1"]) == 0
        assert "0 images segmented, 96 done before, 0 failed" in capsys.readouterr().out
        assert read_manifest(out) == rows

    def test_one_line_for_what_stops_everything(
        self, pictures: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        words = [
            "segment",
            str(pictures / "000.png"),
            "--model",
            str(tiny_folder),
            "--classes",
            NAMES,
            "--out",
            str(tmp_path / "file"),
        ]
        assert main([*words, "--engine", "ray", "--actors", "1"]) == 2
        errors = capsys.readouterr().err.splitlines()
        assert [line for line in errors if line.startswith("cascade-clip: error:")] == errors[-1:]
        assert "in the way" not in errors[-1] and str(tmp_path / "file") in errors[-1]


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path) -> None:
    """Every block of docs/scaling-out.md, as a reader types them."""
    pytest.importorskip("ray.data")
    blocks = re.findall(
        r"```(bash|python)\n(.*?)```", (ROOT / "docs" / "scaling-out.md").read_text(), re.DOTALL
    )
    assert [kind for kind, _ in blocks] == ["bash", "python", "bash"]
    write_pictures(tmp_path / "photos", 9, (64, 80))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    printed = []
    for kind, block in blocks:
        command = ["bash", "-e", "-c", block] if kind == "bash" else [sys.executable, "-c", block]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert "9 images segmented" in printed[0] and printed[1].startswith("9 ")
    by_hand = {path.name: path.read_bytes() for path in (tmp_path / "output-by-hand").glob("?/*")}
    assert by_hand == read_results(tmp_path / "output") and len(by_hand) == 27
    assert [len(list((tmp_path / "output-by-hand" / part).glob("*.json"))) for part in "01"] == [
        5,
        4,
    ]
