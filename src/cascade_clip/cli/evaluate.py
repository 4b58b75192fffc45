"""The commands that score models."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.terminal import console, progress_bar, say
from cascade_clip.config import DataConfig, DataName, InferenceConfig, Upsampler
from cascade_clip.errors import SettingError
from cascade_clip.inference import DEFAULT_RUN, RunOptions
from cascade_clip.results import format_percent

if TYPE_CHECKING:
    from cascade_clip.data import LabelledImages
    from cascade_clip.evaluation import Comparison, Ranks, Report, Row
from cascade_clip.inference import given_embeddings


@dataclass(frozen=True)
class FolderOptions:
    """A labelled data set."""

    data: DataName = "folder"
    """`folder`: the two folders below; `sandbox`: fresh scenes of the built-in world, which need no
    files; or a named data set."""
    root: str = ""
    """Folder that holds the named data set; by default the environment variable CASCADE_CLIP_DATA,
    else `data`."""
    split: Literal["", "train", "val"] = ""
    """Part of the named data set; by default val."""
    images: str = ""
    """Folder of images."""
    masks: str = ""
    """Folder of index masks with the same file stems."""
    classes: str = ""
    """Class list in label order: a file, or a packaged list by name (voc, coco-stuff, context,
    ade20k, cityscapes)."""
    unseen: str = ""
    """Unseen class names: a file, names separated by commas, a packaged split by name, or `none`:
    every class counts as seen."""
    text_embeddings: str = ""
    """File (.npy) of text embeddings, one row a class, to use instead of the text tower."""
    limit: int = 0
    """Use the first N images only; 0 means all (300 of the sandbox)."""
    ignore: int | None = None
    """Mask value of pixels without a label; by default the one of the class list, mostly 255."""
    seed: int = 2
    """Which scenes of the sandbox."""

    def to_config(self) -> DataConfig:
        """The settings of the data set."""
        chosen = {name: value for name, value in dataclasses.asdict(self).items() if name != "data"}
        config = DataConfig(name=self.data, **chosen)
        return (
            dataclasses.replace(config, limit=self.limit or 300)
            if self.data == "sandbox"
            else config
        )


@dataclass(frozen=True)
class InferenceOptions:
    """What replaces the inference settings of a checkpoint."""

    window: int | None = None
    """Side of the window in pixels; by default the checkpoint's."""
    stride: int | None = None
    """Step between windows in pixels; by default the checkpoint's."""
    flip: bool = False
    """Test-time augmentation: average the scores with those of the mirrored image."""
    scales: str = ""
    """Test-time augmentation: sizes whose scores are averaged, as parts of the window, such as
    "0.75, 1, 1.25"."""
    combine: Literal["sum", "confidence"] | None = None
    """How stages become one mask: `sum`, or weighted at every patch by `confidence`; by default the
    checkpoint's."""
    upsampler: Upsampler | None = None
    """How masks go from patches to pixels: `bilinear`, or `guided` by the colours of the image; by
    default the checkpoint's."""
    guide_radius: int | None = None
    """Of `guided`: windows of the fit reach so many patches to every side; by default the
    checkpoint's."""
    guide_epsilon: float | None = None
    """Of `guided`: variance of colours (0..1) up to which an area counts as plain; by default the
    checkpoint's."""
    background: str = ""
    """Background words ("sky, wall"), a file of them, or `scenery`: they compete and all mean
    `background`; `none`: no background words; by default the checkpoint's."""
    threshold: float | Literal["none"] | None = None
    """Pixels whose best score (0..1) lies below get no class name; `none`: every pixel gets one; by
    default the checkpoint's."""

    def apply(self, settings: InferenceConfig) -> InferenceConfig:
        """The checkpoint's settings with what is given here."""
        given = _given(dataclasses.asdict(self))
        if self.scales:
            given["scales"] = _read_scales(self.scales)
        if self.background.strip().casefold() == "none":
            given["background"] = ""
        if self.threshold == "none":
            given["threshold"] = None
        return dataclasses.replace(settings, **given)


DEFAULT_INFERENCE = InferenceOptions()


