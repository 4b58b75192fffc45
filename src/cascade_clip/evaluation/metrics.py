"""Metrics of label maps, from one confusion matrix of a whole dataset (method section 8).

Letters: C classes; a row of the matrix is a true class, a column a predicted one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cascade_clip.vocabulary import IGNORED

Floats = NDArray[np.float64]
Labels = Tensor | NDArray[Any]


class ConfusionMatrix:
    """Counts of (true class, predicted class) over pixels that have a label.

    A pixel without a label counts nowhere, not even in the area of what was predicted there. A
    labelled pixel without a prediction (-1) is an error of its true class, and of no other.
    """

    def __init__(self, classes: int, device: torch.device | str = "cpu") -> None:
        if classes < 1:
            raise ValueError(f"a confusion matrix needs at least 1 class, got {classes}")
        self.classes = classes
        self.counts = torch.zeros(classes, classes + 1, dtype=torch.int64, device=device)
        """(C, C + 1); the last column counts labelled pixels without a prediction."""

    @property
    def matrix(self) -> Tensor:
        """The square part of the counts, (C, C)."""
        return self.counts[:, :-1]

    @property
    def unlabelled(self) -> Tensor:
        """Labelled pixels of each true class without a prediction, (C,)."""
        return self.counts[:, -1]

    def update(self, prediction: Labels, target: Labels, ignore: int = IGNORED) -> None:
        """Count one image.

        Args:
            prediction: class of each pixel, -1 for none; any shape, mostly (H, W).
            target: true class of each pixel in the same shape; -1 and `ignore` do not count.
            ignore: another value of `target` that does not count, such as 255.

        Raises:
            ValueError: the shapes differ, or a value is no class.
        """
        predicted = _as_labels(prediction, "prediction", self.counts.device)
        true = _as_labels(target, "target", self.counts.device)
        if predicted.shape != true.shape:
            shapes = f"{tuple(predicted.shape)} and {tuple(true.shape)}"
            raise ValueError(f"prediction and target must have one shape, got {shapes}")
        kept = (true != IGNORED) & (true != ignore)
        predicted, true = predicted[kept], true[kept]  # (P,), the labelled pixels
        self._check(true, 0, "target", f"{IGNORED} or ignore={ignore} where there is no label")
        self._check(predicted, IGNORED, "prediction", f"{IGNORED} where there is none")
        column = torch.where(predicted == IGNORED, self.classes, predicted)  # (P,)
        cell = true * (self.classes + 1) + column
        # (C, C + 1)
        self.counts += torch.bincount(cell, minlength=self.counts.numel()).view_as(self.counts)

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """The matrix of both sets of pixels, on the device of the first."""
        if other.classes != self.classes:
            text = f"cannot add matrices of {self.classes} and {other.classes} classes"
            raise ValueError(f"{text}; they must come from one class list")
        merged = ConfusionMatrix(self.classes, self.counts.device)
        merged.counts = self.counts + other.counts.to(self.counts.device)
        return merged

    def _check(self, labels: Tensor, lowest: int, name: str, fix: str) -> None:
        if labels.numel() == 0:
            return
        low, high = int(labels.min()), int(labels.max())
        if low < lowest or high >= self.classes:
            raise ValueError(
                f"{name} holds values {low}..{high}; give classes 0..{self.classes - 1}, and {fix}"
            )


def _as_labels(values: Labels, name: str, device: torch.device) -> Tensor:
    if isinstance(values, Tensor):
        labels = values
    else:  # torch does not calculate with unsigned numbers; what is not whole is refused below
        labels = torch.from_numpy(np.array(values, np.int64 if values.dtype.kind in "iu" else None))
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(
            f"{name} must hold whole numbers, got {labels.dtype}; take the argmax of scores first"
        )
    return labels.to(device, torch.int64)


@dataclass(frozen=True)
class Metrics:
    """Shares in 0..1 at full precision; a mean over no class at all is None."""

    names: tuple[str, ...]
    seen: tuple[bool, ...]
    iou: tuple[float, ...]
    """Per class; NaN for a class absent from both prediction and labels."""
    accuracy: tuple[float, ...]
    """Share of each class's pixels that are right; NaN for a class absent from the labels."""
    miou: float | None
    seen_miou: float | None
    """S; None without seen classes that are present."""
    unseen_miou: float | None
    """U; None without unseen classes that are present."""
    hiou: float | None
    """2SU / (S + U), 0 where both are 0; None where S or U is."""
    pixel_accuracy: float | None
    mean_accuracy: float | None
    absent: tuple[str, ...]
    """Classes absent from both prediction and labels: they are left out of the means."""

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.seen) == len(self.iou) == len(self.accuracy):
            found = f"{len(self.seen)}, {len(self.iou)}, {len(self.accuracy)}"
            raise ValueError(f"{len(self.names)} names need as many entries, got {found}")

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; what cannot be computed is null."""
        shares = (map(none_if_nan, values) for values in (self.iou, self.accuracy))
        rows = zip(self.names, self.seen, *shares, strict=True)
        means = ("miou", "seen_miou", "unseen_miou", "hiou", "pixel_accuracy", "mean_accuracy")
        return {
            **{name: getattr(self, name) for name in means},
            "absent": list(self.absent),
            "classes": [
                {"name": name, "seen": seen, "iou": iou, "accuracy": accuracy}
                for name, seen, iou, accuracy in rows
            ],
        }


def compute_metrics(
    confusion: ConfusionMatrix,
    names: Sequence[str],
    seen_mask: Sequence[bool] | NDArray[np.bool_] | Tensor,
) -> Metrics:
    """Read the metrics off a matrix whose classes have these names, seen where `seen_mask` is true.

    Raises:
        ValueError: the number of names or of `seen_mask` is not that of the matrix.
    """
    seen = tuple(bool(flag) for flag in seen_mask)
    if not len(names) == len(seen) == confusion.classes:
        found = f"{len(names)} names and {len(seen)} seen flags"
        raise ValueError(f"{found} do not fit a matrix of {confusion.classes} classes")
    right, labelled, union = count_pixels(confusion.counts.cpu().numpy())  # each (C,)
    iou, accuracy = divide_counts(right, union), divide_counts(right, labelled)
    flags = np.array(seen)
    seen_miou, unseen_miou = _mean(iou[flags]), _mean(iou[~flags])
    total = int(labelled.sum())
    return Metrics(
        names=tuple(names),
        seen=seen,
        iou=tuple(iou.tolist()),
        accuracy=tuple(accuracy.tolist()),
        miou=none_if_nan(_mean(iou)),
        seen_miou=none_if_nan(seen_miou),
        unseen_miou=none_if_nan(unseen_miou),
        hiou=none_if_nan(float(harmonic_mean(np.array(seen_miou), np.array(unseen_miou)))),
        pixel_accuracy=int(right.sum()) / total if total else None,
        mean_accuracy=none_if_nan(_mean(accuracy)),
        absent=tuple(name for name, area in zip(names, union, strict=True) if area == 0),
    )


def count_pixels(
    counts: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the pixels of each class that are right (the intersection), that are labelled, and
    that are labelled or predicted (the union), each (..., C), from counts (..., C, C + 1)."""
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    labelled = counts.sum(axis=-1)
    return right, labelled, labelled + counts[..., :-1].sum(axis=-2) - right


def divide_counts(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    """Return part / whole, such as intersection / union = IoU; NaN where `whole` is 0."""
    result = np.full(part.shape, math.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def mean_over_present(values: Floats, axis: int = -1) -> Floats:
    """Return the mean over the classes that are not NaN; NaN where all of them are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean over no class
        return np.asarray(np.nanmean(values, axis=axis))


def mean_iou(intersection: NDArray[Any], union: NDArray[Any], axis: int = -1) -> Floats:
    """Return the mean IoU over the classes whose union is not empty; NaN without any."""
    return mean_over_present(divide_counts(intersection, union), axis)


def harmonic_mean(first: Floats, second: Floats) -> Floats:
    """Return 2SU / (S + U), 0 where both are 0 and NaN where one of them is NaN."""
    both = first + second
    zero = np.where(np.isnan(both), math.nan, 0.0)
    return np.divide(2 * first * second, both, out=zero, where=both > 0)


def _mean(values: Floats) -> float:
    return float(mean_over_present(values[~np.isnan(values)]))


def none_if_nan(value: float) -> float | None:
    """Return a number as JSON can hold it."""
    return None if math.isnan(value) else float(value)
