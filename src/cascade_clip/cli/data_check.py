"""The command `data check`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Table
from rich.text import Text

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.terminal import check_folder, console, progress_bar, say
from cascade_clip.errors import SettingError

if TYPE_CHECKING:
    from cascade_clip.data import FoundFiles
    from cascade_clip.data.check import CheckReport, Count
    from cascade_clip.vocabulary import Vocabulary

BAR = 24
"""Characters of the longest bar."""


@dataclass(frozen=True)
class CheckOptions:
    """What to check."""

    data: Literal[
        "folder", "voc", "coco-stuff", "context", "context-released", "ade20k", "cityscapes"
    ] = "folder"
    """`folder`: the two folders below; else a named data set below --root."""
    root: str = ""
    """Folder that holds the named data set; by default the environment variable CASCADE_CLIP_DATA,
    else `data`."""
    split: Literal["train", "val"] = "val"
    """Part of the named data set."""
    images: str = ""
    """Folder of images."""
    masks: str = ""
    """Folder of index or colour masks with the same file stems."""
    classes: str = ""
    """Class list: a file (names in label order, `VALUE NAME`, `R G B NAME` or `#rrggbb NAME` lines,
    or JSON) or a packaged list by name."""
    unseen: str = ""
    """Unseen class names: a file, names separated by commas, a packaged split by name, or
    `none`."""
    ignore: int | None = None
    """Mask value of pixels without a label; by default the one of the class list, mostly 255."""
    limit: int = 0
    """Read N pairs only, taken at even distances; 0 means all."""
    workers: int = 2
    """Processes that read; 0 reads in this one."""

    def __post_init__(self) -> None:
        if self.limit < 0 or self.workers < 0:
            raise SettingError(
                f"--limit and --workers must be 0 or more, got {self.limit} and {self.workers}"
            )


def check(*, data: CheckOptions, out: Path | None = None) -> int:
    """Say whether images, masks and class list fit together, and what is wrong if not.

    Reads every file and prints how often each class occurs. The exit code is 1 if something is
    wrong, 0 if not, notes allowed.

    Args:
        data: the data set.
        out: folder for a preview sheet (check.png) and the report as JSON (check.json); by default
            nothing is written.
    """
    from cascade_clip.data.check import check_data

    if out is not None:
        check_folder(out)
    files, vocabulary = _find(data)
    with progress_bar("reading") as step:
        report = check_data(files, vocabulary, data.limit, data.workers, step)
    print_report(report)
    if out is not None:
        say("wrote " + ", ".join(str(path) for path in report.save(out)))
    return ExitCode.FINDINGS if report.wrong else ExitCode.DONE


def _find(options: CheckOptions) -> tuple[FoundFiles, Vocabulary]:
    """The files and the class list that the options name."""
    from cascade_clip.data import FoundFiles, data_root, find_files, layout_vocabulary, list_layout
    from cascade_clip.vocabulary import load_vocabulary, split_classes

    if options.data == "folder":
        missing = [
            f"--{name}" for name in ("images", "masks", "classes") if not getattr(options, name)
        ]
        if missing:
            raise SettingError(
                f"{', '.join(missing)} missing: give the image folder, the mask folder and the"
                " class list, or --data NAME"
            )
        files = find_files(options.images, options.masks)
        vocabulary = load_vocabulary(options.classes, options.unseen)
    else:
        given = [f"--{name}" for name in ("images", "masks", "classes") if getattr(options, name)]
        if given:
            raise SettingError(
                f"--data {options.data} finds its files and classes below --root; leave out"
                f" {', '.join(given)}"
            )
        pairs = list_layout(options.data, data_root(options.root), options.split)
        files = FoundFiles(pairs, len(pairs), len(pairs), [], [], [])
        vocabulary = split_classes(layout_vocabulary(options.data, pairs), options.unseen)
    return files, (
        vocabulary
        if options.ignore is None
        else dataclasses.replace(vocabulary, ignore=options.ignore)
    )


def print_report(report: CheckReport) -> None:
    """Counts, the histogram of the classes that occur, and the findings."""
    files = report.files
    read = (
        "all read" if len(report.facts) == len(files.pairs) else f"{len(report.facts)} of them read"
    )
    say(
        f"{files.images} images, {files.masks} masks, {len(files.pairs)} pairs, {read};"
        f" {_sizes(report)}"
    )
    if report.tally.masks:
        console.print(_histogram(report))
    if report.order.verdict in ("good", "unknown"):
        say(report.order.text)
    for finding in report.findings:
        style = "bold red" if finding.level == "wrong" else "bold yellow"
        console.print(Text.assemble((f"{finding.level}: ", style), finding.text), soft_wrap=True)
    wrong, notes = len(report.wrong), len(report.notes)
    verdict = (
        f"{wrong} thing{' is' if wrong == 1 else 's are'} wrong" if wrong else "nothing is wrong"
    )
    say(f"{verdict}, {notes} note{'' if notes == 1 else 's'}")


def _sizes(report: CheckReport) -> str:
    sizes = sorted(
        {item.image_size for item in report.facts if item.image_size},
        key=lambda size: size[0] * size[1],
    )
    if not sizes:
        return "no image can be read"
    first, last = (f"{width} x {height}" for width, height in (sizes[0], sizes[-1]))
    return f"images of {first}" if len(sizes) == 1 else f"images from {first} to {last} pixels"


def _histogram(report: CheckReport) -> Table:
    """Classes that occur in label order, ignored pixels, and values that name no class."""
    tally, vocabulary = report.tally, report.vocabulary
    table = Table(title=f"{tally.masks} masks, {tally.pixels:,} pixels", title_justify="left")
    for heading, justify in (
        ("mask value", "right"),
        ("class", "left"),
        ("pixels %", "right"),
        ("", "left"),
        ("masks", "right"),
    ):
        table.add_column(
            heading, justify="right" if justify == "right" else "left", no_wrap=heading != "class"
        )
    most = max(row.pixels for row in tally.classes)
    values = _values_of(vocabulary, any(item.colored for item in report.facts))

    def add(value: str, row: Count, style: str = "", mark: str = "") -> None:
        # classes share the scale
        bar = "\u2588" * round(BAR * row.pixels / max(1, most)) if row.pixels <= most else ""
        table.add_row(
            value,
            Text(row.text + mark),
            f"{100 * tally.share(row):.2f}",
            bar,
            str(row.images),
            style=style or None,
        )

    for label, row in enumerate(tally.classes):
        if row.pixels:
            add(values[label], row, mark="" if vocabulary.seen_mask[label] else " (unseen)")
    if tally.ignored.pixels:
        add(values[-1], tally.ignored, style="dim")
    for row in tally.unknown[:8]:
        add(row.text, dataclasses.replace(row, text="names no class"), style="red")
    return table


def _values_of(vocabulary: Vocabulary, colored: bool) -> dict[int, str]:
    """Mask values or colours of every label as text, ignored ones under -1."""
    from cascade_clip.vocabulary import IGNORED, color_name

    pairs: list[tuple[str, int]]
    if colored and vocabulary.mask_colors is not None:
        pairs = [(color_name(color), label) for color, label in vocabulary.mask_colors]
    elif vocabulary.raw_values is not None:
        pairs = [(str(value), label) for value, label in vocabulary.raw_values]
        pairs += (
            [] if str(vocabulary.ignore) in dict(pairs) else [(str(vocabulary.ignore), IGNORED)]
        )
    else:
        pairs = [
            *((str(label), label) for label in range(len(vocabulary))),
            (str(vocabulary.ignore), IGNORED),
        ]
    grouped: dict[int, list[str]] = {}
    for text, label in pairs:
        grouped.setdefault(label, []).append(text)
    return {
        label: ", ".join(texts[:3]) + (", ..." if len(texts) > 3 else "")
        for label, texts in grouped.items()
    }