def evaluate(
    checkpoint: str,
    *,
    data: FolderOptions,
    run: RunOptions = DEFAULT_RUN,
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
        data: the data set.
        run: how to load and run.
        inference: other settings of inference than the checkpoint's.
        calibration: subtracted from scores of seen classes; by default 0.1 after inductive
            training, else 0.
        out: folder for report.json and report.html, or a file name that ends with .json; by default
            nothing is written.
        against: a report.json, the folder of one, or a checkpoint to evaluate on the same images:
            what has changed since.
        pictures: how many of the worst and of the best images report.html shows.
    """
    from cascade_clip.data import build_dataset, describe_data
    from cascade_clip.evaluation import check_same_data, compare, hash_dataset, join_ranks

    check_out(out)
    keep = pictures if out is not None and out.suffix != ".json" else 0
    earlier = _find_report(against) if against else None
    config = data.to_config()
    dataset = build_dataset(config, "val")
    if earlier is not None:  # before hours are spent
        check_same_data(earlier, len(dataset), hash_dataset(dataset))
    with join_ranks() as ranks:
        if not ranks.rank:
            say(describe_data(dataset))
        report = _score(checkpoint, config, dataset, run, inference, calibration, ranks, keep)
        if against and earlier is None:
            earlier = _score(against, config, dataset, run, inference, calibration, ranks).to_json()
    if not ranks.rank:
        _conclude(report, out, None if earlier is None else compare(earlier, report.to_json()))
    return ExitCode.DONE


def check_out(out: Path | None) -> None:
    """Refuse a place for results that cannot be one, before hours are spent.

    Raises:
        ValueError: a file where a folder must be, or a folder where a file must be.
    """
    if out is None:
        return
    is_json = out.suffix == ".json"
    if is_json and out.is_dir():
        raise SettingError(
            f"--out {out} is a folder; give a file name, or a folder whose name does not end with"
            " .json"
        )
    folder = out.parent if is_json else out
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise SettingError(
            f"--out: {there} is a file and no folder; give a folder, or a file name that ends with"
            " .json"
        )


def _conclude(report: Report, out: Path | None, comparison: Comparison | None) -> None:
    """Print and write what came out."""
    print_report(report)
    if comparison is not None:
        print_comparison(comparison)
    if out is not None:
        from cascade_clip.evaluation import write_report

        written = (
            [report.save(out)] if out.suffix == ".json" else write_report(report, out, comparison)
        )
        say(f"wrote {' and '.join(str(path) for path in written)}")


def verify(
    checkpoint: str,
    *,
    run: RunOptions = DEFAULT_RUN,
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
        run: how to load and run.
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
    config = dataclasses.replace(stored.data, **_given(moved))
    dataset = build_dataset(config, "val")
    with join_ranks() as ranks:
        report = _score(
            checkpoint, config, dataset, run, DEFAULT_INFERENCE, stored.calibration, ranks
        )
    if ranks.rank:
        return ExitCode.DONE
    for assumption in report.assumptions:
        say(f"- {assumption}")
    if stored.data_sha256 and stored.data_sha256 != report.data_sha256:
        say(
            f"the data set is not the recorded one: its hash is {report.data_sha256[:12]}, recorded"
            f" was {stored.data_sha256[:12]}"
        )
    rows = compare_figures(stored.summary, summarise(report.scores))
    console.print(_row_table(f"{report.images} images", ("", "stored", "now", "difference"), rows))
    differing = [row.label for row in rows if not row.agrees(tolerance)]
    say(
        f"differs by more than {tolerance:g}: {', '.join(differing)}"
        if differing
        else f"every figure agrees within {tolerance:g}"
    )
    return ExitCode.FINDINGS if differing else ExitCode.DONE


def _score(
    checkpoint: str,
    config: DataConfig,
    dataset: LabelledImages,
    run: RunOptions,
    inference: InferenceOptions,
    calibration: float | None,
    ranks: Ranks,
    keep: int = 0,
) -> Report:
    """Load a checkpoint and evaluate it; the first process shows a progress bar."""
    from cascade_clip.evaluation import Origin, hash_checkpoint
    from cascade_clip.evaluation import evaluate as run_evaluation
    from cascade_clip.inference import PREFIX, load_predictor

    predictor = load_predictor(
        checkpoint, run.device, run.precision, run.clip_weights or None, run.last_block
    )
    predictor.settings = inference.apply(predictor.settings)
    text = given_embeddings(config, len(dataset.vocabulary), predictor)
    origin = Origin(
        checkpoint, "" if checkpoint.startswith(PREFIX) else hash_checkpoint(checkpoint), config
    )
    if ranks.rank:
        return run_evaluation(predictor, dataset, calibration, text, None, keep, origin, ranks)
    with progress_bar(f"evaluating {Path(checkpoint).name}") as step:
        return run_evaluation(predictor, dataset, calibration, text, step, keep, origin, ranks)


def print_report(report: Report) -> None:
    """The table of a report, its figures and what they rest on."""
    found = report.scores
    table = Table(title=f"{report.images} images")
    for heading in ("class", "IoU %", "accuracy %"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name, seen, iou, accuracy in zip(
        found.names, found.seen, found.iou, found.accuracy, strict=True
    ):
        mark = "" if seen else " (unseen)"
        table.add_row(name + mark, format_percent(float(iou)), format_percent(float(accuracy)))
    console.print(table)
    line = (
        f"S {format_percent(found.seen_miou)}  U {format_percent(found.unseen_miou)}  hIoU"
        f" {format_percent(found.hiou)}"
    )
    say(
        f"{line}  mIoU {format_percent(found.miou)}"
        f"  pixel accuracy {format_percent(found.pixel_accuracy)}"
    )
    for assumption in report.assumptions:
        say(f"- {assumption}")
    for label, value in report.hashes.items():
        say(f"- SHA-256 of {label}: {value}")


def print_comparison(found: Comparison) -> None:
    """Two reports side by side."""
    heads = ("", *found.titles, "difference")
    console.print(_row_table("side by side", heads, found.figures))
    if found.classes:
        console.print(_row_table("classes whose IoU differs most (* unseen)", heads, found.classes))


def _row_table(title: str, heads: tuple[str, ...], rows: tuple[Row, ...]) -> Table:
    table = Table(title=title)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left")
    for row in rows:
        change = format_percent(row.difference, signed=True)
        table.add_row(row.label, format_percent(row.first), format_percent(row.second), change)
    return table


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


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Those flags that were given."""
    return {
        name: value
        for name, value in values.items()
        if value is not None and value is not False and value != ""
    }


def _read_scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SettingError(
            f'--scales must be numbers separated by commas, such as "0.75, 1, 1.25", got {text!r}'
        ) from None
