"""The command that chooses what is subtracted from the scores of seen classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.options import (
    DEFAULT_INFERENCE,
    FolderOptions,
    InferenceOptions,
    read_numbers,
)
from cascade_clip.cli.terminal import check_folder, console, make_table, progress_bar, say
from cascade_clip.files import write_json, write_whole
from cascade_clip.inference import DEFAULT_LOADING, LoadOptions, given_embeddings
from cascade_clip.results import format_percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cascade_clip.evaluation import CalibrationSweep


def calibration(
    checkpoint: str,
    *,
    data: FolderOptions,
    loading: LoadOptions = DEFAULT_LOADING,
    inference: InferenceOptions = DEFAULT_INFERENCE,
    values: str = "",
    held_out: str = "",
    out: Path | None = None,
) -> int:
    """Choose what is subtracted from the scores of seen classes, and show S, U and hIoU over it.

    One pass over the images gives every value. To choose without labels of unseen classes, train a
    second model with a few of the seen classes hidden too (add them to --data.unseen), name these
    in --held-out, and use the value with the first model. Under torchrun several processes share
    the images.

    Args:
        checkpoint: checkpoint folder, run folder, or a packaged model (mini, mini-last).
        data: the dataset.
        loading: how to load and run the model.
        inference: other settings of inference than the checkpoint's.
        values: values to compare, separated by commas; by default 0, 0.025, ..., 0.5.
        held_out: class names, separated by commas, that were hidden from this model's training and
            here play the unseen classes; its other unseen classes neither compete nor count.
        out: folder for calibration.json and calibration.png; by default nothing is written.
    """
    from cascade_clip.data import build_dataset
    from cascade_clip.evaluation import VALUES, join_ranks, sweep_calibration

    if out is not None:
        check_folder(out)
    wanted = read_numbers(values, "--values", "0, 0.05, 0.1") if values else VALUES
    names = [name.strip() for name in held_out.split(",") if name.strip()]
    config = data.to_config()
    dataset = build_dataset(config, "val")
    predictor = inference.load(checkpoint, loading)
    text = given_embeddings(config, len(dataset.vocabulary), predictor)
    with join_ranks() as ranks, progress_bar("scoring", shown=not ranks.rank) as step:
        found = sweep_calibration(
            predictor, dataset, wanted, held_out=names, text=text, progress=step, ranks=ranks
        )
    if not ranks.rank:
        # first: what the pass has found is kept even where there is nothing to choose
        if out is not None:
            path = write_json(out / "calibration.json", found.to_json())
            drawn = write_whole(out / "calibration.png", draw_sweep(found).savefig)
            say(f"wrote {path} and {drawn}")
        show(found)
    return ExitCode.DONE


def show(found: CalibrationSweep) -> None:
    """The table, the chosen value, and what it rests on.

    Raises:
        ValueError: no value has a hIoU; the table is shown before.
    """
    heads = ("calibration", "S", "U", "hIoU", "pixel accuracy")
    table = make_table(f"{found.images} images, percent", heads, left=())
    for index, (value, row) in enumerate(zip(found.values, found.scores, strict=True)):
        mark = "* " if found.chosen is not None and index == found.best else ""
        shares = (row.seen_miou, row.unseen_miou, row.hiou, row.pixel_accuracy)
        table.add_row(f"{mark}{value:g}", *map(format_percent, shares))
    console.print(table)
    chosen, hiou = found.values[found.best], format_percent(found.scores[found.best].hiou)
    say(f"--calibration {chosen:g} gives the highest hIoU here: {hiou}")
    if found.held_out:
        say(f"- held out and in the place of unseen classes: {', '.join(found.held_out)}")
        use = "give the value to the model that was trained with the held-out classes"
        say(f"- no label of a class that stays unseen was used; {use}")
    else:
        use = "report figures on other images, or choose with --held-out"
        say(f"- labels of unseen classes were used: {use}")
    say(f"- without --calibration `evaluate` subtracts {found.usual:g} on this class list")


def draw_sweep(found: CalibrationSweep) -> Figure:
    """S, U and hIoU over the values, with the usual and the chosen one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), dpi=120)
    axis = figure.add_axes((0.11, 0.14, 0.86, 0.76))
    dark = "#3a3a3a"
    curves = (
        ("S", "seen_miou", "#2f6db3"),
        ("U", "unseen_miou", "#d9822b"),
        ("hIoU", "hiou", dark),
    )
    style: dict[str, Any] = {"linewidth": 1.8, "marker": "o", "markersize": 3}
    for label, name, color in curves:
        shares = [getattr(row, name) for row in found.scores]
        known = [(x, 100 * y) for x, y in zip(found.values, shares, strict=True) if y is not None]
        axis.plot([x for x, _ in known], [y for _, y in known], label=label, color=color, **style)
    if found.chosen is not None:
        axis.axvline(found.chosen, color=dark, linewidth=1, label=f"chosen: {found.chosen:g}")
    usual = f"usual: {found.usual:g}"
    axis.axvline(found.usual, color=dark, linewidth=1, linestyle=":", label=usual)
    unseen = "held-out" if found.held_out else "unseen"
    title = f"mean IoU of seen (S) and {unseen} (U) classes, {found.images} images"
    axis.set_title(title, fontsize=10, loc="left")
    axis.set(xlabel="subtracted from the scores of seen classes", ylabel="percent")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    return figure
