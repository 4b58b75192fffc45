"""The five-minute tour: shipped models on fresh scenes, a short training, and a page of images."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.terminal import console, make_table, say
from cascade_clip.config import DataConfig
from cascade_clip.errors import Interrupted, OccupiedError, SettingError
from cascade_clip.files import write_whole
from cascade_clip.results import SUMMARY_METRICS, format_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from cascade_clip.data import LabelledImages
    from cascade_clip.evaluation import Report
    from cascade_clip.inference import Predictor

TITLES = {"mini-last": "last layer", "mini": "cascade"}
LOSS_FILE = "loss.csv"
"""The loss of the full run, beside the packaged model's weights."""


@dataclass(frozen=True)
class ShownScene:
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
    from cascade_clip.data import build_dataset
    from cascade_clip.evaluation import evaluate
    from cascade_clip.inference import load_predictor
    from cascade_clip.training import quiet_engine

    if scenes < 1 or pictures < 1 or minutes < 0:
        limits = "--scenes and --pictures must be at least 1 and --minutes 0 or more"
        raise SettingError(f"{limits}, got {scenes}, {pictures}, {minutes}")
    if minutes:  # before the time of the evaluation is spent
        remove_earlier(out / "training")
    quiet_engine()
    dataset = build_dataset(DataConfig(name="sandbox", seed=seed, limit=max(scenes, pictures)))
    predictors = {name: load_predictor(name, device="cpu") for name in TITLES}
    reports: dict[str, Report] = {}
    for name, predictor in predictors.items():
        say(f"evaluating {name} ({TITLES[name]}) on {scenes} fresh scenes ...")
        reports[TITLES[name]] = evaluate(predictor, dataset)
    shown = [show_scene(dataset, index, predictors) for index in range(pictures)]
    curve: list[tuple[int, float]] = []
    if minutes:
        say(f"training the cascade for {minutes:g} minutes (the shipped one had longer) ...")
        trained, curve = train_for(minutes, out / "training")
        reports = {f"cascade, {minutes:g} min": evaluate(trained, dataset), **reports}
    console.print(score_table(reports))
    figure = draw_page(shown, dataset, reports, curve)
    write_whole(out / "quickstart.png", lambda part: figure.savefig(part, dpi=110))
    write_whole(out / "index.html", build_html(figure, reports, dataset))
    say(f"wrote {out / 'quickstart.png'} and {out / 'index.html'}")
    return ExitCode.DONE


def show_scene(dataset: LabelledImages, index: int, predictors: dict[str, Predictor]) -> ShownScene:
    """One scene with every model's labels."""
    sample = dataset.sample(index)
    found = {}
    for name, predictor in predictors.items():
        bound = predictor.bind(dataset.vocabulary, calibration=predictor.settings.calibration)
        found[TITLES[name]] = predictor.label_map(sample.image, bound).labels.numpy()
    return ShownScene(sample.image.permute(1, 2, 0).numpy(), sample.labels.numpy(), found)


def remove_earlier(folder: Path) -> None:
    """Delete the training of an earlier tour.

    Raises:
        OSError: the folder holds something else.
    """
    if not folder.exists():
        return
    if not ((folder / "config.yaml").is_file() and (folder / "metrics.csv").is_file()):
        raise OccupiedError(f"{folder} is not a run of an earlier tour; choose another --out")
    shutil.rmtree(folder)


def train_for(minutes: float, folder: Path) -> tuple[Predictor, list[tuple[int, float]]]:
    """Train with the shipped cascade's settings; returns the model and its (step, loss) curve."""
    from lightning.pytorch.callbacks import Timer

    from cascade_clip.checkpoints import find_checkpoint, read_config
    from cascade_clip.inference import Predictor
    from cascade_clip.training import TrainingProgress, fit

    timer = Timer(timedelta(minutes=minutes), interval="step")
    callbacks = [TrainingProgress(console, minutes=minutes), timer]
    try:
        checkpoint = fit(read_config(find_checkpoint("mini")), folder, callbacks=callbacks)
    except Interrupted as stopped:  # the tour cannot be resumed
        raise SystemExit(128 + stopped.number) from stopped
    return Predictor(checkpoint, device="cpu"), read_curve(folder / "metrics.csv")


