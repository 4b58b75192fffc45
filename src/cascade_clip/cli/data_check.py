"""The command `data check`."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Table
from rich.text import Text

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.terminal import check_folder, console, progress_bar, say
from cascade_clip.config import DataConfig, FilesName

if TYPE_CHECKING:
    from cascade_clip.data.check import CheckReport, Count
    from cascade_clip.vocabulary import Vocabulary

BAR = 24
"""Characters of the longest bar."""


@dataclass(frozen=True)
class CheckOptions:
    """What to check."""

    data: FilesName = "folder"
    """`folder`: the two folders below; else a named dataset below --root."""
    root: str = ""
    """Folder that holds the named dataset; by default $CASCADE_CLIP_DATA, else `data`."""
    split: Literal["train", "val"] = "val"
    """Part of the named dataset."""
    images: str = ""
    """Folder of images."""
    masks: str = ""
    """Folder of index or colour masks with the same file stems."""
    classes: str = ""
    """Class list: a file (names in label order, `VALUE NAME`, `R G B NAME` or `#rrggbb NAME` lines,
    or JSON) or a packaged list by name."""
    unseen: str = ""
    """Unseen class names: a file, names separated by commas, a packaged split, or `none`."""
    ignore: int | None = None
    """Mask value of pixels without a label; by default the one of the class list, mostly 255."""
    limit: int = 0
    """Read N pairs only, taken at even distances; 0 means all."""
    workers: int = 2
    """Processes that read; 0 reads in this one."""

    def to_config(self) -> DataConfig:
        """The settings of the dataset."""
        chosen = {name: value for name, value in dataclasses.asdict(self).items() if name != "data"}
        split = self.split if self.data != "folder" else ""
        return DataConfig(name=self.data, **{**chosen, "split": split})


def check(*, data: CheckOptions, out: Path | None = None) -> int:
    """Say whether images, masks and class list fit together, and what is wrong if not.

    Reads every file and prints how often each class occurs. The exit code is 1 if something is
    wrong, 0 if not, notes allowed.

    Args:
        data: the dataset.
        out: folder for a preview sheet (check.png) and the report as JSON (check.json); by default
            nothing is written.
    """
    from cascade_clip.data import find_labelled
    from cascade_clip.data.check import check_data

    if out is not None:
        check_folder(out)
    files, vocabulary = find_labelled(data.to_config())
    with progress_bar("reading") as step:
        report = check_data(files, vocabulary, data.limit, data.workers, step)
    print_report(report)
    if out is not None:
        say("wrote " + ", ".join(str(path) for path in report.save(out)))
    return ExitCode.FINDINGS if report.wrong else ExitCode.DONE


def print_report(report: CheckReport) -> None:
    """Counts, the histogram of the classes that occur, and the findings."""
    files = report.files
    pairs, read = len(files.pairs), len(report.facts)
    share = "all read" if read == pairs else f"{read} of them read"
    say(f"{files.images} images, {files.masks} masks, {pairs} pairs, {share}; {_sizes(report)}")
    if report.tally.masks:
        console.print(_histogram(report))
    for finding in report.findings:
        style = "bold red" if finding.level == "wrong" else "bold yellow"
        console.print(Text.assemble((f"{finding.level}: ", style), finding.text), soft_wrap=True)
    wrong, notes = len(report.wrong), len(report.notes)
    things = "thing is" if wrong == 1 else "things are"
    verdict = f"{wrong} {things} wrong" if wrong else "nothing is wrong"
    say(f"{verdict}, {notes} note{'' if notes == 1 else 's'}")


def _sizes(report: CheckReport) -> str:
    sizes = sorted({item.image_size for item in report.facts if item.image_size}, key=math.prod)
    if not sizes:
        return "no image can be read"
    first, last = (f"{width} x {height}" for width, height in (sizes[0], sizes[-1]))
    return f"images of {first}" if len(sizes) == 1 else f"images from {first} to {last} pixels"


def _histogram(report: CheckReport) -> Table:
    """Classes that occur in label order, ignored pixels, and values that name no class."""
    tally, vocabulary = report.tally, report.vocabulary
    table = Table(title=f"{tally.masks} masks, {tally.pixels:,} pixels", title_justify="left")
    for heading in ("mask value", "class", "pixels %", "", "masks"):
        side: Literal["left", "right"] = "left" if heading in ("class", "") else "right"
        table.add_column(heading, justify=side, no_wrap=heading != "class")
    most = max(row.pixels for row in tally.classes)
    values = _values_of(vocabulary, any(item.colored for item in report.facts))

    def add(value: str, row: Count, style: str = "", mark: str = "") -> None:
        # classes share the scale
        bar = "\u2588" * round(BAR * row.pixels / max(1, most)) if row.pixels <= most else ""
        share = f"{100 * tally.share(row):.2f}"
        table.add_row(value, Text(row.text + mark), share, bar, str(row.images), style=style)

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

    if colored and vocabulary.mask_colors is not None:
        pairs = [(color_name(color), label) for color, label in vocabulary.mask_colors]
    else:
        labels = dict(vocabulary.value_labels)
        labels.setdefault(vocabulary.ignore, IGNORED)
        pairs = [(str(value), label) for value, label in labels.items()]
    grouped: dict[int, list[str]] = {}
    for text, label in pairs:
        grouped.setdefault(label, []).append(text)
    return {
        label: ", ".join(texts[:3]) + (", ..." if len(texts) > 3 else "")
        for label, texts in grouped.items()
    }
