"""The commands that score models."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Table

from cascade_clip.config import DataConfig
from cascade_clip.terminal import DEFAULT_RUN, RunOptions, console, progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from cascade_clip.evaluate import Report
    from cascade_clip.predictor import Predictor


@dataclass(frozen=True)
class FolderOptions:
    """A labelled data set in two folders."""

    data: Literal["folder", "sandbox"] = "folder"
    """`folder`: the two folders below; `sandbox`: fresh scenes of the built-in world, which need no files."""
    images: str = ""
    """Folder of images."""
    masks: str = ""
    """Folder of index masks with the same file stems."""
    classes: str = ""
    """Class list in label order: a file, or a packaged list by name (voc, coco-stuff, context, ade20k, cityscapes)."""
    unseen: str = ""
    """Unseen class names: a file, names separated by commas, or a packaged split by name."""
    text_embeddings: str = ""
    """File (.npy) of text embeddings, one row a class, to use instead of the text tower."""
    limit: int = 0
    """Use the first N images only; 0 means all (300 of the sandbox)."""
    ignore: int | None = None
    """Mask value of pixels without a label; by default the one of the class list, mostly 255."""
    seed: int = 2
    """Which scenes of the sandbox."""


def evaluate(
    checkpoint: str, *, data: FolderOptions, run: RunOptions = DEFAULT_RUN, calibration: float | None = None, out: Path | None = None
) -> int:
    """Score a model on a folder of images and a folder of index masks.

    Prints S, U, hIoU and pixel accuracy with the assumptions they rest on, and every class.

    Args:
        checkpoint: checkpoint folder, run folder, or a packaged model: mini, mini-last.
        data: the data set.
        run: how to load and run.
        calibration: subtracted from scores of seen classes; by default 0.1 after inductive training, else 0.
        out: where to write report.json; by default nowhere.
    """
    from cascade_clip.data import build_dataset
    from cascade_clip.evaluate import evaluate as run_evaluation
    from cascade_clip.predictor import load_predictor

    chosen = {name: value for name, value in dataclasses.asdict(data).items() if name != "data"}
    config = DataConfig(name=data.data, **chosen)
    if data.data == "sandbox":
        config = dataclasses.replace(config, limit=data.limit or 300)
    dataset = build_dataset(config, "val")
    predictor = load_predictor(checkpoint, run.device, run.precision, run.clip_weights or None)
    text = given_embeddings(config, len(dataset.vocabulary), predictor)
    with progress_bar("evaluating") as step:
        report = run_evaluation(predictor, dataset, calibration, text, step)
    print_report(report)
    if out is not None:
        console.print(f"wrote {report.save(out)}", markup=False, highlight=False)
    return 0


def given_embeddings(config: DataConfig, classes: int, predictor: Predictor) -> Tensor | None:
    """Text embeddings from the file that the settings name, if any."""
    from cascade_clip.text import load_embeddings

    if not config.text_embeddings:
        return None
    return load_embeddings(Path(config.text_embeddings), classes, predictor.model.joint_width)


def print_report(report: Report) -> None:
    """The table of a report, its figures and what they rest on."""
    found = report.scores
    table = Table(title=f"{report.images} images")
    for heading in ("class", "IoU %", "accuracy %"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name, seen, iou, accuracy in zip(found.names, found.seen, found.iou, found.accuracy, strict=True):
        mark = "" if seen else " (unseen)"
        table.add_row(name + mark, _percent(float(iou)), _percent(float(accuracy)))
    console.print(table)
    line = f"S {_percent(found.seen_miou)}  U {_percent(found.unseen_miou)}  hIoU {_percent(found.hiou)}"
    console.print(f"{line}  mIoU {_percent(found.miou)}  pixel accuracy {_percent(found.pixel_accuracy)}", highlight=False)
    for assumption in report.assumptions:
        console.print(f"- {assumption}", markup=False, highlight=False)


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.2f}"