def read_curve(path: Path) -> list[tuple[int, float]]:
    """Steps and losses of a metrics file; empty when there is none."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def score_rows(reports: dict[str, Report]) -> list[tuple[str, list[str], bool]]:
    """List S, U, hIoU and pixel accuracy, then the IoU of every class: label, the value of every
    model in percent, and whether it is a summary or an unseen class."""
    found = [report.scores for report in reports.values()]
    rows = [
        (metric.label, [format_percent(getattr(one, metric.key), 1) for one in found], True)
        for metric in SUMMARY_METRICS
        if metric.key != "miou"
    ]
    for index, (name, seen) in enumerate(zip(found[0].names, found[0].seen, strict=True)):
        values = [format_percent(one.iou[index], 1) for one in found]
        rows.append((name if seen else f"{name} *", values, not seen))
    return rows


def score_table(reports: dict[str, Report]) -> Table:
    """Show `score_rows` on the screen."""
    title = "IoU in percent on fresh scenes; * marks classes whose masks were never seen"
    table = make_table(title, ("", *reports))
    for label, values, bold in score_rows(reports):
        table.add_row(label, *values, style="bold" if bold else "")
    return table


_BAR_COLORS = ("#b8b8b8", "#7fa8d0", "#1f5fa8")


def draw_page(
    shown: Sequence[ShownScene],
    dataset: LabelledImages,
    reports: dict[str, Report],
    curve: list[tuple[int, float]],
) -> Figure:
    """Draw scenes in rows (image, truth, last layer, cascade, classes), scores and loss curve."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["font.size"] = 9
    height = 1.62 * len(shown)
    figure = Figure(figsize=(11.5, height + 3.4), layout="constrained")
    panels: Any = figure.subfigures(2, 1, height_ratios=[height, 3.4])
    axes = panels[0].subplots(len(shown), 5, squeeze=False, width_ratios=[1, 1, 1, 1, 1.5])
    palette = np.array(dataset.vocabulary.colors, dtype=np.uint8)  # (C, 3)
    for row, scene in zip(axes, shown, strict=True):
        labels = [scene.truth, *(scene.predictions[title] for title in TITLES.values())]
        for axis, view in zip(row, [scene.image, *(palette[one] for one in labels)], strict=False):
            axis.imshow(view, interpolation="nearest")
        for axis in row:
            axis.set_axis_off()
        _draw_legend(row[4], scene, dataset)
    for axis, title in zip(axes[0], ["image", "truth", *TITLES.values()], strict=False):
        axis.set_title(title)
    left, right = panels[1].subplots(1, 2)
    _draw_scores(left, reports)
    _draw_curve(right, curve)
    return figure


def _draw_legend(axis: Axes, scene: ShownScene, dataset: LabelledImages) -> None:
    """Names of the classes that are there, unseen ones starred and bold."""
    from matplotlib.patches import Rectangle

    vocabulary = dataset.vocabulary
    counts = np.bincount(scene.truth.ravel(), minlength=len(vocabulary))
    present = [index for index in np.argsort(-counts) if counts[index]]
    for line, index in enumerate(present[:8]):
        seen, y = vocabulary.seen_mask[index], 0.93 - 0.13 * line
        color = np.array(vocabulary.colors[index]) / 255
        place: Any = {"transform": axis.transAxes}
        box = Rectangle((0.0, y - 0.04), 0.08, 0.08, facecolor=color, edgecolor="0.4", **place)
        axis.add_patch(box)
        mark, weight = ("", "normal") if seen else (" * unseen", "bold")
        axis.text(0.13, y, vocabulary.names[index] + mark, va="center", weight=weight, **place)


def _draw_scores(axis: Axes, reports: dict[str, Report]) -> None:
    labels = ("S (seen)", "U (unseen)", "hIoU")
    picks = ("seen_miou", "unseen_miou", "hiou")
    width = 0.8 / len(reports)
    for number, (title, report) in enumerate(reports.items()):
        heights = [100 * (getattr(report.scores, pick) or 0.0) for pick in picks]
        color, places = _BAR_COLORS[-len(reports) :][number], np.arange(3) + number * width
        bars = axis.bar(places, heights, width * 0.92, label=title, color=color)
        axis.bar_label(bars, fmt="%.0f", padding=1)
    axis.set_xticks(np.arange(3) + 0.4 - width / 2, labels)
    axis.set(ylabel="mIoU in percent", title="fresh scenes")
    axis.margins(y=0.12)
    axis.legend(frameon=False, loc="upper right")
    axis.spines[["top", "right"]].set_visible(False)


def _draw_curve(axis: Axes, curve: list[tuple[int, float]]) -> None:
    from cascade_clip.checkpoints import find_checkpoint

    full = read_curve(find_checkpoint("mini") / LOSS_FILE)
    for points, label, color, width in (
        (full, "full run of the shipped cascade", "#1f5fa8", 1.2),
        (curve, "your run", "#d1495b", 2.4),
    ):
        if points:
            steps, losses = zip(*points, strict=True)
            axis.plot(steps, losses, label=label, color=color, linewidth=width)
    axis.set(yscale="log", xlabel="step", title="training loss (focal + dice)")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def build_html(figure: Figure, reports: dict[str, Report], dataset: LabelledImages) -> str:
    """Build the page as one file: what is shown, the images, and every class."""
    from cascade_clip.evaluation import embed_figure, render

    return render(
        "cli/templates/quickstart.html",
        title="Cascade-CLIP on the built-in world",
        unseen=", ".join(dataset.vocabulary.unseen),
        picture=embed_figure(figure, dpi=130),
        heads=list(reports),
        rows=score_rows(reports),
        assumptions=list(reports.values())[-1].assumptions,
    )
