"""The command that chooses the score below which a pixel is none of the class names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.options import DEFAULT_INFERENCE, FolderOptions, InferenceOptions
from cascade_clip.cli.terminal import console, make_table, progress_bar, say
from cascade_clip.errors import SettingError
from cascade_clip.inference import DEFAULT_LOADING, LoadOptions, given_embeddings

if TYPE_CHECKING:
    from cascade_clip.evaluation import ThresholdChoice


def threshold(
    checkpoint: str,
    *,
    data: FolderOptions,
    loading: LoadOptions = DEFAULT_LOADING,
    inference: InferenceOptions = DEFAULT_INFERENCE,
    calibration: float | None = None,
    ignored_is_background: bool = False,
    out: Path | None = None,
) -> int:
    """Choose the threshold of the background policy on a few labelled images.

    Prints mIoU, the background among the classes, for thresholds from 0 to 1, and the best one.
    Pixels that are none of the other classes are labelled `background` in the masks, or, with a
    flag, are those without a label.

    Args:
        checkpoint: checkpoint folder, run folder, packaged model, or clip:NAME/WEIGHTS.
        data: the labelled images; a few dozen are enough (--limit).
        loading: how to load and run the model.
        inference: other settings of inference than the checkpoint's, as in the later use;
            --threshold is what is chosen here.
        calibration: subtracted from the scores of seen names, as in the later use; by default what
            `evaluate` subtracts.
        ignored_is_background: pixels without a label are none of the classes.
        out: file for all thresholds as JSON; by default none is written.
    """
    from cascade_clip.data import build_dataset
    from cascade_clip.evaluation import choose_calibration, choose_threshold
    from cascade_clip.files import write_json

    if inference.threshold is not None:
        raise SettingError("--threshold is what this command chooses; leave it out")
    config = data.to_config()
    dataset = build_dataset(config, "val")
    predictor = inference.load(checkpoint, loading)
    with progress_bar("scoring") as step:
        found = choose_threshold(
            predictor,
            dataset,
            calibration=choose_calibration(predictor, dataset.vocabulary, calibration),
            text=given_embeddings(config, len(dataset.vocabulary), predictor),
            ignored_is_background=ignored_is_background,
            progress=step,
        )
    _show(found)
    if out is not None:
        values = {
            "threshold": found.threshold,
            "images": found.images,
            "calibration": found.calibration,
            "thresholds": found.thresholds.tolist(),
            "mious": found.mious.tolist(),
        }
        say(f"wrote {write_json(out, values)}")
    return ExitCode.DONE


def _show(found: ThresholdChoice) -> None:
    """Ten thresholds, the best one, and what they rest on."""
    table = make_table(f"{found.images} images", ("threshold", "mIoU %"), left=())
    for index in range(0, len(found.thresholds), len(found.thresholds) // 10):
        table.add_row(f"{found.thresholds[index]:.2f}", f"{100 * found.mious[index]:.2f}")
    console.print(table)
    figures = f"mIoU {100 * found.miou:.2f}, without a threshold {100 * found.miou_without:.2f}"
    say(f"--threshold {found.threshold:g} is best here: {figures}")
    say(f"- {found.calibration:g} subtracted from the scores of seen classes")
