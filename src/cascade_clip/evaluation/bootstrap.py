"""How sure a difference between two models is: the paired bootstrap over images (Efron and
Tibshirani 1993, percentile intervals).

A test set is a sample of images. Drawing as many images again, with replacement and the same ones
for both models, shows how much the difference between their figures depends on which images
happened to be in it. Letters: N images, C classes, R resamples, M runs of one method (such as
seeds).
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
    """Pixel counts of one model on every image, from which the figures over any choice of images
    follow."""

    intersection: NDArray[np.int64]
    """(N, C): pixels of a class that are predicted as it."""
    union: NDArray[np.int64]
    """(N, C): labelled pixels that are of a class or predicted as it."""

    def __post_init__(self) -> None:
        if self.intersection.ndim != 2 or self.intersection.shape != self.union.shape:
            raise ValueError(
                f"tallies must both have shape (images, classes), got {self.intersection.shape} and"
                f" {self.union.shape}"
            )

    @classmethod
    def of(cls, counts: NDArray[np.int64]) -> Tallies:
        """From a confusion matrix of every image, (N, C, C + 1), whose last column has no
        prediction."""
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
        return {
            "figure": self.name,
            "first": self.first,
            "second": self.second,
            "difference": self.difference,
            "interval": [self.low, self.high],
            "wins": self.wins,
            "losses": self.losses,
        }


def figures(intersection: Floats, union: Floats, seen: NDArray[np.bool_]) -> Floats:
    """S, U and hIoU, (..., 3), of summed counts (..., C); a class without pixels is left out, a
    mean over none is NaN."""
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
        paired_runs: draw the runs of both methods together, where run i of the one belongs to run i
            of the other, such as two ways of inference with the same weights.

    Raises:
        ValueError: no runs, tallies of other images or classes, a level or a number of resamples
            out of range, pairs without a partner.
    """
    _check(first, second, seen, resamples, level)
    if paired_runs and len(first) != len(second):
        raise ValueError(
            f"paired runs must be as many for both methods, got {len(first)} and {len(second)}"
        )
    generator = np.random.default_rng(seed)
    images = len(first[0].union)
    drawn = []  # R differences (3,)
    for start in range(0, resamples, _AT_ONCE):
        count = min(_AT_ONCE, resamples - start)
        # (r, N)
        weights = generator.multinomial(images, np.full(images, 1 / images), size=count).astype(
            np.float64
        )
        # each (r, M)
        runs = [
            generator.integers(len(method), size=(count, len(method))) for method in (first, second)
        ]
        if paired_runs:
            runs[1] = runs[0]
        means = [
            _mean_of_runs(method, weights, chosen, seen)
            for method, chosen in zip((first, second), runs, strict=True)
        ]
        drawn.append(means[0] - means[1])
    differences = np.concatenate(drawn)  # (R, 3)
    whole = np.ones((1, images))
    # each (3,)
    points = [
        _mean_of_runs(method, whole, np.arange(len(method))[None], seen)[0]
        for method in (first, second)
    ]
    return tuple(
        _summarise(name, points[0][index], points[1][index], differences[:, index], level)
        for index, name in enumerate(PAIRED_METRICS)
    )


def _mean_of_runs(
    method: Sequence[Tallies], weights: Floats, chosen: NDArray[np.int64], seen: NDArray[np.bool_]
) -> Floats:
    """Figures (r, 3) with every image counted as often as `weights` (r, N) says, as means over the
    `chosen` runs (r, M)."""
    # (r, M, 3)
    every = np.stack(
        [figures(weights @ run.intersection, weights @ run.union, seen) for run in method], axis=1
    )
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
        raise ValueError(
            f"runs must rest on the same images and classes, got {sorted(shapes)} and {len(seen)}"
            " seen flags"
        )
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
    """Segment every image as `evaluate` does; returns the counts of each and the class names with
    the split that holds.

    Only two numbers a class and image are kept, so that large data sets fit into memory. `ranks`
    are the processes that share the images; each returns all counts.
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
