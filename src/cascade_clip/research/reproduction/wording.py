"""Verdicts in words, which never say more than the intervals do."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from cascade_clip.research.reproduction.tables import points
from cascade_clip.research.reproduction.verdicts import (
    LEANING,
    LEANING_P,
    LEVEL,
    RESAMPLES,
    Outcome,
    Verdict,
)
from cascade_clip.results import PAIRED_METRICS

if TYPE_CHECKING:
    from cascade_clip.research.reproduction.entries import Entry
    from cascade_clip.research.reproduction.runs import Result

AUTHORS_SPREAD = 1.0
"""Percentage points by which the paper's authors say that their own figures move between runs (0.5
to 1)."""
_WORDS: dict[Outcome, str] = {
    "holds": "holds with confidence",
    "leans the same way": "leans the paper's way",
    "open": "cannot be told",
    "leans the other way": "leans against the paper",
    "reversed": "is reversed with confidence",
    "higher": "higher with confidence",
    "leans higher": "leans higher",
    "leans lower": "leans lower",
    "lower": "lower with confidence",
    "unknown": "cannot be computed",
}
_ONE_SEED: dict[Outcome, str] = {
    "holds": "holds between these two trained models",
    "reversed": "is reversed between these two trained models",
    "higher": "higher in this trained model",
    "lower": "lower in this trained model",
}
_ORDER = tuple(_WORDS)


def outcome_words(verdict: Verdict) -> str:
    """A verdict in a few words; one seed never gives more than a statement on the trained models at
    hand."""
    one = _ONE_SEED.get(verdict.outcome) if verdict.one_seed else None
    return one or _WORDS[verdict.outcome]


def count_outcomes(verdicts: Sequence[Verdict], figure: str) -> list[tuple[Verdict, int]]:
    """The different outcomes of a figure, each as one verdict that has it, and how often it occurs;
    those that hold first."""
    own = sorted(
        (verdict for verdict in verdicts if verdict.figure == figure),
        key=lambda verdict: _ORDER.index(verdict.outcome),
    )
    groups = [list(group) for _, group in groupby(own, key=outcome_words)]
    return [(group[0], len(group)) for group in groups]


def describe(
    entry: Entry,
    verdicts: Sequence[Verdict],
    results: Mapping[str, Sequence[Result]],
    published_on: str,
) -> list[str]:
    """What a table says: the count of outcomes, the orders by mean, every comparison, and how sure
    all that is."""
    if not verdicts:
        return []
    lines = [summarise(verdicts)]
    order = compare_orders(entry, results, published_on)
    if order:
        lines.append(order)
    for (row, against), group in groupby(
        verdicts, key=lambda verdict: (verdict.row, verdict.against)
    ):
        lines.append(
            f"{row} against {against}: {'; '.join(_describe_one(verdict) for verdict in group)}."
        )
    return [*lines, *caution(verdicts)]


def describe_choices(entry: Entry, results: Mapping[str, Sequence[Result]]) -> list[str]:
    """Which calibration each seed of a row chose, for rows that choose one."""
    found = []
    for row in entry.rows:
        chosen = [
            f"{run.calibration:g} (seed {run.seed})"
            for run in results.get(row.name, ())
            if run.calibration is not None
        ]
        if row.choices and chosen:
            found.append(f"{row.name}: {', '.join(chosen)}.")
    return found


def summarise(verdicts: Sequence[Verdict]) -> str:
    """How often each outcome occurs, figure by figure."""
    parts = []
    for name in PAIRED_METRICS:
        counts = count_outcomes(verdicts, name)
        total = sum(count for _, count in counts)
        shown = [
            ("the paper's ordering " if one.outcome in ("holds", "reversed") else "")
            + outcome_words(one)
            for one, _ in counts
        ]
        if total > 1:
            shown = [
                f"{words} ({count} of {total})"
                for words, (_, count) in zip(shown, counts, strict=True)
            ]
        if counts:
            parts.append(f"{name}: {', '.join(shown)}.")
    return " ".join(parts)


def compare_orders(entry: Entry, results: Mapping[str, Sequence[Result]], published_on: str) -> str:
    """The paper's order of three or more rows by hIoU (by U where it prints no hIoU) beside ours by
    means.

    Empty unless all are known, and where rows are compared pair by pair, so that an order over all
    of them says nothing.
    """
    paired = any(row.against for row in entry.rows)
    if paired or len(entry.rows) < 3 or not all(results.get(row.name) for row in entry.rows):
        return ""
    for name in ("hIoU", "U"):
        place = PAIRED_METRICS.index(name)
        paper = {
            row.name: found[place]
            for row in entry.rows
            if (found := row.published.get(published_on))
        }
        known = {row: value for row, value in paper.items() if value is not None}
        if len(known) == len(entry.rows):
            ours = {
                row.name: statistics.fmean(run.scores[name] for run in results[row.name])
                for row in entry.rows
            }
            orders = f"the paper has {_order(known)}; the means here give {_order(ours)}"
            return f"From lowest to highest {name}, {orders} (an order of means, untested)."
    return ""


def caution(verdicts: Sequence[Verdict]) -> list[str]:
    """Number of seeds, what was resampled, and what many comparisons do; comparisons with one seed
    apart from those with several."""
    groups = [
        [verdict for verdict in verdicts if verdict.one_seed is one_seed]
        for one_seed in (False, True)
    ]
    groups = [group for group in groups if group]
    lines = []
    for group in groups:
        rows = (
            f"Of {', '.join(dict.fromkeys(verdict.row for verdict in group))}: "
            if len(groups) > 1
            else ""
        )
        lines += [
            rows + line
            for line in _caution(group, len([one for one in verdicts if one.standing != "unknown"]))
        ]
    return lines


def _caution(verdicts: Sequence[Verdict], of_entry: int) -> list[str]:
    """The same for comparisons that all rest on one seed, or all on several; `of_entry`: how many
    there are of both."""
    fewest = min(min(verdict.seeds) for verdict in verdicts)
    tests = sum(verdict.standing != "unknown" for verdict in verdicts)
    certain = [verdict for verdict in verdicts if verdict.standing == "certain"]
    chance = tests * (1 - LEVEL)
    lines = [_seed_words(verdicts, fewest)]
    if any(verdict.standing == "leaning" for verdict in verdicts):
        lines.append(leaning_words(several=fewest > 1))
    compared = "trained model" if fewest < 2 else "row"
    if tests > 1:
        firm = sum(verdict.firm for verdict in certain)
        kept = (
            f" {firm} of the {len(certain)} found here stay certain when all {of_entry} are allowed"
            " for (Bonferroni)."
            if certain
            else ""
        )
        chances = (
            f"if no {compared} differed from another, about {chance:.1f} of them would still seem"
            " certain."
        )
        lines.append(f"{tests} differences are tested; {chances}{kept}")
    return lines


def leaning_words(*, several: bool) -> str:
    """What a leaning is; with `several` seeds the t test must agree."""
    tested = f" and the t test over the seeds gives p < {LEANING_P:.1f}" if several else ""
    return (
        f"A difference leans one way if {100 * LEANING:.0f} % of the resamples do{tested}. That is"
        " a hint and no finding: where nothing differs, about one comparison in five leans or"
        " seems certain."
    )


def _seed_words(verdicts: Sequence[Verdict], fewest: int) -> str:
    most = max(max(verdict.seeds) for verdict in verdicts)
    intervals = f"intervals hold {100 * LEVEL:.0f} % of {RESAMPLES:,} resamples"
    if fewest < 2:
        several = "" if most < 2 else " (some rows have more, which does not help)"
        return (
            f"One seed{several}: {intervals} of the images, the same ones for both rows. They speak"
            " of these trained models alone: two seeds of the same settings often differ as"
            " clearly."
        )
    count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    shared = any(verdict.shared for verdict in verdicts)
    drawn = (
        "the rows that share their training draw the same seeds"
        if shared
        else "each row draws its seeds by itself"
    )
    return (
        f"{count} seeds: {intervals} of images, the same ones for both rows, and of seeds"
        f" ({drawn}). So few seeds are a coarse sample and make intervals too narrow; certain is"
        f" therefore only what a t test over the seeds finds too (p < {1 - LEVEL:.2f})."
    )


def _describe_one(verdict: Verdict) -> str:
    """One figure: its difference, the paper's, and the verdict."""
    found = verdict.found
    if found.difference is None or found.low is None or found.high is None:
        return f"{verdict.figure} {_WORDS['unknown']}"
    ours = (
        f"{verdict.figure} {points(found.difference)} [{points(found.low)}, {points(found.high)}]"
    )
    notes = []
    if verdict.published is not None:
        small = 0 < abs(verdict.published) <= AUTHORS_SPREAD
        notes.append(
            f"paper {points(verdict.published / 100)}"
            + (", no more than its runs differ by" if small else "")
        )
    if not verdict.one_seed and verdict.ahead[1]:
        notes.append("higher with {} of {} seeds".format(*verdict.ahead))
    aside = f" ({'; '.join(notes)})" if notes else ""
    return f"{ours}{aside}, {outcome_words(verdict)}"


def _order(values: Mapping[str, float]) -> str:
    """Names from lowest to highest, equal ones joined; figures are compared as they are printed."""
    ranked = sorted(values, key=lambda name: values[name])
    groups: Iterable[tuple[float, Iterable[str]]] = groupby(ranked, key=lambda name: values[name])
    return " < ".join(" = ".join(group) for _, group in groups)
