"""The report of a run as one HTML file: its results, curves and previews, the settings that differ
from the defaults, and its provenance.

Everything is read from the run folder, so the page can be made again; it needs no script and no
connection.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from cascade_clip.checkpoints import load_config
from cascade_clip.config import Config, DataConfig, config_to_dict, differing_settings
from cascade_clip.errors import MissingFileError
from cascade_clip.evaluation import PAGE
from cascade_clip.files import write_whole
from cascade_clip.results import SUMMARY_METRICS
from cascade_clip.training.prediction_previews import list_previews
from cascade_clip.training.progress import read_metrics
from cascade_clip.training.provenance import read_run_file
from cascade_clip.training.run_folder import FIRST_HALF, SETTINGS_FILE

REPORT, EVALUATION = "report.html", "evaluation.html"
_STYLE = """<style>
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: .8rem }
.preview { min-width: 640px; width: 100% }
summary { cursor: pointer; margin: .6rem 0; font-weight: 600 }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; width: 70% }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f7f9; border-radius: 8px;
padding: .7rem .9rem; font-size: .9rem }
</style>"""


def write_run_report(out: Path) -> Path:
    """Write `report.html` into a run folder.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    return write_whole(out / REPORT, build_run_page(out))


def build_run_page(out: Path) -> str:
    """The HTML of a run folder's report; what the folder does not hold is left out."""
    if not (out / SETTINGS_FILE).is_file():
        raise MissingFileError(f"{out} holds no run: config.yaml is missing")
    config = load_config(out / SETTINGS_FILE)
    metrics, run, evaluation = (
        read_metrics(out / "metrics.csv"),
        read_run_file(out) or {},
        _read_json(out / "report.json"),
    )
    steps = int(metrics[-1]["step"]) if metrics else 0
    train = config.train
    sections = [
        ("Training", _charts(metrics)),
        ("First half", _first_half(out)),
        ("Predictions", _previews(out)),
        ("Evaluation", _evaluation(out, evaluation)),
        ("Settings that differ from the defaults", _rows(changed_settings(config))),
        ("Where it comes from", _provenance(run)),
    ]
    body = "\n".join(
        f"<section><h2>{html.escape(title)}</h2>\n{part}</section>"
        for title, part in sections
        if part
    )
    return PAGE.substitute(
        title=html.escape(f"Training run {out.resolve().name}"),
        lead=html.escape(
            f"{train.protocol}, {steps:,} of {train.steps:,} steps, seed {train.seed}"
        ),
        cards=_cards(metrics, evaluation),
        body=_STYLE + body,
    )


def changed_settings(config: Config) -> list[tuple[str, str]]:
    """Return dotted names and values of the settings that are not the defaults; those of the
    evaluation data are compared with the defaults of training data."""
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
            axis.plot(
                *zip(*points, strict=True),
                label=name,
                color=color,
                linewidth=1.6,
                marker="o" if len(points) == 1 else None,
            )
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


def _charts(metrics: Sequence[Mapping[str, float]]) -> str:
    if not metrics:
        return ""
    figures = [
        draw_curve(metrics, ("loss", "focal", "dice"), "loss (focal + dice)", log=True),
        draw_curve(metrics, ("learning_rate",), "learning rate"),
        draw_curve(metrics, ("images_per_second",), "images per second"),
    ]
    return f'<div class="charts">{"".join(_picture(figure) for figure in figures)}</div>'


def _picture(figure: Figure) -> str:
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    title = figure.axes[0].get_title(loc="left")
    return (
        f'<img alt="{html.escape(title)} over the steps"'
        f' src="data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
    )


def _cards(metrics: Sequence[Mapping[str, float]], evaluation: Mapping[str, Any] | None) -> str:
    """The figures of the evaluation if there is one, then how the run went."""
    cards = []
    if evaluation:
        cards += [
            (_percent(evaluation["summary"].get(metric.key)), *_halves(metric.label))
            for metric in SUMMARY_METRICS
        ]
    if metrics:
        last = metrics[-1]
        speeds = sorted(row["images_per_second"] for row in metrics if "images_per_second" in row)
        cards.append((f"{last['loss']:.4g}", "loss", "of the last row"))
        cards.append((_duration(last.get("seconds", 0.0)), "time", "of training"))
        if speeds:
            cards.append((f"{speeds[len(speeds) // 2]:.3g}", "images/s", "median"))
        if "memory_mb" in last:
            cards.append(
                (
                    f"{max(row.get('memory_mb', 0.0) for row in metrics) / 1000:.2f} GB",
                    "memory",
                    "largest",
                )
            )
    return "".join(
        f'<div class="card"><b>{html.escape(value)}</b><span>{html.escape(name)}</span>'
        f"<small>{html.escape(note)}</small></div>"
        for value, name, note in cards
    )


