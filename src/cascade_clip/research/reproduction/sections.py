"""One entry with all that was found for it: results, verdicts, pictures, words and tables.

section = build_section(entry, world, out, seeds, command)   # trains nothing tabulate(section)
# its table as text (see `tables.py`) write_page(out, world, [section, ...])                       #
index.html, reproduction.md, results.json (see `page.py`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cascade_clip.research.reproduction.charts import (
    describe_differences,
    draw_differences,
    save_picture,
)
from cascade_clip.research.reproduction.counts import count_parts
from cascade_clip.research.reproduction.entries import Entry
from cascade_clip.research.reproduction.figures import PICTURES, draw_figure
from cascade_clip.research.reproduction.runs import Result, collect_results
from cascade_clip.research.reproduction.settings import World
from cascade_clip.research.reproduction.tables import Table, main_table
from cascade_clip.research.reproduction.verdicts import Verdict, judge
from cascade_clip.research.reproduction.wording import describe, describe_choices


@dataclass(frozen=True)
class Section:
    """An entry as page, Markdown file and screen show it."""

    entry: Entry
    world: World
    results: Mapping[str, Sequence[Result]]
    """Of each row, one a seed; rows that were not run have none."""
    command: str
    """What makes what is missing."""
    verdicts: Sequence[Verdict] = ()
    pictures: Sequence[Path] = ()
    """PNG files that carry their own descriptions."""
    words: Sequence[str] = ()
    """What the table says, one sentence or more each."""
    tables: Sequence[Table] = ()
    """The table of the rows if there are several, and others such as counted parameters."""
    seeds: Sequence[int] = ()
    """That every row should have."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the rows without any result."""
        return tuple(row.name for row in self.entry.rows if not self.results.get(row.name))

    @property
    def incomplete(self) -> tuple[str, ...]:
        """Rows that have results of some of the seeds only, such as `baseline (without seed 2)`."""
        found = []
        for row in self.entry.rows:
            made = {run.seed for run in self.results.get(row.name, ())}
            lacking = [str(seed) for seed in self.seeds if seed not in made]
            if made and lacking:
                found.append(f"{row.name} (without seed {', '.join(lacking)})")
        return tuple(found)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was run."""
        return not any(self.results.values()) and not self.tables[len(self.entry.rows) > 1 :]


def build_section(
    entry: Entry, world: World, out: Path, seeds: Sequence[int], command: str, *, count: bool = True
) -> Section:
    """Read what is there for an entry, judge it, and draw its pictures into OUT/pictures; nothing
    is trained.

    Args:
        entry: the table, figure or question.
        world: where.
        out: folder of the reproduction.
        seeds: whose results to read.
        command: what makes what is missing.
        count: whether costs that are not kept may be counted and timed; else they are said to be
            missing.
    """
    results = {row.name: collect_results(entry, row, world, seeds, out) for row in entry.rows}
    published_on = published_world(entry, world)
    verdicts = judge(entry, results, published_on)
    pictures = draw_figure(entry, world, out, seeds)
    if verdicts:
        chart = out / PICTURES / f"{entry.key}-differences.png"
        pictures.append(
            save_picture(draw_differences(verdicts), chart, describe_differences(verdicts))
        )
    tables, words = count_parts(entry, world, out, seeds, "" if count else command)
    if len(entry.rows) > 1:
        tables.insert(0, main_table(entry, results, verdicts, published_on))
    words = [
        *describe(entry, verdicts, results, published_on),
        *describe_choices(entry, results),
        *words,
    ]
    return Section(entry, world, results, command, verdicts, pictures, words, tables, seeds)


def published_world(entry: Entry, world: World) -> str:
    """The world whose published figures are shown: the own one where the paper has any on it, else
    the entry's."""
    return (
        world.name if any(world.name in row.published for row in entry.rows) else entry.published_on
    )
