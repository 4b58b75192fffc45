"""The report of a run as one HTML page: metrics, curves, previews, changed settings, provenance.

Everything is read from the run folder, so the page can be made again.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from cascade_clip.checkpoints import load_config
from cascade_clip.config import Config, DataConfig, config_to_dict, differing_settings
from cascade_clip.errors import MissingFileError
from cascade_clip.evaluation import embed_figure, embed_image, render, summary_cards
from cascade_clip.files import write_whole
from cascade_clip.results import format_duration
from cascade_clip.training.prediction_previews import list_previews
from cascade_clip.training.progress import read_metrics
from cascade_clip.training.provenance import RUN_FILE, read_object
from cascade_clip.training.run_folder import FIRST_HALF, SETTINGS_FILE

REPORT, EVALUATION = "report.html", "evaluation.html"


def write_run_report(out: Path) -> Path:
    """Write `report.html` into a run folder.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    return write_whole(out / REPORT, build_run_page(out))


def build_run_page(out: Path) -> str:
    """Build the HTML of a run folder's report; what the folder does not hold is left out."""
    if not (out / SETTINGS_FILE).is_file():
        raise MissingFileError(f"{out} holds no run: config.yaml is missing")
    config = load_config(out / SETTINGS_FILE)
    metrics, evaluation = read_metrics(out / "metrics.csv"), read_object(out / "report.json")
    if not {"summary", "classes", "assumptions", "images"} <= evaluation.keys():
        evaluation = {}
    steps = int(metrics[-1]["step"]) if metrics else 0
    train, previews = config.train, list_previews(out)
    shown = dict.fromkeys(previews[:1] + previews[-1:])
    return render(
        "training/templates/run_report.html",
        title=f"Training run {out.resolve().name}",
        lead=f"{train.protocol}, {steps:,} of {train.steps:,} steps, seed {train.seed}",
        cards=[*(summary_cards(evaluation["summary"]) if evaluation else ()), *_cards(metrics)],
        charts=_charts(metrics),
        first_half=_charts(read_metrics(out / FIRST_HALF / "metrics.csv")),
        previews=[(path.stem, embed_image(Image.open(path))) for path in shown],
        evaluation=evaluation,
        evaluation_page=EVALUATION if (out / EVALUATION).is_file() else "",
        settings=changed_settings(config),
        run=read_object(out / RUN_FILE),
    )


def changed_settings(config: Config) -> list[tuple[str, str]]:
    """Return dotted names and values of the settings that are not the defaults."""
    # evaluation data has the defaults of training data
    defaults = config_to_dict(Config(evaluation=config.evaluation and DataConfig()))
    found = differing_settings(defaults, config_to_dict(config))
    return [(name, json.dumps(value, ensure_ascii=False)) for name, (_, value) in found.items()]


def draw_curve(
    metrics: Sequence[Mapping[str, float]], names: Sequence[str], title: str, *, log: bool = False
) -> Figure:
    """Columns of metrics.csv over the steps."""
    figure = Figure(figsize=(4.6, 3.1))
    axis = figure.add_axes((0.14, 0.16, 0.83, 0.74))  # a layout engine takes seconds
    for name, color in zip(names, ("#2f6db3", "#d9822b", "#5b8c5a"), strict=False):
        points = [(row["step"], row[name]) for row in metrics if name in row]
        if points:
            steps, values = zip(*points, strict=True)
            marker = "o" if len(points) == 1 else None
            axis.plot(steps, values, label=name, color=color, linewidth=1.6, marker=marker)
    if log and all(row.get(name, 1.0) > 0 for row in metrics for name in names):
        axis.set_yscale("log")
    elif not log:
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(lambda value, place: f"{value:.4g}")
    axis.set_title(title, fontsize=11, loc="left")
    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if len(names) > 1:
        axis.legend(frameon=False, fontsize=9)
    return figure


def _charts(metrics: Sequence[Mapping[str, float]]) -> list[tuple[str, str]]:
    """Title and image of every chart; none without metrics."""
    if not metrics:
        return []
    figures = [
        draw_curve(metrics, ("loss", "focal", "dice"), "loss (focal + dice)", log=True),
        draw_curve(metrics, ("learning_rate",), "learning rate"),
        draw_curve(metrics, ("images_per_second",), "images per second"),
    ]
    return [(one.axes[0].get_title(loc="left"), embed_figure(one, "svg")) for one in figures]


def _cards(metrics: Sequence[Mapping[str, float]]) -> list[tuple[str, str, str]]:
    """Value, name and note of how the run went."""
    if not metrics:
        return []
    last = metrics[-1]
    speeds = sorted(row["images_per_second"] for row in metrics if "images_per_second" in row)
    cards = [
        (f"{last['loss']:.4g}", "loss", "of the last row"),
        (format_duration(last.get("seconds", 0.0)), "time", "of training"),
    ]
    if speeds:
        cards.append((f"{speeds[len(speeds) // 2]:.3g}", "images/s", "median"))
    if "memory_mb" in last:
        largest = max(row.get("memory_mb", 0.0) for row in metrics) / 1000
        cards.append((f"{largest:.2f} GB", "memory", "largest"))
    return cards
