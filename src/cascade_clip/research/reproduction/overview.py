"""The top of every page: how to read it, how much was run and tested, and what each entry found."""

import math
import re
import statistics
from collections.abc import Hashable, Sequence
from pathlib import Path

from cascade_clip.research.reproduction.entries import EntryRow
from cascade_clip.research.reproduction.runs import Result
from cascade_clip.research.reproduction.sections import Section
from cascade_clip.research.reproduction.settings import ReproductionSettings
from cascade_clip.research.reproduction.tables import NOT_RUN, Cell, Table
from cascade_clip.research.reproduction.verdicts import LEANING, LEANING_P, LEVEL, Verdict
from cascade_clip.research.reproduction.wording import count_outcomes, shorten_outcome
from cascade_clip.results import PAIRED_METRICS

_TWO_SEEDS = 1.96 * math.sqrt(2)
"""Standard deviations within which the difference of two runs is in 95 % of the cases."""


def title(settings: ReproductionSettings) -> str:
    """Name a page."""
    name = "the built-in world" if settings.name == "sandbox" else settings.name
    return f"The paper's tables and figures on {name}"


def entry_name(section: Section) -> str:
    """Name an entry, such as `Table 1. Fusing the layers into one decoder` for table1."""
    number = re.sub(r"(?<=[a-z])(?=\d)", " ", section.entry.key).capitalize()
    return f"{number}. {section.entry.title}"


def closing(section: Section) -> str:
    """Say what was not run, and the command for it, in `backticks`."""
    if section.is_empty:
        return f"Not run here. This command does: `{section.command}`"
    groups = {"Rows without results": section.missing, "Incomplete rows": section.incomplete}
    found = [(start, names) for start, names in groups.items() if names]
    lacking = [f"{start} ({len(names)}): {'; '.join(names)}." for start, names in found]
    if lacking:
        return f"{' '.join(lacking)} This command makes what is missing: `{section.command}`"
    return f"Made by `{section.command}`"


def how_to_read(settings: ReproductionSettings, sections: Sequence[Section]) -> list[str]:
    """Explain values, when differences count, and many comparisons, in a paragraph each."""
    source = (
        "The paper's figures come from photographs and models of full size, ours from small drawn"
        " scenes and a small CLIP: signs and orderings can be compared, values cannot."
        if settings.name == "sandbox"
        else "The paper's figures are of single runs."
    )
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
    parts = [
        "S and U are the mIoU over seen and over unseen classes, hIoU is their harmonic mean, all"
        f" in percent; ± is the standard deviation over the seeds (n - 1). {source}",
        f"Differences stand with their {100 * LEVEL:.0f} % intervals (paired bootstrap over"
        " images and seeds). Bold ones are certain: the interval leaves out 0, and with"
        " several seeds a t test over them does so too. Others lean one way if"
        f" {100 * LEANING:.0f} % of the resamples do, and with several seeds the t test gives p"
        f" < {LEANING_P:.1f}; what does neither cannot be told.",
        one_seed,
        _word_chance(sections),
    ]
    return [part for part in parts if part]


def _word_chance(sections: Sequence[Section]) -> str:
    """Say how many differences are tested, and how many would seem certain by chance."""
    parts = []
    for one_seed, sides in enumerate(("rows with several seeds", "trained models (one seed)")):
        tests, certain = _count_tests(sections, bool(one_seed))
        compared = "trained model" if one_seed else "row"
        if tests:
            parts.append(
                f"{tests} differences between {sides} are tested on this page, and {certain} are"
                f" certain; if no {compared} differed from another, about"
                f" {tests * (1 - LEVEL):.1f} would still seem so."
            )
    if parts:
        parts.append(
            "A comparison that several tables show counts once. The more one reads, the more"
            " differences by chance one finds. Each table says how many of its own stay certain"
            " when all of its comparisons are allowed for."
        )
    return " ".join(parts)


def summary_of_runs(sections: Sequence[Section]) -> list[tuple[str, str, str]]:
    """Value, name and note of the cards that say how much was run and tested."""
    made = [runs for section in sections for runs in section.results.values()]
    models = {run.checkpoint for runs in made for run in runs}
    done = sum(not section.is_empty for section in sections)
    cards = [
        (f"{done} of {len(sections)}", "entries", "with results"),
        (str(len(models)), "trained models", "shared by entries"),
    ]
    for one_seed, compared in enumerate(("rows", "trained models")):
        tests, certain = _count_tests(sections, bool(one_seed))
        note = "certain, one seed" if one_seed else "certain, several seeds"
        if tests:
            cards.append((f"{certain} of {tests}", f"differences between {compared}", note))
    return cards


def _count_tests(sections: Sequence[Section], one_seed: bool) -> tuple[int, int]:
    """Count the different tests, and those that are certain."""
    own = [verdict for verdict in different_tests(sections) if verdict.one_seed is one_seed]
    return len(own), sum(verdict.standing == "certain" for verdict in own)


def different_tests(sections: Sequence[Section]) -> list[Verdict]:
    """List the computable verdicts, without those on the same models, used alike, as an earlier."""
    found: dict[Hashable, Verdict] = {}
    for section in sections:
        sides = {row.name: _side(section, row) for row in section.entry.rows}
        for verdict in section.verdicts:
            if verdict.standing != "unknown":
                pair = frozenset((sides[verdict.row], sides[verdict.against]))
                found.setdefault((pair, verdict.figure), verdict)
    return list(found.values())


def _side(section: Section, row: EntryRow) -> Hashable:
    """The models of a row and how each is used, with its calibration, chosen or not."""
    own = section.settings.inference(row)
    return tuple(
        (run.checkpoint, (own if run.calibration is None else own.calibrated(run.calibration)).key)
        for run in section.results.get(row.name, ())
    )


def seed_spread(sections: Sequence[Section]) -> dict[str, float]:
    """Pool the standard deviation (0..1) between seeds of the same settings; empty without any.

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
        known = [values for values in series if not any(map(math.isnan, values))]
        if known:
            freedoms = [len(values) - 1 for values in known]
            squares = map(lambda one, n: n * statistics.variance(one), known, freedoms)
            found[name] = math.sqrt(sum(squares) / sum(freedoms))
    return found


def overview(sections: Sequence[Section]) -> Table:
    """One line an entry: seeds, and how often each outcome occurs."""
    rows = []
    for section in sections:
        seeds = {run.seed for runs in section.results.values() for run in runs}
        shown = [entry_name(section), str(len(seeds)) if seeds else "-"]
        for name in PAIRED_METRICS:
            counts = count_outcomes(section.verdicts, name)
            outcomes = ", ".join(f"{count} {shorten_outcome(one)}" for one, count in counts)
            shown.append(outcomes or (NOT_RUN if section.is_empty else "-"))
        rows.append(tuple(map(Cell, shown)))
    heads = ("entry", "seeds", *PAIRED_METRICS)
    return Table("Does the paper's ordering hold here?", heads, tuple(rows))
