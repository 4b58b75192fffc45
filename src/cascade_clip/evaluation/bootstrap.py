"""Test whether two models differ significantly: the paired bootstrap over images (Efron and
Tibshirani 1993, percentile intervals).

Drawing as many images again, with replacement and the same ones for both models, shows how much the
difference depends on the test images. Letters: N images, C classes, R resamples, M runs (seeds).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cascade_clip.data import LabelledImages
from cascade_clip.errors import DataError, SettingError
from cascade_clip.evaluation.evaluator import ALONE, bind_dataset, count_image
from cascade_clip.evaluation.examples import ExampleImages
from cascade_clip.evaluation.metrics import (
    Floats,
    count_pixels,
    divide_counts,
    harmonic_mean,
    mean_over_present,
    none_if_nan,
)
from cascade_clip.evaluation.ranks import Ranks
from cascade_clip.inference import Predictor
from cascade_clip.results import PAIRED_METRICS
from cascade_clip.vocabulary import Vocabulary

_AT_ONCE = 100
"""Resamples whose sums are held at once."""


@dataclass(frozen=True, eq=False)
class Tallies:
    """Pixel counts of one model on every image: they give the metrics of any choice of images."""

    intersection: NDArray[np.int64]
    """(N, C): pixels of a class that are predicted as it."""
    union: NDArray[np.int64]
    """(N, C): labelled pixels that are of a class or predicted as it."""

    def __post_init__(self) -> None:
        if self.intersection.ndim != 2 or self.intersection.shape != self.union.shape:
            found = f"{self.intersection.shape} and {self.union.shape}"
            raise ValueError(f"tallies must both have shape (images, classes), got {found}")

    @classmethod
    def of(cls, counts: NDArray[np.int64]) -> Tallies:
        """Read the counts off the matrices (see `ConfusionMatrix`) of all images, (N, C, C + 1)."""
        right, _, union = count_pixels(counts)
        return cls(right, union)


@dataclass(frozen=True)
class Difference:
    """One figure of two methods, in 0..1; None where it cannot be computed."""

    name: str
    first: float | None
    second: float | None
    low: float | None
    """Lower end of the interval of first minus second."""
    high: float | None
    wins: float
    """Share of the resamples in which the first is ahead."""
    losses: float = 0.0
    """Share of the resamples in which the second is ahead; in the rest they are equal."""

    @property
    def difference(self) -> float | None:
        """First minus second."""
        return None if self.first is None or self.second is None else self.first - self.second

    @property
    def certain(self) -> bool:
        """Whether the interval does not hold 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        points = {name: getattr(self, name) for name in ("first", "second", "difference")}
        shares = {"wins": self.wins, "losses": self.losses}
        return {"figure": self.name, **points, "interval": [self.low, self.high], **shares}


def figures(intersection: Floats, union: Floats, seen: NDArray[np.bool_]) -> Floats:
    """Return S, U, hIoU (..., 3) of counts (..., C) over classes with pixels; NaN without any."""
    iou = divide_counts(intersection, union)  # (..., C)
    first, second = mean_over_present(iou[..., seen]), mean_over_present(iou[..., ~seen])
    return np.stack([first, second, harmonic_mean(first, second)], axis=-1)


