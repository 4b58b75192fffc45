"""Plots of results, as PNG files whose `Description` says what they show."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

from cascade_clip.files import write_whole
from cascade_clip.research.reproduction.verdicts import Verdict
from cascade_clip.results import PAIRED_METRICS

CERTAIN, UNSURE, PAPER = "#2f6db3", "#8a94a0", "#c7651a"
_PUBLISHED: dict[str, Any] = {
    "color": PAPER,
    "marker": "D",
    "markerfacecolor": "white",
    "markersize": 4.5,
    "linestyle": "none",
}
"""The diamond of a published value."""
_DPI = 160
_LONGEST_NAME = 26


def save_picture(figure: Figure, path: Path, description: str) -> Path:
    """Write a PNG with its description, completely or not at all; its folder is made."""
    metadata = {"Description": description}
    return write_whole(path, lambda part: figure.savefig(part, dpi=_DPI, metadata=metadata))


def describe_picture(path: Path) -> str:
    """Read the description of a plot that `save_picture` wrote."""
    with Image.open(path) as picture:
        return str(picture.info.get("Description", path.stem))


def draw_differences(verdicts: Sequence[Verdict]) -> Figure:
    """Plot each comparison's interval and the paper's difference, with panels for S, U and hIoU."""
    rows = list(dict.fromkeys((verdict.row, verdict.against) for verdict in verdicts))
    several = len({against for _, against in rows}) > 1
    labels = [_wrap(f"{row}, minus {against}" if several else row) for row, against in rows]
    lines = sum(label.count("\n") + 2 for label in labels)
    figure = Figure(figsize=(7.4, 1.25 + 0.17 * lines), layout="constrained")
    panels = figure.subplots(1, len(PAIRED_METRICS), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, PAIRED_METRICS, strict=True):
        for verdict in verdicts:
            if verdict.figure == name:
                _draw_one(panel, rows.index((verdict.row, verdict.against)), verdict)
        panel.axvline(0, color="#1c2430", linewidth=0.8, zorder=0)
        panel.set_title(name if several else f"{name}, minus\n{_wrap(rows[0][1])}", fontsize=9)
        panel.set_ylim(len(rows) - 0.5, -0.5)
        _tidy(panel)
    panels[0].set_yticks(range(len(rows)), labels, fontsize=9)
    panels[1].set_xlabel("percentage points", fontsize=9)
    marks = _key(verdicts)
    figure.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def describe_differences(verdicts: Sequence[Verdict]) -> str:
    """Say what `draw_differences` shows, for those who cannot see it."""
    against = {verdict.against for verdict in verdicts}
    other = against.pop() if len(against) == 1 else "the one that it is compared with"
    published = any(verdict.published is not None for verdict in verdicts)
    paper = ", and the paper's differences" if published else ""
    shown = f"Differences in S, U and hIoU, every row minus {other}, with 95 % intervals{paper}"
    return f"{shown}. The numbers are in the table."


def draw_lengths(
    ours: Mapping[int, Sequence[Mapping[str, float]]],
    paper: Mapping[int, Mapping[str, float]],
    datasets: tuple[str, str],
) -> Figure:
    """Plot S and U over training steps (Figure 7): the paper's at the left, ours at the right.

    Args:
        ours: steps to the scores of every seed, in 0..1.
        paper: steps to its figures, in percent.
        datasets: whose values are printed in the paper, and where ours come from.
    """
    figure = Figure(figsize=(7.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, color, marker in (("S", CERTAIN, "o"), ("U", PAPER, "s")):
        printed = [(at, values[name]) for at, values in sorted(paper.items()) if name in values]
        left.plot(*zip(*printed, strict=True), color=color, marker=marker, label=name)
        found = [(steps, [100 * run[name] for run in runs]) for steps, runs in sorted(ours.items())]
        means = [float(np.mean(values)) for _, values in found]
        right.plot([at for at, _ in found], means, color=color, marker=marker, label=name)
        seeds = [(at, one) for at, values in found if len(values) > 1 for one in values]
        if seeds:
            points = right.plot(*zip(*seeds, strict=True), color=color, marker=marker, alpha=0.6)
            points[0].set(markersize=3, linestyle="none")
    for panel, title in ((left, f"paper, {datasets[0]}"), (right, f"here, {datasets[1]}")):
        panel.set_title(title, fontsize=10, loc="left")
        panel.set_xlabel("steps of training", fontsize=9)
        panel.set_ylabel("mIoU in percent", fontsize=9)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.xaxis.set_major_formatter(lambda value, place: f"{value:,.0f}")
        _tidy(panel)
        panel.legend(frameon=False, fontsize=9)
    return figure


def _draw_one(panel: Axes, place: int, verdict: Verdict) -> None:
    """Draw one comparison: dot and interval, and the paper's diamond above."""
    found, certain = verdict.found, verdict.standing == "certain"
    color = CERTAIN if certain else UNSURE
    if found.difference is not None and found.low is not None and found.high is not None:
        ends = [100 * found.low, 100 * found.high]
        panel.plot(ends, [place, place], color=color, linewidth=2.2, solid_capstyle="butt")
        (dot,) = panel.plot(100 * found.difference, place, "o", color=color, markersize=6.5)
        dot.set_markerfacecolor(color if certain else "white")
    if verdict.published is not None:
        panel.plot(verdict.published, place - 0.27, **_PUBLISHED)


def _key(verdicts: Sequence[Verdict]) -> list[Line2D]:
    """Explain the marks."""
    one_seed = all(verdict.one_seed for verdict in verdicts)
    certain = "certain for these trained models" if one_seed else "certain"
    dot: dict[str, Any] = {"marker": "o", "linewidth": 2.2}
    unsure = {"color": UNSURE, "markerfacecolor": "white", **dot}
    marks = [
        Line2D([], [], color=CERTAIN, label=f"{certain}, 95 % interval", **dot),
        Line2D([], [], label="not certain, 95 % interval", **unsure),
    ]
    if any(verdict.published is not None for verdict in verdicts):
        marks.append(Line2D([], [], label="paper, no interval", **_PUBLISHED))
    return marks


def _tidy(panel: Axes) -> None:
    panel.grid(axis="both" if panel.get_ylabel() else "x", alpha=0.25)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def _wrap(text: str) -> str:
    return "\n".join(textwrap.wrap(text, _LONGEST_NAME, break_on_hyphens=False))
