"""The command that says how sure a difference between two models is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.options import FolderOptions
from cascade_clip.cli.terminal import console, make_table, progress_bar, say
from cascade_clip.errors import SettingError
from cascade_clip.inference import DEFAULT_LOADING, LoadOptions, given_embeddings
from cascade_clip.results import format_percent

if TYPE_CHECKING:
    from cascade_clip.evaluation import Difference, Tallies
    from cascade_clip.vocabulary import Vocabulary


def compare(
    first: str,
    second: str,
    *,
    data: FolderOptions,
    loading: LoadOptions = DEFAULT_LOADING,
    calibration: float | None = None,
    resamples: int = 1000,
    bootstrap_seed: int = 0,
    out: Path | None = None,
) -> int:
    """Say whether one model is better than another on labelled images, and how sure that is.

    Both models segment every image once. Then as many images are drawn again and again, with
    replacement and the same ones for both, and S, U and hIoU are computed anew (paired bootstrap).
    Prints the difference, first minus second, the interval that holds 95 % of the resamples, and
    the share in which the first is ahead. It speaks of these two checkpoints, not of what other
    training seeds would bring. Under torchrun several processes share the images.

    Args:
        first: checkpoint folder, run folder, a packaged model (mini, mini-last), or CLIP alone,
            such as clip:mini.
        second: the other one.
        data: the dataset.
        loading: how to load and run the model.
        calibration: subtracted from scores of seen classes, for both; by default what each model's
            training calls for.
        resamples: how often images are drawn again.
        bootstrap_seed: seed of the draws.
        out: JSON file for the figures; by default nothing is written.
    """
    from cascade_clip.data import build_dataset
    from cascade_clip.evaluation import collect_tallies, join_ranks

    if resamples < 1:  # before hours are spent
        raise SettingError(f"--resamples must be at least 1, got {resamples}")
    config = data.to_config()
    dataset = build_dataset(config, "val")
    found = []
    with join_ranks() as ranks:
        for checkpoint in (first, second):
            predictor = loading.load(checkpoint)
            text = given_embeddings(config, len(dataset.vocabulary), predictor)
            with progress_bar(f"evaluating {Path(checkpoint).name}", shown=not ranks.rank) as step:
                found.append(collect_tallies(predictor, dataset, calibration, text, step, ranks))
            del predictor  # its memory is free while the next one is loaded
    if not ranks.rank:
        _conclude((first, second), found, resamples, bootstrap_seed, out)
    return ExitCode.DONE


def _conclude(
    names: tuple[str, str],
    found: list[tuple[Tallies, Vocabulary]],
    resamples: int,
    seed: int,
    out: Path | None,
) -> None:
    """Compare, print and write."""
    from cascade_clip.evaluation import compare_paired
    from cascade_clip.files import write_json

    (ours, vocabulary), (theirs, other) = found
    if vocabulary.unseen != other.unseen:
        both = " and ".join(names)
        raise SettingError(f"{both} count other classes as unseen; say which with --unseen")
    seen = np.array(vocabulary.seen_mask)
    differences = compare_paired([ours], [theirs], seen, resamples=resamples, seed=seed)
    images = len(ours.union)
    _show(differences, names, images, resamples)
    if out is not None:
        values = {
            "first": names[0],
            "second": names[1],
            "images": images,
            "resamples": resamples,
            "seed": seed,
            "figures": [row.to_json() for row in differences],
        }
        say(f"wrote {write_json(out, values)}")


def _show(
    differences: tuple[Difference, ...], names: tuple[str, str], images: int, resamples: int
) -> None:
    """The table, and in words what it says."""
    models = (f"A: {names[0]}", f"B: {names[1]}")
    heads = ("", *models, "A - B", "95 % interval", "A ahead in")
    table = make_table(f"{images} images, {resamples} resamples, percent", heads)
    for row in differences:
        interval = "-"
        if row.low is not None and row.high is not None:
            interval = f"{100 * row.low:+.2f} .. {100 * row.high:+.2f}"
        change = format_percent(row.difference, signed=True)
        values = (format_percent(row.first), format_percent(row.second), change, interval)
        table.add_row(row.name, *values, f"{100 * row.wins:.1f} %")
    console.print(table)
    if images < 2:
        say("one image cannot say how sure a difference is; give more")
        return
    for row in differences:
        ahead = "A" if row.low and row.low > 0 else "B"
        verdict = f"{ahead} is ahead: the interval does not hold 0"
        if row.low == row.high == row.difference == 0:
            verdict = "equal, whichever images are drawn"
        elif not row.certain:
            verdict = "undecided on these images: the interval holds 0"
        if row.difference is not None:
            say(f"{row.name}: {verdict}")
