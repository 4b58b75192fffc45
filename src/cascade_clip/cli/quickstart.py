"""The five-minute tour: both shipped models on fresh scenes, two minutes of training, and a page of
pictures."""

from __future__ import annotations

import base64
import csv
import html
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
from lightning.pytorch.callbacks import Timer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cascade_clip.checkpoints import find_checkpoint, read_config
from cascade_clip.config import DataConfig
from cascade_clip.data import LabelledImages, build_dataset
from cascade_clip.errors import SettingError, StorageError
from cascade_clip.evaluation import Report, evaluate
from cascade_clip.inference import Predictor, load_predictor
from cascade_clip.training import TrainingProgress, fit, quiet_engine

TITLES = {"mini-last": "last layer", "mini": "cascade"}
LOSS_FILE = "loss.csv"
"""The loss of the full run, beside the packaged model's weights."""


@dataclass(frozen=True)
class Shown:
    """One scene with its labels and what each model says."""

    image: NDArray[np.uint8]  # (H, W, 3)
    truth: NDArray[np.int64]  # (H, W)
    predictions: dict[str, NDArray[np.int64]]  # model -> (H, W)


def quickstart(
    *,
    out: Path = Path("quickstart"),
    scenes: int = 200,
    minutes: float = 2.0,
    seed: int = 3,
    pictures: int = 6,
) -> int:
    """See the whole method work on the built-in world, without a download.

    Evaluates both shipped models on fresh scenes, trains the cascade from its start for a while,
    and writes OUT/quickstart.png and OUT/index.html.

    Args:
        out: folder for the page; an earlier one is replaced.
        scenes: number of fresh scenes.
        minutes: how long to train; 0 leaves it out.
        seed: which scenes; the shipped models have seen none of seeds 2 and up.
        pictures: number of scenes on the page.
    """
    if scenes < 1 or pictures < 1 or minutes < 0:
        raise SettingError(
            f"--scenes and --pictures must be at least 1 and --minutes 0 or more, got {scenes},"
            f" {pictures}, {minutes}"
        )
    console = Console()
    quiet_engine()
    dataset = build_dataset(DataConfig(name="sandbox", seed=seed, limit=max(scenes, pictures)))
    predictors = {name: load_predictor(name, device="cpu") for name in TITLES}
    reports: dict[str, Report] = {}
    for name, predictor in predictors.items():
        console.print(
            f"evaluating {name} ({TITLES[name]}) on {scenes} fresh scenes ...", highlight=False
        )
        reports[TITLES[name]] = evaluate(predictor, dataset)
    shown = [show_scene(dataset, index, predictors) for index in range(pictures)]
    curve: list[tuple[int, float]] = []
    if minutes:
        title = f"cascade, {minutes:g} min"
        console.print(
            f"training the cascade from its start for {minutes:g} minutes (the shipped one had"
            " longer) ...",
            highlight=False,
            soft_wrap=True,
        )
        trained, curve = train_for(minutes, out / "training", console)
        reports = {title: evaluate(trained, dataset), **reports}
    console.print(score_table(reports))
    out.mkdir(parents=True, exist_ok=True)
    figure = draw_page(shown, dataset, reports, curve)
    figure.savefig(out / "quickstart.png", dpi=110)
    (out / "index.html").write_text(build_html(figure, reports, dataset), encoding="utf-8")
    console.print(
        f"wrote {out / 'quickstart.png'} and {out / 'index.html'}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return 0


def show_scene(dataset: LabelledImages, index: int, predictors: dict[str, Predictor]) -> Shown:
    """One scene with every model's labels."""
    sample = dataset.sample(index)
    found = {}
    for name, predictor in predictors.items():
        bound = predictor.bind(dataset.vocabulary, calibration=predictor.settings.calibration)
        found[TITLES[name]] = predictor.label_map(sample.image, bound).labels.numpy()
    return Shown(sample.image.permute(1, 2, 0).numpy(), sample.labels.numpy(), found)


def train_for(
    minutes: float, folder: Path, console: Console
) -> tuple[Predictor, list[tuple[int, float]]]:
    """Train the shipped cascade's own settings from the start for a while: the model, and its
    (step, loss) curve."""
    if folder.exists():
        if not ((folder / "config.yaml").is_file() and (folder / "metrics.csv").is_file()):
            raise StorageError(
                f"{folder} exists and is not a run of an earlier tour; choose another --out"
            )
        shutil.rmtree(folder)
    timer = Timer(timedelta(minutes=minutes), interval="step")
    checkpoint = fit(
        read_config(find_checkpoint("mini")),
        folder,
        callbacks=[TrainingProgress(console, minutes=minutes), timer],
    )
    return Predictor(checkpoint, device="cpu"), read_curve(folder / "metrics.csv")


def read_curve(path: Path) -> list[tuple[int, float]]:
    """Steps and losses of a metrics file; empty when there is none."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def score_table(reports: dict[str, Report]) -> Table:
    """S, U, hIoU and pixel accuracy of every model, then the IoU of every class."""
    table = Table(
        title="IoU in percent on fresh scenes; * marks classes whose masks were never seen"
    )
    table.add_column("")
    for title in reports:
        table.add_column(title, justify="right")
    for label, pick in _ROWS:
        table.add_row(
            label,
            *[_percent(getattr(report.scores, pick)) for report in reports.values()],
            style="bold",
        )
    first = next(iter(reports.values())).scores
    for index, (name, seen) in enumerate(zip(first.names, first.seen, strict=True)):
        table.add_row(
            name if seen else f"{name} *",
            *[_percent(report.scores.iou[index]) for report in reports.values()],
        )
    return table


_ROWS = (
    ("S: mIoU of seen classes", "seen_miou"),
    ("U: mIoU of unseen classes", "unseen_miou"),
    ("hIoU", "hiou"),
    ("pixel accuracy", "pixel_accuracy"),
)
_BAR_COLORS = ("#b8b8b8", "#7fa8d0", "#1f5fa8")


def draw_page(
    shown: Sequence[Shown],
    dataset: LabelledImages,
    reports: dict[str, Report],
    curve: list[tuple[int, float]],
) -> Figure:
    """Scenes in rows (image, truth, last layer, cascade), the class colours, the scores and the
    loss curve."""
    matplotlib.rcParams["font.size"] = 9
    rows = len(shown)
    figure = Figure(figsize=(11.5, 1.62 * rows + 3.4), layout="constrained")
    pictures, below = cast(Any, figure.subfigures(2, 1, height_ratios=[1.62 * rows, 3.4]))
    columns = ["image", "truth", *TITLES.values()]
    axes = pictures.subplots(rows, 5, squeeze=False, width_ratios=[1, 1, 1, 1, 1.5])
    palette = np.array(dataset.vocabulary.colors, dtype=np.uint8)  # (C, 3)
    for row, scene in zip(axes, shown, strict=True):
        views = [
            scene.image,
            palette[scene.truth],
            *[palette[scene.predictions[title]] for title in TITLES.values()],
        ]
        for axis, view in zip(row, views, strict=False):
            axis.imshow(view, interpolation="nearest")
        for axis in row:
            axis.set_axis_off()
        _draw_legend(row[4], scene, dataset)
    for axis, title in zip(axes[0], columns, strict=False):
        axis.set_title(title)
    left, right = below.subplots(1, 2)
    _draw_scores(left, reports)
    _draw_curve(right, curve)
    return figure


def _draw_legend(axis: Axes, scene: Shown, dataset: LabelledImages) -> None:
    """Names of the classes that are there, unseen ones starred and bold."""
    vocabulary = dataset.vocabulary
    present = [
        index
        for index in np.argsort(-np.bincount(scene.truth.ravel(), minlength=len(vocabulary)))
        if (scene.truth == index).any()
    ]
    for line, index in enumerate(present[:8]):
        seen = vocabulary.seen_mask[index]
        y = 0.93 - 0.13 * line
        color = np.array(vocabulary.colors[index]) / 255
        box = Rectangle(
            (0.0, y - 0.04), 0.08, 0.08, facecolor=color, edgecolor="0.4", transform=axis.transAxes
        )
        axis.add_patch(box)
        name = vocabulary.names[index] + ("" if seen else " * unseen")
        axis.text(
            0.13,
            y,
            name,
            transform=axis.transAxes,
            va="center",
            weight="normal" if seen else "bold",
        )


def _draw_scores(axis: Axes, reports: dict[str, Report]) -> None:
    labels = ("S (seen)", "U (unseen)", "hIoU")
    picks = ("seen_miou", "unseen_miou", "hiou")
    width = 0.8 / len(reports)
    for number, (title, report) in enumerate(reports.items()):
        heights = [100 * (getattr(report.scores, pick) or 0.0) for pick in picks]
        color = _BAR_COLORS[-len(reports) :][number]
        bars = axis.bar(
            np.arange(3) + number * width, heights, width * 0.92, label=title, color=color
        )
        axis.bar_label(bars, fmt="%.0f", padding=1)
    axis.set_xticks(np.arange(3) + 0.4 - width / 2, labels)
    axis.set_ylabel("mIoU in percent")
    axis.set_title("fresh scenes")
    axis.margins(y=0.12)
    axis.legend(frameon=False, loc="upper right")
    axis.spines[["top", "right"]].set_visible(False)


def _draw_curve(axis: Axes, curve: list[tuple[int, float]]) -> None:
    full = read_curve(find_checkpoint("mini") / LOSS_FILE)
    for points, label, color in (
        (full, "full run of the shipped cascade", "#1f5fa8"),
        (curve, "your run", "#d1495b"),
    ):
        if points:
            steps, losses = zip(*points, strict=True)
            axis.plot(
                steps,
                losses,
                label=label,
                color=color,
                linewidth=2.4 if label == "your run" else 1.2,
            )
    axis.set_yscale("log")
    axis.set_xlabel("step")
    axis.set_title("training loss (focal + dice)")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def build_html(figure: Figure, reports: dict[str, Report], dataset: LabelledImages) -> str:
    """The page as one file: what is shown, the picture, and every class."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    picture = base64.b64encode(buffer.getvalue()).decode()
    heads = "".join(f"<th>{html.escape(title)}</th>" for title in reports)
    lines = [
        (label, [getattr(report.scores, pick) for report in reports.values()], "b")
        for label, pick in _ROWS
    ]
    scores = next(iter(reports.values())).scores
    for index, (name, seen) in enumerate(zip(scores.names, scores.seen, strict=True)):
        lines.append(
            (
                name if seen else f"{name} *",
                [report.scores.iou[index] for report in reports.values()],
                "span" if seen else "b",
            )
        )
    body = "".join(
        f"<tr><td><{tag}>{html.escape(label)}</{tag}></td>"
        f"{''.join(f'<td>{_percent(value)}</td>' for value in values)}</tr>"
        for label, values, tag in lines
    )
    return PAGE.format(
        unseen=html.escape(", ".join(dataset.vocabulary.unseen)),
        picture=picture,
        heads=heads,
        body=body,
        assumptions="".join(
            f"<li>{html.escape(line)}</li>" for line in list(reports.values())[-1].assumptions
        ),
    )


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,
initial-scale=1">
<title>Cascade-CLIP quickstart</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem
}}
img {{ max-width: 100% }}
table {{ border-collapse: collapse }}
td, th {{ padding: .15rem .8rem; text-align: right; border-bottom: 1px solid #ddd }}
td:first-child {{ text-align: left }}
</style>
<h1>Cascade-CLIP on the built-in world</h1>
<p>Every pixel gets a class name. No model was ever shown a mask of <b>{unseen}</b> (marked *): it
knows them from captions only.
<b>last layer</b> aligns text with the encoder's last block; <b>cascade</b> gives three stages of
blocks a decoder each and adds up their
masks.</p>
<img alt="scenes, truth, predictions, scores and loss curve" src="data:image/png;base64,{picture}">
<h2>IoU in percent</h2>
<table><tr><th></th>{heads}</tr>{body}</table>
<h2>What the figures rest on</h2>
<ul>{assumptions}</ul>
</html>
"""


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.1f}"
