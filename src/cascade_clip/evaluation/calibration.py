"""Measure S, U and hIoU for many calibrations in one pass over labelled images.

A calibration does not change the best seen and the best unseen class of a pixel, so two scores per
pixel suffice for every value. It can be chosen without labels of unseen classes, by a model trained
with some classes held out; they play the unseen ones. Letters: C classes, H x W pixels.
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
            ValueError: no value has a hIoU, as the seen or the unseen classes are absent.
        """
        hious = [-1.0 if found.hiou is None else found.hiou for found in self.scores]
        if max(hious) < 0:
            text = "there is no hIoU to choose by: seen or unseen classes are absent from these"
            raise DataError(f"{text} images; give more of them")
        return hious.index(max(hious))

    @property
    def chosen(self) -> float | None:
        """The value with the highest hIoU; None where no value has one."""
        return None if all(found.hiou is None for found in self.scores) else self.values[self.best]

    def to_json(self) -> dict[str, Any]:
        """Plain values; full precision. `chosen` is null where no value has a hIoU."""
        pairs = zip(self.values, self.scores, strict=True)
        rows = [{"calibration": value, **summarise(found)} for value, found in pairs]
        values = {name: getattr(self, name) for name in ("chosen", "usual", "images")}
        return {**values, "held_out": list(self.held_out), "rows": rows}


class HeldOut:
    """A dataset with only seen and held-out classes; pixels of other classes do not count."""

    def __init__(
        self, dataset: LabelledImages, seen: Sequence[str], held_out: Sequence[str]
    ) -> None:
        """Keep the classes in `seen` and, as unseen ones, in `held_out`; letter case is ignored."""
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
    """Return the scores of `evaluate` with each of many calibrations, from one pass.

    They equal those of separate evaluations up to rounding: a pixel whose two scores differ in the
    last digit of float32 could get the other label.

    Args:
        predictor: the model.
        dataset: images, labels and class names with their split, as for `evaluate`.
        values: what is subtracted from the scores of seen classes, in any order.
        held_out: names among the model's own unseen classes that play the unseen ones. Its other
            unseen classes neither compete nor count.
        text: text embeddings (C, D) of the data set's names to use instead of the text tower.
        progress: called with (done, total) after every image of this process.
        ranks: the processes that share the images; each returns the scores of all.

    Raises:
        ValueError: non-finite values, names that cannot be held out, all or no class names seen.
    """
    wrong = [value for value in values if not math.isfinite(value)]
    if wrong or not values:
        raise SettingError(f"calibration values must be numbers, got {wrong or 'none'}")
    ordered = tuple(sorted(set(map(float, values))))
    usual = choose_calibration(predictor, dataset.vocabulary, None)
    if held_out:
        chosen = hold_out(predictor, dataset, held_out)
        dataset, text = chosen, None if text is None else text[chosen.kept]
    vocabulary, bound = bind_dataset(predictor, dataset, 0.0, text)
    if bool((bound.seen == bound.seen[0]).all()):
        which = f"{'all' if bound.seen[0] else 'none'} of these class names"
        raise DataError(
            f"{which} had masks in the model's training, so a calibration changes nothing here"
        )
    matrices = [ConfusionMatrix(len(vocabulary), predictor.device) for _ in ordered]
    for index in ranks.share(len(dataset), progress):
        sample = dataset.sample(index)
        known, other = predictor.best_rows(sample.image, bound, (bound.seen, ~bound.seen))
        true = sample.labels.to(predictor.device)
        for value, matrix in zip(ordered, matrices, strict=True):
            labels = decide(known, other, bound, value)
            # a background that is no class of the data set
            matrix.update(labels.where(labels < matrix.classes, UNLABELLED), true)
    for matrix in matrices:
        matrix.counts = ranks.sum(matrix.counts)
    names, seen = vocabulary.names, vocabulary.seen_mask
    found = tuple(compute_metrics(matrix, names, seen) for matrix in matrices)
    unseen = vocabulary.unseen if held_out else ()
    return CalibrationSweep(ordered, found, len(dataset), usual, unseen)


def hold_out(predictor: Predictor, dataset: LabelledImages, names: Sequence[str]) -> HeldOut:
    """Return the dataset in which `names` play the unseen classes.

    Raises:
        ValueError: a name is no class of the dataset, or the model was trained with its masks.
    """
    there = {name.casefold() for name in dataset.vocabulary.names}
    hidden = {name.casefold() for name in predictor.vocabulary.unseen}
    missing = [name for name in names if name.casefold() not in there]
    if missing:
        raise DataError(f"held-out names {missing} are no class names of this data set")
    if training_protocol(predictor.checkpoint) == "supervised":
        text = "this model was trained with masks of every class, so nothing can be held out"
        raise DataError(f"{text}; train one with --data.unseen")
    learned = [name for name in names if name.casefold() not in hidden]
    if learned:
        wanted = ", ".join([*predictor.vocabulary.unseen, *learned])
        text = f"this model was trained without hiding {learned}; train another one for the choice,"
        raise DataError(f'{text} with --data.unseen "{wanted}"')
    return HeldOut(dataset, predictor.vocabulary.seen, names)


def decide(seen: LabelMap, other: LabelMap, bound: BoundClasses, value: float) -> Tensor:
    """Return the labels (H, W) when `value` is subtracted from the scores of the best seen rows.

    Of equal scores the first row wins, as it does where all rows compete.
    """
    lowered = seen.scores - value  # (H, W)
    ahead = (lowered > other.scores) | ((lowered == other.scores) & (seen.labels < other.labels))
    labels = torch.where(ahead, seen.labels, other.labels)  # (H, W), rows
    if bound.labels is not None:
        labels = bound.labels.to(labels.device)[labels]
    if bound.threshold is not None:
        best = torch.where(ahead, lowered, other.scores)  # (H, W)
        labels = torch.where(best < bound.threshold, bound.below, labels)
    return labels
