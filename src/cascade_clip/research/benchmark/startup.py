"""How long the program takes to start."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from cascade_clip.research.benchmark.machine import Measurement
from cascade_clip.sandbox import SceneConfig, make_scene


def measure_startup(rounds: int, progress: Callable[[str], None]) -> list[Measurement]:
    """Seconds from a cold process to `--help`, to `import cascade_clip`, and to one segmented image
    with `mini`."""
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "scene.png"
        Image.fromarray(make_scene(0, 0, SceneConfig(size=128)).image).save(photo)
        program = [sys.executable, "-m", "cascade_clip"]
        commands = {
            "cascade-clip --help": [*program, "--help"],
            "import cascade_clip": [sys.executable, "-c", "import cascade_clip"],
            "segment one image with mini": [
                *program,
                "segment",
                str(photo),
                "--model",
                "mini",
                "--out",
                str(Path(folder) / "out"),
            ],
        }
        return [_measure(name, command, rounds, progress) for name, command in commands.items()]


def _measure(
    name: str, command: list[str], rounds: int, progress: Callable[[str], None]
) -> Measurement:
    wall, processor = [], []
    for turn in range(rounds):
        progress(f"{name}, round {turn + 1} of {rounds}")
        begin, used = time.perf_counter(), _children_seconds()
        subprocess.run(command, check=True, capture_output=True)
        wall.append(time.perf_counter() - begin)
        processor.append(_children_seconds() - used)
    return Measurement(
        name,
        statistics.median(wall),
        "s",
        f"{statistics.median(processor):.2f} s of processor time",
    )


def _children_seconds() -> float:
    """Processor seconds of ended child processes."""
    used = os.times()
    return used.children_user + used.children_system
