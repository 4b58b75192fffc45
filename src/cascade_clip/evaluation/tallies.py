"""What a model gets right on every single image of a data set, collected once, for the
bootstrap."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cascade_clip.data.registry import LabelledImages
from cascade_clip.evaluation.bootstrap import Tallies
from cascade_clip.evaluation.evaluator import ALONE, bind_classes, count_image
from cascade_clip.evaluation.examples import Gallery
from cascade_clip.evaluation.ranks import Ranks
from cascade_clip.inference.predictor import Predictor
from cascade_clip.vocabulary import Vocabulary


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
    vocabulary, target = bind_classes(predictor, dataset, calibration, text)
    nothing = Gallery(0)
    share = ranks.share(len(dataset))
    counts = torch.zeros(len(dataset), 2, len(vocabulary), dtype=torch.int64)
    for done, index in enumerate(share, 1):
        matrix = count_image(predictor, target, dataset, index, nothing).counts.cpu().numpy()
        one = Tallies.of(matrix[None])
        counts[index] = torch.from_numpy(np.stack([one.intersection[0], one.union[0]]))
        if progress is not None:
            progress(done, len(share))
    found = ranks.sum(counts).numpy()
    return Tallies(found[:, 0], found[:, 1]), vocabulary
