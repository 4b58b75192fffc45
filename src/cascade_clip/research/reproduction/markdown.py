"""The reproduction as a Markdown file, and the words that file and page share."""

from __future__ import annotations

import math
import os
import re
import statistics
from collections.abc import Hashable, Sequence
from pathlib import Path

from cascade_clip.research.reproduction.charts import describe_picture
from cascade_clip.research.reproduction.entries import Row
from cascade_clip.research.reproduction.runs import Result, inference_of
from cascade_clip.research.reproduction.sections import Section
from cascade_clip.research.reproduction.settings import World
from cascade_clip.research.reproduction.tables import NOT_RUN, Cell, Table
from cascade_clip.research.reproduction.verdicts import LEANING, LEANING_P, LEVEL, Outcome, Verdict
from cascade_clip.research.reproduction.wording import count_outcomes
from cascade_clip.results import PAIRED_METRICS

_TWO_SEEDS = 1.96 * math.sqrt(2)
"""Standard deviations within which the difference of two runs lies in 95 % of the cases."""
_SHORT: dict[Outcome, str] = {
    "holds": "holds",
    "leans the same way": "leans the paper's way",
    "open": "cannot be told",
    "leans the other way": "leans against it",
    "reversed": "reversed",
    "higher": "higher",
    "leans higher": "leans higher",
    "leans lower": "leans lower",
    "lower": "lower",
    "unknown": "not computable",
}


def build_markdown(out: Path, world: World, sections: Sequence[Section]) -> str:
    """The whole file; pictures are linked from the folder `out`."""
    parts = [f"# {title(world)}", *how_to_read(world, sections), _table(overview(sections))]
    for section in sections:
        parts += _section(out, section)
    return "\n\n".join(parts) + "\n"


def title(world: World) -> str:
    """Of file and page."""
    return f"The paper's tables and figures on {world_name(world)}"


def world_name(world: World) -> str:
    """How a world is called in a sentence."""
    return "the built-in world" if world.name == "sandbox" else world.name


def entry_name(section: Section) -> str:
    """`Table 1. Fusing the layers into one decoder`."""
    return f"{_number(section)}. {section.entry.title}"


def _number(section: Section) -> str:
    """`Table 1` for table1."""
    return re.sub(r"(?<=[a-z])(?=\d)", " ", section.entry.key).capitalize()


def how_to_read(world: World, sections: Sequence[Section]) -> list[str]:
    """What the figures are, when a difference counts, and what many comparisons do; a paragraph
    each."""
    parts = [
        "S and U are the mIoU over seen and over unseen classes, hIoU is their harmonic mean, all"
        " in percent; ± is the standard deviation over the seeds (n - 1). "
        + (
            "The paper's figures come from photographs and models of full size, ours from small"
            " drawn scenes and a small CLIP: signs and orderings can be compared, values cannot."
            if world.name == "sandbox"
            else "The paper's figures are of single runs."
        ),
        (
            f"Differences stand with their {100 * LEVEL:.0f} % intervals (paired bootstrap over"
            " images and seeds). Bold ones are certain: the interval leaves out 0, and with"
            " several seeds a t test over them does so too. Others lean one way if"
            f" {100 * LEANING:.0f} % of the resamples do, and with several seeds the t test gives p"
            f" < {LEANING_P:.1f}; what does neither cannot be told."
        ),
    ]
    one_seed = "With one seed, all this speaks of the trained models at hand alone."
    spread = seed_spread(sections)
    if spread:
        shown, limits = (
            ", ".join(f"{name} {100 * factor * value:.1f}" for name, value in spread.items())
            for factor in (1, _TWO_SEEDS)
        )
        one_seed += (
            f" Where there are several, seeds of the same settings deviate by {shown} (pooled"
            " standard deviation), so that two single runs of the same settings differ by up to"
            f" {limits} in 95 % of the cases."
        )
    parts.append(one_seed)
    counted = _chance_words(sections)
    return [*parts, counted] if counted else parts


def _chance_words(sections: Sequence[Section]) -> str:
    """How many differences are tested, and how many would seem certain by chance; empty without
    any."""
    parts = []
    for one_seed, rested, compared in (
        (False, "rows with several seeds", "row"),
        (True, "trained models (one seed)", "trained model"),
    ):
        tests = [verdict for verdict in different_tests(sections) if verdict.one_seed is one_seed]
        certain = sum(verdict.standing == "certain" for verdict in tests)
        if tests:
            parts.append(
                f"{len(tests)} differences between {rested} are tested on this page, and {certain}"
                f" are certain; if no {compared} differed from another, about"
                f" {len(tests) * (1 - LEVEL):.1f} would still seem so."
            )
    if not parts:
        return ""
    parts.append(
        "A comparison that several tables show counts once. The more one reads, the more"
        " differences by chance one finds. Each table says how many of its own stay certain when"
        " all of its comparisons are allowed for."
    )
    return " ".join(parts)


