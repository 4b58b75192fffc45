"""Whether the paper's ordering holds here, and how sure that is.

Every row is compared with its reference by a bootstrap over images (the same ones for both rows)
and over seeds. With few seeds these intervals are too narrow: of rows that differ by their seeds
alone, 3 against 3, they leave out 0 in 20 % of the cases, not in 5 %. A difference therefore counts
as certain only if a two-sided t test over the seeds finds it too, which brings these 20 % to 5 %.
With one seed neither can speak of other seeds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cascade_clip.evaluation import Difference, compare_paired
from cascade_clip.results import PAIRED_METRICS

if TYPE_CHECKING:
    from cascade_clip.research.reproduction.entries import Entry, EntryRow
    from cascade_clip.research.reproduction.runs import Result

LEVEL = 0.95
"""Share of the resamples that an interval holds; the t test uses the rest."""
RESAMPLES = 4000
LEANING = 0.9
"""Share of the resamples that must agree before an uncertain difference is said to lean."""
LEANING_P = 0.2
"""The t test must give less too: by resamples alone, 1 of 3 pairs of equal rows would lean."""

Standing = Literal["certain", "leaning", "open", "unknown"]
Ordering = Literal["holds", "leans the same way", "leans the other way", "reversed"]
Outcome = Ordering | Literal["open", "higher", "leans higher", "leans lower", "lower", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """One figure of a row against another row."""

    row: str
    against: str
    found: Difference  # ours, the row minus the other one, with its interval
    published: float | None
    """The paper's difference in percentage points; None where it prints none."""
    seeds: tuple[int, int]  # how many seeds the two rows rest on
    p_value: float | None  # of the t test over the seeds; None with one seed
    firm: bool  # whether it is certain at the level for all comparisons of the entry (Bonferroni)
    ahead: tuple[int, int]
    """With how many of the seeds that both rows have the row is higher, and how many there are."""
    shared: bool = False
    """Whether the rows differ in inference alone; seeds are then compared one by one."""

    @property
    def figure(self) -> str:
        """S, U or hIoU."""
        return self.found.name

    @property
    def one_seed(self) -> bool:
        """Whether a row has one seed only, so that nothing is known of other seeds."""
        return min(self.seeds) < 2

    @property
    def standing(self) -> Standing:
        """How sure the sign of the difference is."""
        change = self.found.difference
        if change is None:
            return "unknown"
        if self.found.certain and (self.p_value is None or self.p_value < 1 - LEVEL):
            return "certain"
        agreeing = self.found.wins if change > 0 else self.found.losses
        agreed = agreeing >= LEANING and (self.p_value is None or self.p_value < LEANING_P)
        return "leaning" if change and agreed else "open"

    @property
    def outcome(self) -> Outcome:
        """Whether the paper's ordering holds; where it has none, which row is higher."""
        change, standing = self.found.difference, self.standing
        if change is None or standing == "unknown":
            return "unknown"
        if standing == "open":
            return "open"
        certain = standing == "certain"
        if not self.published:
            if change > 0:
                return "higher" if certain else "leans higher"
            return "lower" if certain else "leans lower"
        if (change > 0) == (self.published > 0):
            return "holds" if certain else "leans the same way"
        return "reversed" if certain else "leans the other way"

    def to_json(self) -> dict[str, Any]:
        """Plain values; ours in 0..1, published in percentage points."""
        return {
            "row": self.row,
            "against": self.against,
            **self.found.to_json(),
            "published_difference": self.published,
            "seeds": list(self.seeds),
            "p_value": self.p_value,
            "seeds_ahead": list(self.ahead),
            "outcome": self.outcome,
            "one_seed": self.one_seed,
            "firm": self.firm,
            "shared_training": self.shared,
        }


def judge(
    entry: Entry, results: Mapping[str, Sequence[Result]], published_on: str
) -> list[Verdict]:
    """Judge S, U and hIoU of every row with results against its reference, in the order of rows.

    Args:
        entry: the table, figure or question.
        results: of each row, one a seed; all on the same images.
        published_on: the dataset whose published values are compared with.

    Raises:
        ValueError: results on other images or classes.
    """
    pairs = [(row, other) for row in entry.rows if (other := entry.reference_of(row)) is not None]
    known = [
        (row, other, (first, second))
        for row, other in pairs
        if (first := results.get(row.name)) and (second := results.get(other.name))
    ]
    tests = len(known) * len(PAIRED_METRICS)
    return [one for both in known for one in _compare(*both, published_on, tests)]


def compare_seeds(first: Sequence[float], second: Sequence[float], *, paired: bool) -> float | None:
    """Two-sided p-value of Student's t test between two rows; None with fewer than two seeds.

    Args:
        first: values of a row, one a seed.
        second: values of the other row.
        paired: whether the i-th values of both belong together; else equal variances are assumed.
    """
    if min(len(first), len(second)) < 2:
        return None
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # figures without any spread
        value = float((stats.ttest_rel if paired else stats.ttest_ind)(first, second).pvalue)
    return 1.0 if math.isnan(value) else value


def published_difference(row: EntryRow, other: EntryRow, figure: str, dataset: str) -> float | None:
    """Return the paper's difference of two rows in percentage points; None where it prints none."""
    place = PAIRED_METRICS.index(figure)
    pair = (row.published.get(dataset), other.published.get(dataset))
    first, second = (found[place] if found else None for found in pair)
    return None if first is None or second is None else round(first - second, 1)


def _compare(
    row: EntryRow,
    other: EntryRow,
    runs: tuple[Sequence[Result], Sequence[Result]],
    dataset: str,
    tests: int,
) -> list[Verdict]:
    """Judge the three metrics of two rows."""
    first, second, shared = _match(*runs)
    pair = [run.tallies for run in first], [run.tallies for run in second]
    strictly = (1 - LEVEL) / tests
    usual, strict = (
        compare_paired(*pair, first[0].seen, resamples=RESAMPLES, level=level, paired_runs=shared)
        for level in (LEVEL, 1 - strictly)
    )
    found = []
    for difference, wide in zip(usual, strict, strict=True):
        name = difference.name
        values = [[run.scores[name] for run in method] for method in (first, second)]
        p_value = compare_seeds(*values, paired=shared)
        theirs = {run.seed: run.scores[name] for run in second}
        common = [(run.scores[name], theirs[run.seed]) for run in first if run.seed in theirs]
        verdict = Verdict(
            row=row.name,
            against=other.name,
            found=difference,
            published=published_difference(row, other, name, dataset),
            seeds=(len(first), len(second)),
            p_value=p_value,
            firm=wide.certain and (p_value is None or p_value < strictly),
            ahead=(sum(one > another for one, another in common), len(common)),
            shared=shared,
        )
        found.append(verdict)
    return found


def _match(
    first: Sequence[Result], second: Sequence[Result]
) -> tuple[list[Result], list[Result], bool]:
    """The runs to compare, and whether they are pairs: only common seeds, with shared weights."""
    ours, theirs = ({run.seed: run for run in runs} for runs in (first, second))
    common = sorted(ours.keys() & theirs.keys())
    if common and all(ours[seed].checkpoint == theirs[seed].checkpoint for seed in common):
        return [ours[seed] for seed in common], [theirs[seed] for seed in common], True
    return list(first), list(second), False
