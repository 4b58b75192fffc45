"""The commands that score models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.options import DEFAULT_INFERENCE, FolderOptions, InferenceOptions, given_flags
from cascade_clip.cli.terminal import check_folder, console, make_table, progress_bar, say
from cascade_clip.config import DataConfig
from cascade_clip.errors import SettingError
from cascade_clip.inference import DEFAULT_LOADING, LoadOptions, given_embeddings
from cascade_clip.results import format_percent

if TYPE_CHECKING:
    from cascade_clip.data import LabelledImages
    from cascade_clip.evaluation import Comparison, Ranks, Report, Row


def evaluate(
    checkpoint: str,
    *,
    data: FolderOptions,
    loading: LoadOptions = DEFAULT_LOADING,
    inference: InferenceOptions = DEFAULT_INFERENCE,
    calibration: float | None = None,
    out: Path | None = None,
    against: str = "",
    pictures: int = 6,
) -> int:
    """Score a model on labelled images.

    Prints S, U, hIoU and pixel accuracy with the assumptions they rest on, and every class. Under
    torchrun several processes share the images and count the same.

    Args:
        checkpoint: checkpoint folder, run folder, a packaged model (mini, mini-last), or CLIP
            alone, such as clip:ViT-B-16-quickgelu/openai.
        data: the dataset.
        loading: how to load and run the model.
        inference: other settings of inference than the checkpoint's.
        calibration: subtracted from scores of seen classes; by default 0.1 after inductive
            training, else 0.
        out: folder for report.json and report.html, or a .json file; by default nothing is written.
        against: what has changed since a report.json, a folder of one, or another checkpoint.
        pictures: how many of the worst and of the best images report.html shows.
    """
    from cascade_clip.data import build_dataset, describe_data
    from cascade_clip.evaluation import check_same_data, compare, hash_dataset, join_ranks

    _check_out(out)
    if pictures < 0:
        raise SettingError(f"--pictures must be 0 or more, got {pictures}")
    earlier = _find_report(against) if against else None
    config = data.to_config()
    dataset = build_dataset(config, "val")
    if earlier is not None:  # before hours are spent
        check_same_data(earlier, len(dataset), hash_dataset(dataset))
    with join_ranks() as ranks:
        if not ranks.rank:
            say(describe_data(dataset))
        task = _Task(config, dataset, loading, calibration, ranks, inference)
        report = task.score(checkpoint, 0 if out is None or out.suffix == ".json" else pictures)
        if against and earlier is None:
            earlier = task.score(against).to_json()
    if not ranks.rank:
        _conclude(report, out, None if earlier is None else compare(earlier, report.to_json()))
    return ExitCode.DONE


class _Task(NamedTuple):
    """Everything that an evaluation needs besides the model."""

    config: DataConfig
    dataset: LabelledImages
    loading: LoadOptions
    calibration: float | None
    ranks: Ranks
    inference: InferenceOptions = DEFAULT_INFERENCE

    def score(self, checkpoint: str, keep: int = 0) -> Report:
        """Load a checkpoint and evaluate it; the first process shows a progress bar."""
        from cascade_clip import evaluation
        from cascade_clip.inference import PREFIX

        predictor = self.inference.load(checkpoint, self.loading)
        sha256 = "" if checkpoint.startswith(PREFIX) else evaluation.hash_checkpoint(checkpoint)
        title = f"evaluating {Path(checkpoint).name}"
        text = given_embeddings(self.config, len(self.dataset.vocabulary), predictor)
        origin = evaluation.Origin(checkpoint, sha256, self.config)
        what = (predictor, self.dataset, self.calibration, text)
        with progress_bar(title, shown=not self.ranks.rank) as step:
            return evaluation.evaluate(*what, step, keep, origin, self.ranks)


def _check_out(out: Path | None) -> None:
    """Refuse an output path that cannot be one, before hours are spent."""
    if out is None:
        return
    if out.suffix == ".json" and out.is_dir():
        raise SettingError(f"--out {out} is a folder; give a file, or a folder not named .json")
    check_folder(out.parent if out.suffix == ".json" else out)


def _conclude(report: Report, out: Path | None, comparison: Comparison | None) -> None:
    """Print and write what came out."""
    print_report(report)
    if comparison is not None:
        heads = ("", *comparison.titles, "difference")
        _print_rows("side by side", heads, comparison.figures)
        if comparison.classes:
            _print_rows("classes whose IoU differs most (* unseen)", heads, comparison.classes)
    if out is not None:
        from cascade_clip.evaluation import write_report

        single = out.suffix == ".json"
        written = [report.save(out)] if single else write_report(report, out, comparison)
        say(f"wrote {' and '.join(map(str, written))}")


def verify(
    checkpoint: str,
    *,
    loading: LoadOptions = DEFAULT_LOADING,
    images: str = "",
    masks: str = "",
    classes: str = "",
    root: str = "",
    tolerance: float = 1e-3,
) -> int:
    """Evaluate a checkpoint again on what its record says, and compare with the stored figures.

    It takes all the images that the figures rest on, so there is no --limit; `cascade-clip evaluate
    --limit` gives an estimate. The exit code is 0 when every figure agrees, 1 when one differs, 2
    when no figures are stored.

    Args:
        checkpoint: checkpoint folder, run folder, or a packaged model: mini, mini-last.
        loading: how to load and run the model.
        images: folder of images, where they now lie elsewhere.
        masks: folder of masks, where they now lie elsewhere.
        classes: class list, where it now lies elsewhere.
        root: folder of the named data set, where it now lies elsewhere.
        tolerance: largest difference that still agrees, as a share (0.001 is 0.1 points of mIoU).
    """
    from cascade_clip.data import build_dataset
    from cascade_clip.evaluation import compare_figures, join_ranks, read_evaluation, summarise

    if tolerance < 0:
        raise SettingError(f"--tolerance must be 0 or more, got {tolerance}")
    stored = read_evaluation(checkpoint)
    moved = {"images": images, "masks": masks, "classes": classes, "root": root}
    config = dataclasses.replace(stored.data, **given_flags(moved))
    dataset = build_dataset(config, "val")
    with join_ranks() as ranks:
        report = _Task(config, dataset, loading, stored.calibration, ranks).score(checkpoint)
    if ranks.rank:
        return ExitCode.DONE
    for assumption in report.assumptions:
        say(f"- {assumption}")
    if stored.data_sha256 and stored.data_sha256 != report.data_sha256:
        hashes = f"its hash is {report.data_sha256[:12]}, recorded was {stored.data_sha256[:12]}"
        say(f"the data set is not the recorded one: {hashes}")
    rows = compare_figures(stored.summary, summarise(report.scores))
    _print_rows(f"{report.images} images", ("", "stored", "now", "difference"), rows)
    differing = [row.label for row in rows if not row.agrees(tolerance)]
    if differing:
        say(f"differs by more than {tolerance:g}: {', '.join(differing)}")
        return ExitCode.FINDINGS
    say(f"every figure agrees within {tolerance:g}")
    return ExitCode.DONE


def print_report(report: Report) -> None:
    """Print the table of a report, its metrics and what they rest on."""
    found = report.scores
    table = make_table(f"{report.images} images", ("class", "IoU %", "accuracy %"))
    rows = zip(found.names, found.seen, found.iou, found.accuracy, strict=True)
    for name, seen, iou, accuracy in rows:
        mark = "" if seen else " (unseen)"
        table.add_row(name + mark, format_percent(iou), format_percent(accuracy))
    console.print(table)
    values = (found.seen_miou, found.unseen_miou, found.hiou, found.miou, found.pixel_accuracy)
    names = ("S", "U", "hIoU", "mIoU", "pixel accuracy")
    pairs = zip(names, values, strict=True)
    say("  ".join(f"{name} {format_percent(value)}" for name, value in pairs))
    for assumption in report.assumptions:
        say(f"- {assumption}")
    for label, value in report.hashes.items():
        say(f"- SHA-256 of {label}: {value}")


def _print_rows(title: str, heads: tuple[str, ...], rows: tuple[Row, ...]) -> None:
    table = make_table(title, heads)
    for row in rows:
        change = format_percent(row.difference, signed=True)
        table.add_row(row.label, format_percent(row.first), format_percent(row.second), change)
    console.print(table)


def _find_report(source: str) -> dict[str, Any] | None:
    """The report that `--against` names; None where it names a checkpoint."""
    from cascade_clip.checkpoints import find_checkpoint
    from cascade_clip.evaluation import read_report
    from cascade_clip.inference import PREFIX

    path = Path(source).expanduser()
    if path.suffix == ".json":
        return read_report(path)
    if (path / "report.json").is_file() and not (path / "model").is_dir():
        return read_report(path / "report.json")
    if not source.startswith(PREFIX):
        find_checkpoint(source)  # missing ones are refused before anything runs
    return None