def different_tests(sections: Sequence[Section]) -> list[Verdict]:
    """The verdicts that can be computed, without those on the same two groups of models, used in
    the same way, as an earlier one."""
    found: dict[Hashable, Verdict] = {}
    for section in sections:
        sides = {
            row.name: _side(section.world, row, section.results.get(row.name, ()))
            for row in section.entry.rows
        }
        for verdict in section.verdicts:
            if verdict.standing != "unknown":
                found.setdefault(
                    (frozenset((sides[verdict.row], sides[verdict.against])), verdict.figure),
                    verdict,
                )
    return list(found.values())


def _side(world: World, row: Row, runs: Sequence[Result]) -> Hashable:
    """The models of a row and how each is used, with the calibration that it was given, be it
    chosen or not."""
    own = inference_of(world, row)
    return tuple(
        (run.checkpoint, (own if run.calibration is None else own.calibrated(run.calibration)).key)
        for run in runs
    )


def seed_spread(sections: Sequence[Section]) -> dict[str, float]:
    """Standard deviation between seeds of the same settings, in 0..1, pooled over all trainings
    that have several; empty without any.

    Of rows that share their training the first counts; those whose calibration is chosen seed by
    seed do not have the same settings.
    """
    groups: dict[tuple[Path, ...], Sequence[Result]] = {}
    for section in sections:
        for row in section.entry.rows:
            runs = section.results.get(row.name, ())
            if len(runs) > 1 and not row.choices:
                groups.setdefault(tuple(run.checkpoint for run in runs), runs)
    found = {}
    for name in PAIRED_METRICS:
        series = [[run.scores[name] for run in runs] for runs in groups.values()]
        known = [values for values in series if all(value == value for value in values)]
        if known:
            freedom = sum(len(values) - 1 for values in known)
            found[name] = math.sqrt(
                sum((len(values) - 1) * statistics.variance(values) for values in known) / freedom
            )
    return found


def overview(sections: Sequence[Section]) -> Table:
    """One line an entry: seeds, and how often each outcome occurs."""
    rows = []
    for section in sections:
        seeds = sorted({run.seed for runs in section.results.values() for run in runs})
        shown = [Cell(entry_name(section)), Cell(str(len(seeds)) if seeds else "-")]
        for name in PAIRED_METRICS:
            counts = count_outcomes(section.verdicts, name)
            shown.append(
                Cell(
                    ", ".join(f"{count} {_short(one)}" for one, count in counts) or _state(section)
                )
            )
        rows.append(tuple(shown))
    return Table(
        "Does the paper's ordering hold here?", ("entry", "seeds", *PAIRED_METRICS), tuple(rows)
    )


def _short(verdict: Verdict) -> str:
    """An outcome for the overview."""
    return _SHORT[verdict.outcome] + (
        " (one seed)" if verdict.one_seed and verdict.standing == "certain" else ""
    )


def _state(section: Section) -> str:
    return NOT_RUN if section.is_empty else "-"


def _section(out: Path, section: Section) -> list[str]:
    parts = [f"## {entry_name(section)}"]
    if section.entry.note:
        parts.append(section.entry.note.strip())
    parts += [_table(table, titled=table.title != section.entry.title) for table in section.tables]
    if section.words:
        parts.append("\n".join(f"- {line}" for line in section.words))
    for picture in section.pictures:
        words = describe_picture(picture)
        path = Path(os.path.relpath(picture, out)).as_posix()
        parts.append(f"![{_plain(first_sentence(words))}]({path})\n\n*{words}*")
    return [*parts, closing(section)]


def first_sentence(text: str) -> str:
    """What a picture is called where its whole description stands below it."""
    return text.split(". ")[0].rstrip(".")


def closing(section: Section) -> str:
    """What was not run, and the command for it."""
    if section.is_empty:
        return f"Not run here. This command does: `{section.command}`"
    lacking = [
        f"{words} ({len(names)}): {'; '.join(names)}."
        for words, names in (
            ("Rows without results", section.missing),
            ("Incomplete rows", section.incomplete),
        )
        if names
    ]
    if lacking:
        return f"{' '.join(lacking)} This command makes what is missing: `{section.command}`"
    return f"Made by `{section.command}`"


def _table(table: Table, *, titled: bool = True) -> str:
    lines = [
        "| " + " | ".join(map(_cell, table.heads)) + " |",
        "|" + "---|" + "---:|" * (len(table.heads) - 1),
    ]
    for row in table.rows:
        lines.append(
            "| "
            + " | ".join(
                f"**{_cell(cell.text)}**" if cell.tone else _cell(cell.text) for cell in row
            )
            + " |"
        )
    return (f"**{table.title}**\n\n" if titled else "") + "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _plain(text: str) -> str:
    return text.replace("[", "(").replace("]", ")")
