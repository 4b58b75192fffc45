"""A report as one HTML file: figures, what they rest on, classes, confusions, the worst and the
best images.

Everything is inside the file; it needs no script and no connection. Letters: C classes, H x W
pixels.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from cascade_clip.evaluation.evaluator import Report, summarise
from cascade_clip.evaluation.examples import LONGEST_SIDE, ImageRecord
from cascade_clip.evaluation.metrics import Metrics
from cascade_clip.evaluation.report_diff import Comparison, Row
from cascade_clip.evaluation.report_page import PAGE
from cascade_clip.files import write_whole
from cascade_clip.results import SUMMARY_METRICS, Segmentation
from cascade_clip.vocabulary import Color

MOST_CLASSES = 150
"""Classes in the confusion picture at most; those with the most pixels."""
SMALL_MATRIX = 45
"""Classes up to which the confusion picture fits the page; wider ones scroll."""
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
    """The largest shares of one class's pixels that were called another class, or left without one.

    Args:
        counts: pixels of each true class (rows) by predicted class, (C, C + 1); the last column has
            no prediction.
        names: of the classes.
        count: at most so many.
    """
    labelled = counts.sum(axis=1, keepdims=True)  # (C, 1)
    shares = counts / np.maximum(labelled, 1)  # (C, C + 1)
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:count]
    columns = [*names, NO_CLASS]
    places = [divmod(int(place), shares.shape[1]) for place in order]
    return [
        Confusion(names[row], columns[column], float(shares[row, column]), int(counts[row, column]))
        for row, column in places
        if shares[row, column] > 0
    ]


def draw_confusion(report: Report) -> Figure:
    """Every row of the matrix divided by its sum: where the pixels of a true class went. Absent
    classes are left out."""
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
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axis.set_xticks(
        range(len(columns)),
        names + [NO_CLASS] * (len(columns) - len(names)),
        rotation=90,
        fontsize=font,
    )
    axis.set_yticks(range(len(names)), names, fontsize=font)
    axis.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="#e3e6ea", linewidth=0.5)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    bar = figure.colorbar(picture, ax=axis, shrink=0.6, aspect=30, fraction=0.6 / side)
    bar.set_label("share of the true class's pixels", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


def build_page(report: Report, comparison: Comparison | None = None) -> str:
    """The HTML of a report."""
    name = report.origin.checkpoint or "a model"
    sections = [
        _section("What the figures rest on", _assumptions(report)),
        _comparison(comparison) if comparison else "",
        _section("Classes", _class_table(report.scores)),
        _section("Confusions", _confusions(report)),
        _images("Worst images", report.worst, report),
        _images("Best images", report.best, report),
    ]
    return PAGE.substitute(
        title=html.escape(f"Evaluation of {name}"),
        lead=f"{report.images} images, {len(report.scores.names)} classes. Figures in percent.",
        cards="".join(
            _card(metric.label, summarise(report.scores)[metric.key]) for metric in SUMMARY_METRICS
        ),
        body="\n".join(part for part in sections if part),
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>\n{body}</section>"


def _card(label: str, value: float | None) -> str:
    head, _, rest = label.partition(": ")
    note = f"<small>{html.escape(rest)}</small>" if rest else ""
    return f'<div class="card"><b>{_percent(value)}</b><span>{html.escape(head)}</span>{note}</div>'


def _assumptions(report: Report) -> str:
    lines = [
        *report.assumptions,
        *(f"SHA-256 of {label}: {value}" for label, value in report.hashes.items()),
    ]
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"


def _comparison(found: Comparison) -> str:
    heads = "".join(f"<th>{html.escape(title)}</th>" for title in ("", *found.titles, "difference"))
    figures = "".join(_comparison_row(row) for row in found.figures)
    classes = "".join(_comparison_row(row) for row in found.classes)
    split = (
        '<tr class="split"><td colspan="4">Classes whose IoU differs most (*'
        f" unseen)</td></tr>{classes}"
        if classes
        else ""
    )
    table = f'<table class="numbers"><tr>{heads}</tr>{figures}{split}</table>'
    return _section(
        f"{found.titles[1]} beside {found.titles[0]}", f'<div class="scroll">{table}</div>'
    )


def _comparison_row(row: Row) -> str:
    change = row.difference
    tone = "" if not change else ' class="up"' if change > 0 else ' class="down"'
    shown = "-" if change is None else f"{100 * change:+.2f}"
    cells = f"<td>{_percent(row.first)}</td><td>{_percent(row.second)}</td><td{tone}>{shown}</td>"
    return f"<tr><td>{html.escape(row.label)}</td>{cells}</tr>"


def _class_table(found: Metrics) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}{'' if seen else _UNSEEN}</td>"
        f'<td class="bars">{_bar(iou, seen, "iou")}{_bar(accuracy, seen, "acc")}</td>'
        f"<td>{_percent(iou)}</td><td>{_percent(accuracy)}</td></tr>"
        for name, seen, iou, accuracy in zip(
            found.names, found.seen, found.iou, found.accuracy, strict=True
        )
    )
    key = (
        '<p class="key">Thick bar: IoU; thin bar: accuracy, the share of the class\'s pixels that'
        ' are right. "-": not computable.</p>'
    )
    heads = '<tr><th>class</th><th class="bars"></th><th>IoU</th><th>accuracy</th></tr>'
    return f'{key}<table class="numbers">{heads}{rows}</table>'


_UNSEEN = ' <span class="mark">unseen</span>'


def _bar(value: float, seen: bool, kind: str) -> str:
    width = 0.0 if value != value else 100 * value
    return f'<i class="{kind}{"" if seen else " unseen"}" style="width:{width:.1f}%"></i>'


def _confusions(report: Report) -> str:
    if not report.counts.any():
        return "<p>There are none, as no pixel has a label.</p>"
    found = largest_confusions(report.counts, report.scores.names)
    lines = "".join(
        f"<li>{100 * item.share:.1f} % of <b>{html.escape(item.true)}</b> "
        + (
            "got no class"
            if item.predicted == NO_CLASS
            else f"is called <b>{html.escape(item.predicted)}</b>"
        )
        + f" ({item.pixels:,} pixels)</li>"
        for item in found
    )
    buffer = io.BytesIO()
    draw_confusion(report).savefig(buffer, dpi=110, format="png")
    kind = "matrix" if len(report.scores.names) <= SMALL_MATRIX else "matrix wide"
    picture = (
        f'<img class="{kind}" alt="confusion matrix, rows divided by their sums"'
        f' src="data:image/png;base64,{_base64(buffer.getvalue())}">'
    )
    words = (
        f"<p>The largest, as shares of the true class's pixels:</p><ol>{lines}</ol>"
        if lines
        else "<p>There are none.</p>"
    )
    present = len(report.scores.names) - len(report.scores.absent)
    cut = (
        f" The {MOST_CLASSES} classes with the most pixels of {present}."
        if present > MOST_CLASSES
        else ""
    )
    return (
        f'{words}<div class="scroll">{picture}</div><p class="key">Rows are true classes, columns'
        f" predicted ones; * unseen.{cut}</p>"
    )


def _images(title: str, records: Sequence[ImageRecord], report: Report) -> str:
    if not records:
        return ""
    key = (
        '<p class="key">Image, labels, prediction. mIoU is the mean over the classes that are'
        " present in the labels.</p>"
    )
    return _section(title, key + "".join(_image(record, report) for record in records))


def _image(record: ImageRecord, report: Report) -> str:
    names, colors = report.scores.names, report.colors
    factor = max(1, LONGEST_SIDE // max(record.truth.shape))
    image = Image.fromarray(record.image)
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    views = [
        image,
        *(
            _overlay(labels, image, factor, names, colors)
            for labels in (record.truth, record.prediction)
        ),
    ]
    pictures = "".join(
        f'<img alt="{kind} of {html.escape(record.name)}"'
        f' src="data:image/jpeg;base64,{_jpeg(view)}">'
        for kind, view in zip(("image", "labels", "prediction"), views, strict=True)
    )
    figures = f"mIoU {_percent(record.miou)}, pixel accuracy {_percent(record.pixel_accuracy)}"
    caption = f"<b>{html.escape(record.name)}</b> {figures}{_legend(record, report)}"
    return f'<figure><div class="row">{pictures}</div><figcaption>{caption}</figcaption></figure>'


def _overlay(
    labels: NDArray[np.int16],
    image: Image.Image,
    factor: int,
    names: tuple[str, ...],
    colors: tuple[Color, ...],
) -> Image.Image:
    enlarged = labels.repeat(factor, axis=0).repeat(factor, axis=1).astype(np.int64)  # (H, W)
    return Segmentation(enlarged, names, colors).overlay(image, 0.7, legend=False)


def _legend(record: ImageRecord, report: Report) -> str:
    """The classes of labels and prediction with their colours: those of the labels first, then what
    is wrongly predicted."""
    true = _by_area(record.truth)
    wrong = [index for index in _by_area(record.prediction) if index not in true]
    parts = [_swatch(index, report) for index in true]
    if wrong:
        parts += [
            '<span class="only">predicted only:</span>',
            *(_swatch(index, report) for index in wrong),
        ]
    return f'<div class="legend">{"".join(parts)}</div>'


def _by_area(labels: NDArray[np.int16]) -> list[int]:
    values, counts = np.unique(labels[labels >= 0], return_counts=True)
    return [int(values[place]) for place in np.argsort(-counts, kind="stable")]


def _swatch(index: int, report: Report) -> str:
    color = "#{:02x}{:02x}{:02x}".format(*report.colors[index])
    name = html.escape(report.scores.names[index]) + ("" if report.scores.seen[index] else " *")
    return f'<span><i style="background:{color}"></i>{name}</span>'


def _jpeg(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return _base64(buffer.getvalue())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.2f}"