def compare_paired(
    first: Sequence[Tallies],
    second: Sequence[Tallies],
    seen: NDArray[np.bool_],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    paired_runs: bool = False,
) -> tuple[Difference, ...]:
    """The differences in S, U and hIoU between two methods, with percentile intervals.

    Args:
        first: the runs of a method, mostly one, all on the same images.
        second: the runs of the other method on these images. With several runs, a resample draws
            runs too, for each method by itself, and a method's figure is the mean over the runs.
        seen: which classes are seen, bool (C,).
        resamples: how often images are drawn again.
        level: share of the resamples that the interval holds.
        seed: of the draws.
        paired_runs: draw the runs of both methods together, where run i of one belongs to run i of
            the other, such as two ways of inference with the same weights.

    Raises:
        ValueError: no runs, tallies of other images or classes, a level or a number of resamples
            out of range, pairs without a partner.
    """
    _check(first, second, seen, resamples, level)
    if paired_runs and len(first) != len(second):
        found = f"{len(first)} and {len(second)}"
        raise ValueError(f"paired runs must be as many for both methods, got {found}")
    generator = np.random.default_rng(seed)
    images = len(first[0].union)
    shares = np.full(images, 1 / images)
    drawn = []  # R differences (3,)
    for start in range(0, resamples, _AT_ONCE):
        count = min(_AT_ONCE, resamples - start)
        weights = generator.multinomial(images, shares, size=count).astype(np.float64)  # (r, N)
        runs = [generator.integers(len(own), size=(count, len(own))) for own in (first, second)]
        if paired_runs:
            runs[1] = runs[0]
        before = _mean_of_runs(first, weights, runs[0], seen)  # (r, 3)
        drawn.append(before - _mean_of_runs(second, weights, runs[1], seen))
    differences = np.concatenate(drawn)  # (R, 3)
    whole = np.ones((1, images))
    points = [  # (3,) each
        _mean_of_runs(own, whole, np.arange(len(own))[None], seen)[0] for own in (first, second)
    ]
    return tuple(
        _summarise(name, points[0][index], points[1][index], differences[:, index], level)
        for index, name in enumerate(PAIRED_METRICS)
    )


def _mean_of_runs(
    method: Sequence[Tallies], weights: Floats, chosen: NDArray[np.int64], seen: NDArray[np.bool_]
) -> Floats:
    """Return the mean metrics (r, 3) of the `chosen` runs (r, M) with image weights (r, N)."""
    runs = [figures(weights @ run.intersection, weights @ run.union, seen) for run in method]
    every = np.stack(runs, axis=1)  # (r, M, 3)
    mean: Floats = np.take_along_axis(every, chosen[..., None], axis=1).mean(axis=1)
    return mean


def _summarise(
    name: str, first: float, second: float, differences: Floats, level: float
) -> Difference:
    known = differences[~np.isnan(differences)]
    points = none_if_nan(first), none_if_nan(second)
    if not known.size:
        return Difference(name, *points, None, None, 0.0)
    low, high = map(float, np.quantile(known, [(1 - level) / 2, (1 + level) / 2]))
    wins, losses = float((known > 0).mean()), float((known < 0).mean())
    return Difference(name, *points, low, high, wins, losses)


def _check(
    first: Sequence[Tallies],
    second: Sequence[Tallies],
    seen: NDArray[np.bool_],
    resamples: int,
    level: float,
) -> None:
    if not first or not second:
        raise ValueError("each method needs at least one run")
    shapes = {run.union.shape for run in (*first, *second)}
    if len(shapes) > 1 or next(iter(shapes))[1] != len(seen):
        found = f"{sorted(shapes)} and {len(seen)} seen flags"
        raise ValueError(f"runs must have the same images and classes, got {found}")
    if not next(iter(shapes))[0]:
        raise DataError("there are no images to compare on")
    if resamples < 1:
        raise SettingError(f"the number of resamples must be at least 1, got {resamples}")
    if not 0 < level < 1:
        raise SettingError(f"the level must lie between 0 and 1, got {level}")


def collect_tallies(
    predictor: Predictor,
    dataset: LabelledImages,
    calibration: float | None = None,
    text: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Tallies, Vocabulary]:
    """Segment images as `evaluate` does; return the counts of each, and the class names used.

    Two numbers per class and image are kept, so that large datasets fit into memory. `ranks` are
    the processes that share the images; each returns all counts.
    """
    vocabulary, bound = bind_dataset(predictor, dataset, calibration, text)
    no_examples = ExampleImages(0)
    counts = torch.zeros(len(dataset), 2, len(vocabulary), dtype=torch.int64)
    for index in ranks.share(len(dataset), progress):
        matrix = count_image(predictor, bound, dataset, index, no_examples).counts.cpu().numpy()
        one = Tallies.of(matrix[None])
        counts[index] = torch.from_numpy(np.stack([one.intersection[0], one.union[0]]))
    found = ranks.sum(counts).numpy()
    return Tallies(found[:, 0], found[:, 1]), vocabulary
