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
"""Percentage points by which, the authors say, their values move between runs (0.5 to 1)."""
_OUTCOMES: dict[Outcome, tuple[str, str]] = {
    "holds": ("holds with confidence", "holds"),
    "leans the same way": ("leans the paper's way", "leans the paper's way"),
    "open": ("cannot be told", "cannot be told"),
    "leans the other way": ("leans against the paper", "leans against it"),
    "reversed": ("is reversed with confidence", "reversed"),
    "higher": ("higher with confidence", "higher"),
    "leans higher": ("leans higher", "leans higher"),
    "leans lower": ("leans lower", "leans lower"),
    "lower": ("lower with confidence", "lower"),
    "unknown": ("cannot be computed", "not computable"),
}
"""Every outcome in a sentence and in the overview, those that hold first."""
_ONE_SEED: dict[Outcome, str] = {
    "holds": "holds between these two trained models",
    "reversed": "is reversed between these two trained models",
    "higher": "higher in this trained model",
    "lower": "lower in this trained model",
}


def word_outcome(verdict: Verdict) -> str:
    """Put a verdict in a few words; with one seed, only about the trained models at hand."""
    one = _ONE_SEED.get(verdict.outcome) if verdict.one_seed else None
    return one or _OUTCOMES[verdict.outcome][0]


def shorten_outcome(verdict: Verdict) -> str:
    """Put a verdict in as few words as the overview has room for."""
    one_seed = verdict.one_seed and verdict.standing == "certain"
    return _OUTCOMES[verdict.outcome][1] + (" (one seed)" if one_seed else "")


def count_outcomes(verdicts: Sequence[Verdict], figure: str) -> list[tuple[Verdict, int]]:
    """List a metric's outcomes, each as a verdict that has it and a count; holding ones first."""
    order = tuple(_OUTCOMES)
    own = [verdict for verdict in verdicts if verdict.figure == figure]
    own.sort(key=lambda verdict: order.index(verdict.outcome))
    groups = [list(group) for _, group in groupby(own, key=word_outcome)]
    return [(group[0], len(group)) for group in groups]


def describe(
    entry: Entry,
    verdicts: Sequence[Verdict],
    results: Mapping[str, Sequence[Result]],
    published_on: str,
) -> list[str]:
    """Say what a table shows: outcome counts, orders by mean, every comparison, and how certain."""
    if not verdicts:
        return []
    order = compare_orders(entry, results, published_on)
    lines = [summarise(verdicts), *([order] if order else [])]
    for (row, against), group in groupby(verdicts, key=lambda one: (one.row, one.against)):
        lines.append(f"{row} against {against}: {'; '.join(map(_describe_one, group))}.")
    return [*lines, *caution(verdicts)]


def describe_choices(entry: Entry, results: Mapping[str, Sequence[Result]]) -> list[str]:
    """Say which calibration each seed of a row chose, for rows that choose one."""
    found = []
    for row in entry.rows:
        runs = [run for run in results.get(row.name, ()) if run.calibration is not None]
        if row.choices and runs:
            chosen = ", ".join(f"{run.calibration:g} (seed {run.seed})" for run in runs)
            found.append(f"{row.name}: {chosen}.")
    return found


def summarise(verdicts: Sequence[Verdict]) -> str:
    """Say how often each outcome occurs, metric by metric."""
    parts = []
    for name in PAIRED_METRICS:
        counts = count_outcomes(verdicts, name)
        total = sum(count for _, count in counts)
        shown = []
        for one, count in counts:
            ordering = "the paper's ordering " if one.outcome in ("holds", "reversed") else ""
            share = f" ({count} of {total})" if total > 1 else ""
            shown.append(f"{ordering}{word_outcome(one)}{share}")
        if shown:
            parts.append(f"{name}: {', '.join(shown)}.")
    return " ".join(parts)


def compare_orders(entry: Entry, results: Mapping[str, Sequence[Result]], published_on: str) -> str:
    """Compare the paper's order of three or more rows by hIoU (else by U) with ours by means.

    Empty unless all are known, and where rows are compared pair by pair: then there is no order.
    """
    rows = entry.rows
    if any(row.against for row in rows) or len(rows) < 3:
        return ""
    if not all(results.get(row.name) and row.published.get(published_on) for row in rows):
        return ""
    for name in ("hIoU", "U"):
        place = PAIRED_METRICS.index(name)
        paper = {row.name: row.published[published_on][place] for row in rows}
        known = {row: value for row, value in paper.items() if value is not None}
        if len(known) == len(rows):
            scores = {row: [run.scores[name] for run in results[row]] for row in known}
            ours = {row: statistics.fmean(values) for row, values in scores.items()}
            orders = f"the paper has {_order(known)}; the means here give {_order(ours)}"
            return f"From lowest to highest {name}, {orders} (an order of means, untested)."
    return ""


