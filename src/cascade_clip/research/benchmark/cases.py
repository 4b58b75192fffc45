"""What the benchmark compares: every turn of a variant is a fresh process, in the order A B A B."""

import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cascade_clip.errors import StorageError
from cascade_clip.files import write_whole
from cascade_clip.research.benchmark.work import Size, Work, count_flops

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
}
"""glibc's allocator told to keep large blocks instead of giving them back to the kernel."""
QUIET = {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
_AXES = {"classes": "classes, 1 window", "pixels": "pixels of the input, 171 classes"}
_AXIS_LABELS = {"processor": "processor time (s)", "memory": "peak memory (MiB)"}


@dataclass
class Variant:
    """One variant of one case."""

    name: str  # of the case
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
        """Return the median over turns of `seconds`, `processor` (seconds) or `memory` (MiB)."""
        return statistics.median(turn[figure] for turn in self.turns)

    def share(self, peak: float) -> float:
        """Return the share of `peak` (GFLOP per processor second) that the network reaches."""
        return self.flops / self.median("processor") / 1e9 / peak

    def to_json(self) -> dict[str, Any]:
        """Write plain values."""
        medians = {name: self.median(name) for name in ("seconds", "processor", "memory")}
        counts = {"gflop": self.flops / 1e9, "turns": self.turns, "work": vars(self.work)}
        return {"case": self.name, "variant": self.variant, **medians, **counts}


def against_textbook(name: str, work: Work) -> list[Variant]:
    """Compare both number formats with the textbook variant under both allocator settings."""
    plain = dataclasses.replace(work, variant="textbook")
    tuned = dataclasses.replace(plain, tuned=True)
    works = [plain, work, tuned, dataclasses.replace(work, precision="bf16")]
    return [Variant(name, one) for one in works]


def list_cases(case: str, size: Size = "full") -> list[Variant]:
    """List the variants of a case: `inference`, `sliding`, `classes` or `train`."""
    side, (height, width) = (512, (1024, 1365)) if size == "full" else (64, (100, 130))
    image: Any = functools.partial(Work, height=side, width=side, size=size)
    large: Any = functools.partial(Work, "inference", height=height, width=width, size=size)
    if case == "inference":
        names = {count: f"inference {side}, {count} classes" for count in (20, 171)}
        works = {name: image("inference", classes=count) for count, name in names.items()}
        return [one for name, work in works.items() for one in against_textbook(name, work)]
    if case == "sliding":
        name = f"sliding window {height} x {width}, 171 classes"
        return against_textbook(name, large(classes=171))
    if case == "classes":
        names = {count: f"{height} x {width}, {count} classes" for count in (20, 1000)}
        return [Variant(name, large(classes=count)) for count, name in names.items()]
    few = Variant("training step, 15 classes, batch 2", image("train", classes=15, batch=2))
    step = image("train", classes=156, batch=2)
    return [*against_textbook("training step, 156 classes, batch 2", step), few]


def list_scaling(size: Size = "full") -> list[Variant]:
    """List ours over class counts at one window, and over pixel counts with 171 classes."""
    side = 512 if size == "full" else 64
    work: Any = functools.partial(Work, "inference", size=size)
    sizes = [(side, side), (side, 2 * side), (2 * side, 2 * side)]
    return [
        *(Variant("classes", work(classes=n, height=side, width=side)) for n in (10, 100, 1000)),
        *(Variant("pixels", work(classes=171, height=high, width=wide)) for high, wide in sizes),
    ]


def measure_variants(
    variants: Sequence[Variant], rounds: int, progress: Callable[[str], None], *, flops: bool = True
) -> None:
    """Run every variant once a round, each in a fresh process that warms up on one run first.

    Raises:
        StorageError: a process failed, for example because memory ran out.
    """
    for turn in range(rounds):
        for one in variants:
            progress(f"{one.name}: {one.variant}, round {turn + 1} of {rounds}")
            environment = TUNED if one.work.tuned else {}
            one.turns.append(run_process(json.dumps(vars(one.work)), environment))
    for one in variants if flops else ():
        one.flops = count_flops(one.work)


def measure_peak() -> dict[str, float]:
    """Measure the machine's matrix-product peak in GFLOP per processor second, by number format."""
    return run_process("peak", {})


def run_process(argument: str, environment: dict[str, str]) -> dict[str, float]:
    """Return what a fresh process (see `__main__`) prints.

    Raises:
        StorageError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "cascade_clip.research.benchmark", argument],
        env={**os.environ, **QUIET, **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        unknown = f"exit code {done.returncode}, which a lack of memory can cause"
        lines = done.stderr.strip().splitlines() or [unknown]
        raise StorageError(f"the benchmark process for {argument} failed: {lines[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def draw_scaling(variants: Sequence[Variant], path: Path) -> None:
    """Plot processor time and peak memory over classes and pixels, on log axes, into a PNG file."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    grid = figure.subplots(2, 2)
    for column, (name, title) in enumerate(_AXES.items()):
        found = [one for one in variants if one.name == name]
        works = [one.work for one in found]
        places = [one.classes if name == "classes" else one.height * one.width for one in works]
        for line, (key, label) in enumerate(_AXIS_LABELS.items()):
            values = [one.median(key) for one in found]
            axes = grid[line, column]
            axes.plot(places, values, marker="o")
            axes.set(xscale="log", yscale="log", xlabel=title, ylabel=label)
            axes.set_ylim(min(values) / 2, max(values) * 2)
            axes.grid(visible=True, which="both", alpha=0.3)
    write_whole(path, lambda part: figure.savefig(part, dpi=110, format="png"))
