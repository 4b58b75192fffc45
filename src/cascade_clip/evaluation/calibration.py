"""How S, U and hIoU depend on what is subtracted from the scores of seen classes, from one pass
over labelled images.

Subtracting the same number from every seen class leaves the best seen and the best unseen class of
a pixel what they are: two scores a pixel decide for every value. The value can be chosen without
labels of unseen classes, by a model that was trained with a few of the seen classes hidden, which
then play the unseen ones. Letters: C classes, H x W pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cascade_clip.data import LabelledImages, Sample
from cascade_clip.errors import DataError, SettingError
from cascade_clip.evaluation.evaluator import (
    ALONE,
    bind_dataset,
    choose_calibration,
    summarise,
    training_protocol,
)
from cascade_clip.evaluation.metrics import ConfusionMatrix, Metrics, compute_metrics
from cascade_clip.evaluation.ranks import Ranks
from cascade_clip.inference import BoundClasses, LabelMap, Predictor
from cascade_clip.results import UNLABELLED
from cascade_clip.vocabulary import IGNORED

VALUES = tuple(step / 40 for step in range(21))
"""Values that are compared unless others are given: 0, 0.025, ..., 0.5."""


@dataclass(frozen=True)
class CalibrationSweep:
    """Scores of one model on one data set for every value."""

    values: tuple[float, ...]
    """What is subtracted from the scores of seen classes, rising."""
    scores: tuple[Metrics, ...]
    """One for each value."""
    images: int
    usual: float
    """What `evaluate` subtracts on the data set's class names unless told otherwise."""
    held_out: tuple[str, ...] = ()
    """Names that played the unseen classes; empty: the unseen classes themselves."""

    @property
    def best(self) -> int:
        """Index of the first value with the highest hIoU.

        Raises:
            ValueError: no value has a hIoU, as no pixel is labelled with, or predicted as, a seen
                or an unseen class.
        """
        known = [
            (-found.hiou, index)
            for index, found in enumerate(self.scores)
            if found.hiou is not None
        ]
        if not known:
            raise DataError(
                "there is no hIoU to choose by: seen or unseen classes are absent from these"
                " images; give more of them"
            )
        return min(known)[1]

    @property
    def chosen(self) -> float | None:
        """The value with the highest hIoU; None where no value has one."""
        return None if all(found.hiou is None for found in self.scores) else self.values[self.best]

    def to_json(self) -> dict[str, Any]:
        """Plain values; full precision. `chosen` is null where no value has a hIoU."""
        return {
            "chosen": self.chosen,
            "usual": self.usual,
            "images": self.images,
            "held_out": list(self.held_out),
            "rows": [
                {"calibration": value, **summarise(found)}
                for value, found in zip(self.values, self.scores, strict=True)
            ],
        }


class HeldOut:
    """A data set whose names are those that a model has seen and a few held-out ones; pixels of all
    other classes do not count."""

    def __init__(
        self, dataset: LabelledImages, seen: Sequence[str], held_out: Sequence[str]
    ) -> None:
        """Keep the classes among `seen` and `held_out`, upper and lower case being the same; the
        latter become the unseen ones."""
        whole = dataset.vocabulary
        hidden = {name.casefold() for name in held_out}
        wanted = hidden | {name.casefold() for name in seen}
        self.dataset = dataset
        self.kept = [index for index, name in enumerate(whole.names) if name.casefold() in wanted]
        """Rows of the whole class list that are left."""
        kept = whole.take(self.kept)
        self.vocabulary = kept.with_unseen(name for name in kept.names if name.casefold() in hidden)
        # the last entry is that of pixels without a label, -1
        self.table = torch.full((len(whole) + 1,), IGNORED)
        self.table[self.kept] = torch.arange(len(self.kept))

    def __len__(self) -> int:
        return len(self.dataset)

    def sample(self, index: int) -> Sample:
        """One image with the labels that are left."""
        found = self.dataset.sample(index)
        return Sample(found.image, self.table[found.labels], found.path)


