"""Choosing the score below which a pixel is none of the class names, on a few labelled images.

Letters: C classes of the data set, the background among them; K thresholds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cascade_clip.data import LabelledImages
from cascade_clip.errors import DataError
from cascade_clip.evaluation.metrics import mean_iou
from cascade_clip.evaluation.ranks import Ranks
from cascade_clip.inference import BACKGROUND, Predictor
from cascade_clip.vocabulary import IGNORED, Vocabulary

STEPS = 200
"""Thresholds that are compared, evenly spaced over 0..1."""


@dataclass(frozen=True)
class ThresholdChoice:
    """The threshold with the highest mIoU, and how mIoU runs over all of them."""

    threshold: float
    miou: float
    """At that threshold, over all classes and the background."""
    miou_without: float
    """Without a threshold: no pixel is background."""
    thresholds: NDArray[np.float64]
    """(K,), rising from 0."""
    mious: NDArray[np.float64]
    """(K,)"""
    images: int
    calibration: float
    """What was subtracted from the scores of seen names."""


def choose_threshold(
    predictor: Predictor,
    dataset: LabelledImages,
    *,
    calibration: float = 0.0,
    text: Tensor | None = None,
    ignored_is_background: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ThresholdChoice:
    """The threshold that suits labelled images best.

    Args:
        predictor: the model.
        dataset: images with labels; one class is `background` unless `ignored_is_background`.
        calibration: subtracted from the scores of seen names, as in the later use.
        text: embeddings (C, D) of the data set's class names, to use instead of the text tower.
        ignored_is_background: pixels without a label are background (as in VOC), not unknown.
        progress: called with (done, total) after every image.

    Raises:
        ValueError: nothing says which pixels are background.
    """
    vocabulary = dataset.vocabulary
    names = [name.casefold() for name in vocabulary.names]
    if BACKGROUND not in names:
        if not ignored_is_background:
            raise DataError(
                f"no class of this data set is named {BACKGROUND!r}; name it in the class list, or"
                " say that pixels without a label are background (--ignored-is-background)"
            )
        vocabulary = _with_background(vocabulary)
        names.append(BACKGROUND)
        # a row that does not compete
        text = None if text is None else torch.cat([text, text.new_zeros(1, text.shape[1])])
    place = names.index(BACKGROUND)
    # the name itself does not compete, and no score is as low
    bound = predictor.bind(vocabulary, calibration, text, threshold=-1.0)
    # true class, winning class, bin of its score
    counts = torch.zeros(len(names), len(names), STEPS, dtype=torch.int64)
    for index in Ranks().share(len(dataset), progress):
        sample = dataset.sample(index)
        found, labels = predictor.label_map(sample.image, bound), sample.labels
        if ignored_is_background:
            labels = torch.where(labels == IGNORED, place, labels)
        counts += count_scores(labels, found.labels.cpu(), found.scores.cpu(), len(names))
    mious = mious_by_threshold(counts.numpy(), place)
    levels, best = np.arange(STEPS) / STEPS, int(mious.argmax())
    chosen = float(levels[best]), float(mious[best]), float(mious[0])
    return ThresholdChoice(*chosen, levels, mious, len(dataset), bound.calibration)


def count_scores(labels: Tensor, winners: Tensor, scores: Tensor, classes: int) -> Tensor:
    """Count labelled pixels (H, W) by true class, best class and bin of its score: (C, C, K)."""
    kept = labels != IGNORED
    bins = (scores[kept] * STEPS).floor().long().clamp(0, STEPS - 1)
    cells = (labels[kept] * classes + winners[kept]) * STEPS + bins
    return torch.bincount(cells, minlength=classes * classes * STEPS).view(classes, classes, STEPS)


def mious_by_threshold(counts: NDArray[np.int64], background: int) -> NDArray[np.float64]:
    """Return the mIoU (K,) with lower scores as background, from counts (C, C, K).

    A class absent from both labels and predictions is left out of the mean.
    """
    # (C, C, K): winners at or above each threshold
    kept = counts[..., ::-1].cumsum(axis=-1)[..., ::-1].copy()
    lost = counts.sum(axis=(1, 2))[:, None] - kept.sum(axis=1)  # (C, K): pixels that fall below
    kept[:, background] += lost
    hits = np.einsum("cck->ck", kept)  # (C, K)
    union = kept.sum(axis=0) + kept.sum(axis=1) - hits  # (C, K)
    return mean_iou(hits, union, axis=0)


def _with_background(vocabulary: Vocabulary) -> Vocabulary:
    """The class names and `background` after them."""
    return Vocabulary(
        (*vocabulary.names, BACKGROUND),
        (*vocabulary.synonyms, (BACKGROUND,)),
        (*vocabulary.colors, (0, 0, 0)),
        unseen=vocabulary.unseen,
    )
