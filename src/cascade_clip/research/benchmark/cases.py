"""What the benchmark compares, and how: every turn of every variant is a fresh process, in the
order A B A B."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cascade_clip.errors import StorageError
from cascade_clip.research.benchmark.work import Work, count_flops

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
}
"""glibc's allocator told to keep large blocks instead of giving them back to the kernel."""

QUIET = {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}


@dataclass
class Row:
    """One variant of one case."""

    name: str
    work: Work
    turns: list[dict[str, float]] = field(default_factory=list)
    flops: int = 0

    @property
    def variant(self) -> str:
        """The variant in words."""
        if self.work.variant == "ours":
            return f"ours {self.work.precision}"
        return "textbook, tuned allocator" if self.work.tuned else "textbook"

    def median(self, figure: str) -> float:
        """Median over turns of `seconds`, `processor` (seconds) or `memory` (MiB)."""
        return statistics.median(turn[figure] for turn in self.turns)

    def share(self, peak: float) -> float:
        """Part of the machine's matrix-product peak (GFLOP per processor second) that the network's
        operations reach."""
        return self.flops / self.median("processor") / 1e9 / peak

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        figures = {name: self.median(name) for name in ("seconds", "processor", "memory")}
        return {
            "case": self.name,
            "variant": self.variant,
            **figures,
            "gflop": self.flops / 1e9,
            "turns": self.turns,
            "work": vars(self.work),
        }


def against_textbook(name: str, work: Work) -> list[Row]:
    """Ours in both number formats against the textbook variant under both settings of the
    allocator."""
    plain = dataclasses.replace(work, variant="textbook")
    works = [
        plain,
        work,
        dataclasses.replace(plain, tuned=True),
        dataclasses.replace(work, precision="bf16"),
    ]
    return [Row(name, one) for one in works]


def list_cases(case: str, size: str = "full") -> list[Row]:
    """The rows of a case: `inference`, `sliding`, `classes` or `train`."""
    side, large = (512, (1024, 1365)) if size == "full" else (64, (100, 130))
    base: dict[str, Any] = {"size": size}
    if case == "inference":
        works = {
            f"inference {side}, {count} classes": Work(
                "inference", classes=count, height=side, width=side, **base
            )
            for count in (20, 171)
        }
        return [row for name, work in works.items() for row in against_textbook(name, work)]
    if case == "sliding":
        name = f"sliding window {large[0]} x {large[1]}, 171 classes"
        return against_textbook(
            name, Work("inference", classes=171, height=large[0], width=large[1], **base)
        )
    if case == "classes":
        return [
            Row(
                f"{large[0]} x {large[1]}, {count} classes",
                Work("inference", classes=count, height=large[0], width=large[1], **base),
            )
            for count in (20, 1000)
        ]
    step = Work("train", classes=156, height=side, width=side, batch=2, **base)
    few = [Row("training step, 15 classes, batch 2", dataclasses.replace(step, classes=15))]
    return [*against_textbook("training step, 156 classes, batch 2", step), *few]


def list_scaling(size: str = "full") -> list[Row]:
    """Ours over numbers of classes at one window, and over numbers of pixels with 171 classes."""
    side = 512 if size == "full" else 64
    base: dict[str, Any] = {"size": size}
    sizes = [(side, side), (side, 2 * side), (2 * side, 2 * side)]
    classes = [
        Row("classes", Work("inference", classes=count, height=side, width=side, **base))
        for count in (10, 100, 1000)
    ]
    pixels = [
        Row("pixels", Work("inference", classes=171, height=height, width=width, **base))
        for height, width in sizes
    ]
    return [*classes, *pixels]


def measure_rows(
    rows: Sequence[Row], rounds: int, progress: Callable[[str], None], *, flops: bool = True
) -> None:
    """Run every row once a round, one after another, each time in a fresh process that warms up on
    one run first.

    Raises:
        ValueError: a process failed, for example for want of memory.
    """
    for turn in range(rounds):
        for row in rows:
            progress(f"{row.name}: {row.variant}, round {turn + 1} of {rounds}")
            row.turns.append(
                run_process(
                    json.dumps({**vars(row.work), "repeats": 1, "warm": 1}),
                    TUNED if row.work.tuned else {},
                )
            )
    for row in rows if flops else ():
        row.flops = count_flops(row.work)


def measure_peak() -> dict[str, float]:
    """The machine's matrix-product peak in GFLOP per processor second, by number format."""
    return run_process("peak", {})


def run_process(argument: str, environment: dict[str, str]) -> dict[str, float]:
    """What a fresh process of `benchmark_work` prints."""
    command = [sys.executable, "-m", "cascade_clip.research.benchmark.work", argument]
    done = subprocess.run(
        command, env={**os.environ, **QUIET, **environment}, capture_output=True, text=True
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [
            f"exit code {done.returncode}, which a lack of memory can cause"
        ]
        raise StorageError(f"the benchmark process for {argument} failed: {lines[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