def sweep_calibration(
    predictor: Predictor,
    dataset: LabelledImages,
    values: Sequence[float] = VALUES,
    *,
    held_out: Sequence[str] = (),
    text: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> CalibrationSweep:
    """The scores that `evaluate` gives with every one of many calibrations, from one pass.

    They are those of separate evaluations up to the rounding of float32: only a pixel whose two
    scores differ by a last digit could go the other way.

    Args:
        predictor: the model.
        dataset: images, labels and class names with their split, as for `evaluate`.
        values: what is subtracted from the scores of seen classes, in any order.
        held_out: names among the model's own unseen classes that play the unseen ones. Its other
            unseen classes neither compete nor count, so that labels of the held-out and of the seen
            classes alone decide.
        text: text embeddings (C, D) of the data set's names to use instead of the text tower.
        progress: called with (done, total) after every image of this process.
        ranks: the processes that share the images; each returns the scores of all.

    Raises:
        ValueError: values that are no numbers, names that cannot be held out, or class names that
            are all seen, or none.
    """
    ordered = _check_values(values)
    usual = choose_calibration(predictor, dataset.vocabulary, None)
    if held_out:
        chosen = hold_out(predictor, dataset, held_out)
        dataset, text = chosen, None if text is None else text[chosen.kept]
    vocabulary, bound = bind_dataset(predictor, dataset, 0.0, text)
    if bool(bound.seen.all()) or not bool(bound.seen.any()):
        known = "all" if bool(bound.seen.all()) else "none"
        raise DataError(
            f"{known} of these class names had masks in the model's training, so a calibration"
            " changes nothing here"
        )
    matrices = [ConfusionMatrix(len(vocabulary), predictor.device) for _ in ordered]
    for index in ranks.share(len(dataset), progress):
        _count(predictor, bound, dataset.sample(index), ordered, matrices)
    for matrix in matrices:
        matrix.counts = ranks.sum(matrix.counts)
    found = tuple(
        compute_metrics(matrix, vocabulary.names, vocabulary.seen_mask) for matrix in matrices
    )
    return CalibrationSweep(
        ordered, found, len(dataset), usual, vocabulary.unseen if held_out else ()
    )


def hold_out(predictor: Predictor, dataset: LabelledImages, names: Sequence[str]) -> HeldOut:
    """The data set in which `names` play the unseen classes.

    Raises:
        ValueError: a name that is no class of the data set, or whose masks the model was trained
            with.
    """
    there = {name.casefold() for name in dataset.vocabulary.names}
    hidden = {name.casefold() for name in predictor.vocabulary.unseen}
    missing = [name for name in names if name.casefold() not in there]
    if missing:
        raise DataError(f"held-out names {missing} are no class names of this data set")
    if training_protocol(predictor.checkpoint) == "supervised":
        raise DataError(
            "this model was trained with masks of every class, so nothing can be held out; train"
            " one with --data.unseen"
        )
    learned = [name for name in names if name.casefold() not in hidden]
    if learned:
        wanted = ", ".join([*predictor.vocabulary.unseen, *learned])
        raise DataError(
            f"this model was trained without hiding {learned}; train another one for the choice,"
            f' with --data.unseen "{wanted}"'
        )
    return HeldOut(dataset, predictor.vocabulary.seen, names)


def decide(seen: LabelMap, other: LabelMap, bound: BoundClasses, value: float) -> Tensor:
    """Labels (H, W) when `value` is subtracted from the best seen row of every pixel, and the
    better of both rows wins.

    Of equal scores the first row wins, as it does where all rows compete.
    """
    lowered = seen.scores - value  # (H, W)
    ahead = (lowered > other.scores) | ((lowered == other.scores) & (seen.labels < other.labels))
    labels = torch.where(ahead, seen.labels, other.labels)  # (H, W), rows
    if bound.labels is not None:
        labels = bound.labels.to(labels.device)[labels]
    if bound.threshold is not None:
        labels = torch.where(
            torch.where(ahead, lowered, other.scores) < bound.threshold, bound.below, labels
        )
    return labels


def _count(
    predictor: Predictor,
    bound: BoundClasses,
    sample: Sample,
    values: Sequence[float],
    matrices: Sequence[ConfusionMatrix],
) -> None:
    """Add one image to the matrix of every value."""
    seen, other = predictor.best_rows(sample.image, bound, (bound.seen, ~bound.seen))
    true = sample.labels.to(predictor.device)
    for value, matrix in zip(values, matrices, strict=True):
        labels = decide(seen, other, bound, value)
        # a background that is no class of the data set
        matrix.update(labels.where(labels < matrix.classes, UNLABELLED), true)


def _check_values(values: Sequence[float]) -> tuple[float, ...]:
    wrong = [value for value in values if not math.isfinite(value)]
    if wrong or not values:
        raise SettingError(f"calibration values must be numbers, got {wrong or 'none'}")
    return tuple(sorted(set(map(float, values))))
