"""What commands share: the screen, tables, a progress bar, and checks of `--out`."""

import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from cascade_clip.errors import SettingError

console = Console()


def warn(text: str) -> None:
    """Say something on standard error, as it is."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(title: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error where that is a terminal; yields a function of (done, total)."""
    speed, times = TextColumn("{task.fields[speed]}"), (TimeElapsedColumn(), TimeRemainingColumn())
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), speed, *times)
    screen = Console(file=sys.stderr)
    if not (shown and screen.is_terminal):
        # rich before 14.3 prints an empty line after a disabled bar
        yield lambda done, total: None
        return
    with Progress(*columns, console=screen, transient=True) as progress:
        task, begin = progress.add_task(title, total=None, speed=""), time.monotonic()

        def show(done: int, total: int) -> None:
            rate = f"{done / (time.monotonic() - begin):.1f}/s"
            progress.update(task, completed=done, total=total, speed=rate)

        yield show


def make_table(title: str, heads: Sequence[str], left: Collection[int] = (0,)) -> Table:
    """Build a table; the columns whose numbers `left` names are aligned left, the others right."""
    table = Table(title=title)
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number in left else "right")
    return table


def check_ending(out: Path, endings: tuple[str, ...]) -> None:
    """Refuse the name of an image file that cannot be written, before anything is done.

    Raises:
        SettingError: it has none of the endings.
    """
    if out.suffix.lower() not in endings:
        raise SettingError(f"--out must end in {', '.join(endings)}, got {out}")


def check_folder(out: Path) -> None:
    """Refuse an output folder that cannot be one, before anything is done.

    Raises:
        ValueError: it, or a folder above it, is a file.
    """
    there = next((place for place in (out, *out.absolute().parents) if place.exists()), out)
    if there.exists() and not there.is_dir():
        raise SettingError(f"--out: {there} is a file and no folder; give a folder for the results")


def say(text: str) -> None:
    """Print a line as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
