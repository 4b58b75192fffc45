"""A picture of how time and memory grow with classes and with pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from cascade_clip.files import write_whole
from cascade_clip.research.benchmark.cases import Row

AXES = {"classes": "classes, 1 window", "pixels": "pixels of the input, 171 classes"}
AXIS_LABELS = {"processor": "processor time (s)", "memory": "peak memory (MiB)"}


def draw_scaling(rows: Sequence[Row], path: Path) -> None:
    """Processor time and peak memory over the number of classes and of pixels, on log axes, into a
    PNG file."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    grid = figure.subplots(2, 2)
    for column, (name, title) in enumerate(AXES.items()):
        found = [row for row in rows if row.name == name]
        places = [
            row.work.classes if name == "classes" else row.work.height * row.work.width
            for row in found
        ]
        for line, (key, label) in enumerate(AXIS_LABELS.items()):
            axes = grid[line, column]
            axes.plot(places, [row.median(key) for row in found], marker="o")
            axes.set_xscale("log")
            axes.set_yscale("log")
            lowest, highest = (
                min(row.median(key) for row in found),
                max(row.median(key) for row in found),
            )
            axes.set_ylim(lowest / 2, highest * 2)
            axes.set_xlabel(title)
            axes.set_ylabel(label)
            axes.grid(visible=True, which="both", alpha=0.3)
    write_whole(path, lambda part: figure.savefig(part, dpi=110, format="png"))