def _evaluation(out: Path, found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(entry['name'])}"
        f"{'' if entry['seen'] else ' <span class=mark>unseen</span>'}</td>"
        f"<td>{_percent(entry['iou'])}</td><td>{_percent(entry['accuracy'])}</td></tr>"
        for entry in found["classes"]
    )
    link = (
        f'<p><a href="{EVALUATION}">The whole evaluation</a>: confusions, worst and best'
        " images.</p>"
        if (out / EVALUATION).is_file()
        else ""
    )
    assumptions = "".join(f"<li>{html.escape(line)}</li>" for line in found["assumptions"])
    table = f"<table><tr><th>class</th><th>IoU %</th><th>accuracy %</th></tr>{rows}</table>"
    details = f"<details><summary>IoU and accuracy of every class</summary>{table}</details>"
    return f"<p>{found['images']:,} images.</p><ul>{assumptions}</ul>{link}{details}"


def _first_half(out: Path) -> str:
    """The curves of the inductive half of a transductive run."""
    metrics = read_metrics(out / FIRST_HALF / "metrics.csv")
    return f"<p>The inductive half, before self-training.</p>{_charts(metrics)}" if metrics else ""


def _previews(out: Path) -> str:
    """The first and the last preview."""
    paths = list_previews(out)
    return "".join(
        f'<figure class="scroll"><img class="preview" alt="predictions, {path.stem}"'
        f' src="data:image/jpeg;base64,{_jpeg(path)}"></figure>'
        for path in [*paths[:1], *paths[1:][-1:]]
    )


def _jpeg(path: Path) -> str:
    buffer = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def _provenance(run: Mapping[str, Any]) -> str:
    """Data, split, batch, and every start of the run."""
    if not run:
        return ""
    batch, data, split = run["batch"], run["data"], run["split"]
    rows = [
        ("training images", f"{data['images']:,}"),
        ("data SHA-256", data["sha256"] or "unknown"),
        ("seen classes", ", ".join(split["seen"])),
        ("unseen classes", ", ".join(split["unseen"]) or "none"),
        (
            "batch",
            (
                f"{batch['effective']} = {batch['devices']} devices x {batch['per_device']} at once"
                f" x {batch['accumulation']} passes"
            ),
        ),
    ]
    parts = [_rows(rows)]
    for number, start in enumerate(run["starts"]):
        git, hardware = start["git"], start["hardware"]
        code = (
            "no git repository"
            if git is None
            else git["commit"] + (" with changes" if git["dirty"] else "")
        )
        parts.append(
            f"<h3>{'Started' if number == 0 else 'Went on'}"
            f" {html.escape(start['time'])}</h3><pre>{html.escape(start['command'])}</pre>"
        )
        lines = [
            ("git", code),
            ("processor", f"{hardware['cpu']}, {hardware['cpu_cores']} cores"),
            ("graphics cards", ", ".join(hardware["gpus"]) or "none"),
            ("platform", hardware["platform"]),
            (
                "versions",
                ", ".join(f"{name} {version}" for name, version in start["versions"].items()),
            ),
        ]
        parts.append(_rows(lines))
    return "".join(parts)


def _rows(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(
        f'<tr><td>{html.escape(name)}</td><td class="text">{html.escape(value)}</td></tr>'
        for name, value in rows
    )
    return f"<table>{cells}</table>" if rows else ""


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return (
        found
        if isinstance(found, dict)
        and {"summary", "classes", "assumptions", "images"} <= found.keys()
        else None
    )


def _halves(label: str) -> tuple[str, str]:
    head, _, rest = label.partition(": ")
    return head, rest


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
