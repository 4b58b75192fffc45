"""The command that chooses the score below which a pixel is none of the class names."""

from __future__ import annotations

import json
from pathlib import Path

from rich.table import Table

from cascade_clip.evaluate_commands import FolderOptions
from cascade_clip.terminal import DEFAULT_RUN, RunOptions, console, progress_bar, say


def threshold(
    checkpoint: str,
    *,
    data: FolderOptions,
    run: RunOptions = DEFAULT_RUN,
    calibration: float = 0.0,
    ignored_is_background: bool = False,
    out: Path | None = None,
) -> int:
    """Choose the threshold of the background policy on a few labelled images.

    Prints mIoU, the background among the classes, for thresholds from 0 to 1, and the best one. Pixels that are none of the other
    classes are labelled `background` in the masks, or, with a flag, are those without a label.

    Args:
        checkpoint: checkpoint folder, run folder, packaged model, or clip:NAME/WEIGHTS.
        data: the labelled images; a few dozen are enough (--limit).
        run: how to load and run.
        calibration: subtracted from the scores of seen names, as in the later use.
        ignored_is_background: pixels without a label are none of the classes.
        out: file for all thresholds as JSON; by default none is written.
    """
    from cascade_clip.data import build_dataset
    from cascade_clip.predictor import load_predictor
    from cascade_clip.thresholds import choose_threshold

    dataset = build_dataset(data.to_config(), "val")
    predictor = load_predictor(checkpoint, run.device, run.precision, run.clip_weights or None, run.last_block)
    with progress_bar("scoring") as step:
        found = choose_threshold(predictor, dataset, calibration=calibration, ignored_is_background=ignored_is_background, progress=step)
    table = Table(title=f"{found.images} images")
    table.add_column("threshold", justify="right")
    table.add_column("mIoU %", justify="right")
    for index in range(0, len(found.thresholds), len(found.thresholds) // 10):
        table.add_row(f"{found.thresholds[index]:.2f}", f"{100 * found.mious[index]:.2f}")
    console.print(table)
    say(f"--threshold {found.threshold:g} is best here: mIoU {100 * found.miou:.2f}, without a threshold {100 * found.miou_without:.2f}")
    if out is not None:
        values = {"threshold": found.threshold, "images": found.images, "calibration": calibration}
        out.parent.mkdir(parents=True, exist_ok=True)
        curve = {"thresholds": found.thresholds.tolist(), "mious": found.mious.tolist()}
        out.write_text(json.dumps({**values, **curve}, indent=1) + "\n", encoding="utf-8")
        say(f"wrote {out}")
    return 0
