"""The table of an entry as cells of text, from which page, Markdown file and screen are made."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from cascade_clip.research.reproduction.verdicts import Verdict
from cascade_clip.results import PAIRED_METRICS

if TYPE_CHECKING:
    from cascade_clip.research.reproduction.entries import Entry, EntryRow
    from cascade_clip.research.reproduction.runs import Result

Tone = Literal["", "up", "down"]
NOT_RUN = "not run"


class Cell(NamedTuple):
    """One cell of a table."""

    text: str
    tone: Tone = ""  # `up` or `down` for a difference that is certain, which is shown bold


@dataclass(frozen=True)
class Table:
    """A table in any form: HTML, Markdown or terminal."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def main_table(
    entry: Entry,
    results: Mapping[str, Sequence[Result]],
    verdicts: Sequence[Verdict],
    published_on: str,
) -> Table:
    """One line a row: published S / U / hIoU, ours over the seeds, differences with intervals."""
    published = any(row.published.get(published_on) for row in entry.rows)
    against = {verdict.against for verdict in verdicts}
    heads = ["row", *([f"paper, {published_on}"] if published else []), *PAIRED_METRICS, "seeds"]
    if len(against) == 1:
        heads += [f"{name}, minus {next(iter(against))}" for name in PAIRED_METRICS]
    elif against:
        heads += ["compared with", *(f"{name}, difference" for name in PAIRED_METRICS)]
    rows = []
    for row in entry.rows:
        cells = [Cell(row.name), *([Cell(published_cell(row, published_on))] if published else [])]
        runs = results.get(row.name, ())
        cells += [Cell(mean_cell([run.scores[name] for run in runs])) for name in PAIRED_METRICS]
        cells.append(Cell(", ".join(str(run.seed) for run in runs) or "-"))
        own = {verdict.figure: verdict for verdict in verdicts if verdict.row == row.name}
        if len(against) > 1:
            cells.append(Cell(next((verdict.against for verdict in own.values()), "")))
        for name in PAIRED_METRICS if verdicts else ():
            cells.append(difference_cell(own[name]) if name in own else Cell(""))
        rows.append(tuple(cells))
    return Table(entry.title, tuple(heads), tuple(rows))


def published_cell(row: EntryRow, dataset: str) -> str:
    """S / U / hIoU of the paper, such as `41.1 / 43.4 / -`."""
    found = row.published.get(dataset) or ()
    return " / ".join("-" if value is None else f"{value:.1f}" for value in found) or "-"


def mean_cell(values: Sequence[float]) -> str:
    """Mean in percent, with the standard deviation (n - 1) where there are several seeds."""
    if not values:
        return NOT_RUN
    if any(value != value for value in values):
        return "-"
    mean = f"{100 * statistics.fmean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def difference_cell(verdict: Verdict) -> Cell:
    """A difference in percentage points with its interval, such as `-5.2 [-7.0, -3.4]`."""
    found = verdict.found
    if found.difference is None or found.low is None or found.high is None:
        return Cell("-")
    text = f"{points(found.difference)} [{points(found.low)}, {points(found.high)}]"
    if verdict.standing != "certain":
        return Cell(text)
    return Cell(text, "up" if found.difference > 0 else "down")


def points(value: float) -> str:
    """A difference in 0..1 as percentage points with its sign; what rounds to zero has none."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text
