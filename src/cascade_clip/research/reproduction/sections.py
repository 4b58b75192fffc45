"""One entry with all that was found for it: results, verdicts, plots, wording and tables."""

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
from cascade_clip.research.reproduction.runs import Reproduction, Result
from cascade_clip.research.reproduction.settings import ReproductionSettings
from cascade_clip.research.reproduction.tables import Table, main_table
from cascade_clip.research.reproduction.verdicts import Verdict, judge
from cascade_clip.research.reproduction.wording import describe, describe_choices


@dataclass(frozen=True)
class Section:
    """An entry as page, Markdown file and screen show it."""

    entry: Entry
    settings: ReproductionSettings
    results: Mapping[str, Sequence[Result]]
    """Of each row, one a seed; rows that were not run have none."""
    command: str  # what makes what is missing
    verdicts: Sequence[Verdict] = ()
    pictures: Sequence[Path] = ()  # PNG files that carry their own descriptions
    wording: Sequence[str] = ()  # what the table says, one sentence or more each
    tables: Sequence[Table] = ()
    """The table of the rows if there are several, and others such as counted parameters."""
    seeds: Sequence[int] = ()  # that every row should have

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the rows without any result."""
        return tuple(row.name for row in self.entry.rows if not self.results.get(row.name))

    @property
    def incomplete(self) -> tuple[str, ...]:
        """Rows with results of only some seeds, such as `baseline (without seed 2)`."""
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
    entry: Entry, reproduction: Reproduction, command: str, *, count: bool = True
) -> Section:
    """Read what is there for an entry, judge it, and draw its plots into OUT/pictures; nothing is
    trained.

    Args:
        entry: the table, figure or question.
        reproduction: where, and with which seeds.
        command: what makes what is missing.
        count: whether to count and time costs that are not cached, rather than report them missing.
    """
    settings = reproduction.settings
    results = {row.name: reproduction.results(entry, row) for row in entry.rows}
    published_on = find_published(entry, settings.name)
    verdicts = judge(entry, results, published_on)
    pictures = draw_figure(entry, reproduction)
    if verdicts:
        chart = reproduction.out / PICTURES / f"{entry.key}-differences.png"
        description = describe_differences(verdicts)
        pictures.append(save_picture(draw_differences(verdicts), chart, description))
    counted = count_parts(entry, reproduction, "" if count else command)
    own = [main_table(entry, results, verdicts, published_on)] if len(entry.rows) > 1 else []
    said = [*describe(entry, verdicts, results, published_on), *describe_choices(entry, results)]
    wording, tables = [*said, *counted.wording], [*own, *counted.tables]
    seeds = reproduction.seeds[entry.key]
    return Section(entry, settings, results, command, verdicts, pictures, wording, tables, seeds)


def find_published(entry: Entry, name: str) -> str:
    """Return `name` where the paper has values on that dataset, else the entry's dataset."""
    return name if any(name in row.published for row in entry.rows) else entry.published_on
