"""A report as one HTML page: metrics, what they rest on, classes, confusions, example images.

Letters: C classes, H x W pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from cascade_clip.evaluation.evaluator import Report, summarise
from cascade_clip.evaluation.examples import LONGEST_SIDE, ImageRecord
from cascade_clip.evaluation.pages import embed_figure, embed_image, render, summary_cards
from cascade_clip.evaluation.report_diff import Comparison
from cascade_clip.files import write_whole
from cascade_clip.results import Segmentation

MOST_CLASSES = 150
"""Classes in the confusion chart at most; those with the most pixels."""
SMALL_MATRIX = 45
"""Classes up to which the confusion chart fits the page; wider ones scroll."""
NO_CLASS = "(no class)"


class Confusion(NamedTuple):
    """Pixels of one class that were called another."""

    true: str
    predicted: str
    share: float
    """Of all labelled pixels of the true class, 0..1."""
    pixels: int


def write_report(report: Report, folder: Path, comparison: Comparison | None = None) -> list[Path]:
    """Write `report.json` and `report.html` into a folder."""
    page = write_whole(folder / "report.html", build_page(report, comparison))
    return [report.save(folder / "report.json"), page]


def largest_confusions(
    counts: NDArray[np.int64], names: Sequence[str], count: int = 10
) -> list[Confusion]:
    """Return the `count` largest shares of a class's pixels that were predicted as another or none.

    `counts` are those of a `Report`, (C, C + 1).
    """
    labelled = counts.sum(axis=1, keepdims=True)  # (C, 1)
    shares = counts / np.maximum(labelled, 1)  # (C, C + 1)
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:count]
    columns, places = [*names, NO_CLASS], [divmod(int(place), len(names) + 1) for place in order]
    return [
        Confusion(names[row], columns[column], float(shares[row, column]), int(counts[row, column]))
        for row, column in places
        if shares[row, column] > 0
    ]


def draw_confusion(report: Report) -> Figure:
    """Draw the rows of the confusion matrix, divided by their sums, without absent classes."""
    scores, counts = report.scores, report.counts
    area = counts.sum(axis=1) + counts[:, :-1].sum(axis=0)  # (C,)
    kept = np.sort(np.argsort(-area, kind="stable")[:MOST_CLASSES])
    kept = kept[area[kept] > 0]
    columns = [*kept, counts.shape[1] - 1] if counts[:, -1].any() else list(kept)
    # (c, c or c + 1)
    shares = counts[np.ix_(kept, columns)] / np.maximum(counts[kept].sum(axis=1, keepdims=True), 1)
    names = [scores.names[index] + ("" if scores.seen[index] else " *") for index in kept]
    cell, font = (0.21, 8) if len(names) <= SMALL_MATRIX else (0.125, 6)  # inches, points
    side = 1.6 + cell * max(len(names), 10)
    figure = Figure(figsize=(side + 0.7, side), layout="constrained")
    axis = figure.subplots()
    drawn = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    below = names + [NO_CLASS] * (len(columns) - len(names))
    axis.set_xticks(range(len(columns)), below, rotation=90, fontsize=font)
    axis.set_yticks(range(len(names)), names, fontsize=font)
    axis.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="#e3e6ea", linewidth=0.5)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    bar = figure.colorbar(drawn, ax=axis, shrink=0.6, aspect=30, fraction=0.6 / side)
    bar.set_label("share of the true class's pixels", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


def build_page(report: Report, comparison: Comparison | None = None) -> str:
    """Build the HTML of a report."""
    scores, counted = report.scores, bool(report.counts.any())
    hashes = [f"SHA-256 of {label}: {value}" for label, value in report.hashes.items()]
    return render(
        "evaluation/templates/report.html",
        title=f"Evaluation of {report.origin.checkpoint or 'a model'}",
        lead=f"{report.images} images, {len(scores.names)} classes. Figures in percent.",
        cards=summary_cards(summarise(report.scores)),
        assumptions=[*report.assumptions, *hashes],
        comparison=comparison,
        classes=list(zip(scores.names, scores.seen, scores.iou, scores.accuracy, strict=True)),
        matrix=embed_figure(draw_confusion(report)) if counted else "",
        small=len(scores.names) <= SMALL_MATRIX,
        confusions=largest_confusions(report.counts, scores.names),
        no_class=NO_CLASS,
        present=len(scores.names) - len(scores.absent),
        most=MOST_CLASSES,
        worst=[_example(record, report) for record in report.worst],
        best=[_example(record, report) for record in report.best],
    )


def _example(record: ImageRecord, report: Report) -> dict[str, Any]:
    """Describe an image: its views, and name and colour of true and wrongly predicted classes."""
    factor = max(1, LONGEST_SIDE // max(record.truth.shape))
    image = Image.fromarray(record.image)
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)

    def overlay(labels: NDArray[np.int16]) -> Image.Image:
        enlarged = labels.repeat(factor, axis=0).repeat(factor, axis=1).astype(np.int64)  # (H, W)
        found = Segmentation(enlarged, report.scores.names, report.colors)
        return found.overlay(image, 0.7, legend=False)

    def swatch(index: int) -> tuple[str, str]:
        name = report.scores.names[index] + ("" if report.scores.seen[index] else " *")
        return "#{:02x}{:02x}{:02x}".format(*report.colors[index]), name

    true, predicted = _by_area(record.truth), _by_area(record.prediction)
    labels, prediction = overlay(record.truth), overlay(record.prediction)
    views = {"image": image, "labels": labels, "prediction": prediction}
    return {
        "name": record.name,
        "miou": record.miou,
        "pixel_accuracy": record.pixel_accuracy,
        "views": [(kind, embed_image(view)) for kind, view in views.items()],
        "true": [swatch(index) for index in true],
        "wrong": [swatch(index) for index in predicted if index not in true],
    }


def _by_area(labels: NDArray[np.int16]) -> list[int]:
    values, counts = np.unique(labels[labels >= 0], return_counts=True)
    return [int(values[place]) for place in np.argsort(-counts, kind="stable")]