def caution(verdicts: Sequence[Verdict]) -> list[str]:
    """Explain seeds, resampling and many comparisons, for one seed apart from several seeds."""
    groups = [[one for one in verdicts if one.one_seed is alone] for alone in (False, True)]
    total = sum(one.standing != "unknown" for one in verdicts)
    lines = []
    for group in filter(None, groups):
        rows = ", ".join(dict.fromkeys(verdict.row for verdict in group))
        start = f"Of {rows}: " if len(group) < len(verdicts) else ""
        lines += [start + line for line in _caution(group, total)]
    return lines


def _caution(verdicts: Sequence[Verdict], of_entry: int) -> list[str]:
    """The same for comparisons with one seed, or with several; `of_entry`: number of both kinds."""
    fewest = min(min(verdict.seeds) for verdict in verdicts)
    tests = sum(verdict.standing != "unknown" for verdict in verdicts)
    certain = [verdict for verdict in verdicts if verdict.standing == "certain"]
    lines = [_word_seeds(verdicts, fewest)]
    if any(verdict.standing == "leaning" for verdict in verdicts):
        tested = f" and the t test over the seeds gives p < {LEANING_P:.1f}" if fewest > 1 else ""
        lines.append(
            f"A difference leans one way if {100 * LEANING:.0f} % of the resamples do{tested}. That"
            " is a hint and no finding: where nothing differs, about one comparison in five leans"
            " or seems certain."
        )
    if tests > 1:
        firm, compared = sum(one.firm for one in certain), "trained model" if fewest < 2 else "row"
        lines.append(
            f"{tests} differences are tested; if no {compared} differed from another, about"
            f" {tests * (1 - LEVEL):.1f} of them would still seem certain."
        )
        if certain:
            kept = f"stay certain when all {of_entry} are allowed for (Bonferroni)."
            lines[-1] += f" {firm} of the {len(certain)} found here {kept}"
    return lines


def _word_seeds(verdicts: Sequence[Verdict], fewest: int) -> str:
    most = max(max(verdict.seeds) for verdict in verdicts)
    intervals = f"intervals hold {100 * LEVEL:.0f} % of {RESAMPLES:,} resamples"
    if fewest < 2:
        several = "" if most < 2 else " (some rows have more, which does not help)"
        return (
            f"One seed{several}: {intervals} of the images, the same ones for both rows. They speak"
            " of these trained models alone: two seeds of the same settings often differ as"
            " clearly."
        )
    drawn = (
        "the rows that share their training draw the same seeds"
        if any(verdict.shared for verdict in verdicts)
        else "each row draws its seeds by itself"
    )
    return (
        f"{fewest}{'' if fewest == most else f' to {most}'} seeds: {intervals} of images, the same"
        f" ones for both rows, and of seeds ({drawn}). So few seeds are a coarse sample and make"
        " intervals too narrow; certain is therefore only what a t test over the seeds finds too"
        f" (p < {1 - LEVEL:.2f})."
    )


def _describe_one(verdict: Verdict) -> str:
    """Say one metric: its difference, the paper's, and the verdict."""
    found = verdict.found
    if found.difference is None or found.low is None or found.high is None:
        return f"{verdict.figure} {_OUTCOMES['unknown'][0]}"
    interval = f"[{points(found.low)}, {points(found.high)}]"
    notes = []
    if verdict.published is not None:
        small = 0 < abs(verdict.published) <= AUTHORS_SPREAD
        spread = ", no more than its runs differ by" if small else ""
        notes.append(f"paper {points(verdict.published / 100)}{spread}")
    if not verdict.one_seed and verdict.ahead[1]:
        notes.append("higher with {} of {} seeds".format(*verdict.ahead))
    aside = f" ({'; '.join(notes)})" if notes else ""
    return f"{verdict.figure} {points(found.difference)} {interval}{aside}, {word_outcome(verdict)}"


def _order(values: Mapping[str, float]) -> str:
    """Join names from lowest to highest, equal ones by `=`."""
    ranked = sorted(values, key=lambda name: values[name])
    groups: Iterable[tuple[float, Iterable[str]]] = groupby(ranked, key=lambda name: values[name])
    return " < ".join(" = ".join(group) for _, group in groups)
