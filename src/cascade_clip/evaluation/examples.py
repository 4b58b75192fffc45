"""The worst and the best images of an evaluation, a limited number of them.

Letters: C classes, H x W pixels of an image, h x w of its reduced copy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cascade_clip.data import Sample
from cascade_clip.errors import SettingError
from cascade_clip.evaluation.metrics import ConfusionMatrix, count_pixels, mean_iou

LONGEST_SIDE = 384
"""Side in pixels to which pictures are reduced."""


class ImageMetrics(NamedTuple):
    """Figures of one image, in 0..1."""

    miou: float
    """Mean IoU over the classes that are present in its labels."""
    pixel_accuracy: float


def image_metrics(matrix: ConfusionMatrix) -> ImageMetrics | None:
    """The figures of an image from its own matrix; None where no pixel has a label."""
    right, labelled, union = count_pixels(matrix.counts.cpu().numpy())  # each (C,)
    present = labelled > 0
    if not present.any():
        return None
    miou = float(mean_iou(right[present], union[present]))
    return ImageMetrics(miou, int(right.sum()) / int(labelled.sum()))


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image with its metrics, reduced to at most `LONGEST_SIDE` pixels on its longer side."""

    index: int
    """Its place in the data set."""
    name: str
    miou: float
    pixel_accuracy: float
    image: NDArray[np.uint8]  # (h, w, 3)
    truth: NDArray[np.int16]  # (h, w), -1 where there is no label
    prediction: NDArray[np.int16]  # (h, w), -1 where there is none

    @classmethod
    def make(cls, index: int, sample: Sample, labels: Tensor, figures: ImageMetrics) -> ImageRecord:
        """The record of a sample and the labels (H, W) that the model gives it."""
        height, width = sample.labels.shape
        scale = min(1.0, LONGEST_SIDE / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        whole = Image.fromarray(sample.image.permute(1, 2, 0).cpu().numpy())
        image = np.asarray(whole.resize(size, Image.Resampling.BILINEAR))
        truth, prediction = (_reduce(values, size) for values in (sample.labels, labels))
        return cls(index, sample.path.name, *figures, image, truth, prediction)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the picture."""
        names = ("index", "name", "miou", "pixel_accuracy")
        return {name: getattr(self, name) for name in names}


class ExampleImages:
    """At most `keep` worst and `keep` best images; of equal mIoUs the earlier one is worse."""

    def __init__(self, keep: int) -> None:
        if keep < 0:
            raise SettingError(f"the number of worst and best images must be 0 or more, got {keep}")
        self.keep = keep
        """Most images of each kind."""
        self._worst: list[ImageRecord] = []
        self._best: list[ImageRecord] = []

    def wants(self, index: int, miou: float) -> bool:
        """Whether an image would stay."""
        if len(self._worst) < self.keep:
            return True
        if not self.keep:
            return False
        place = (miou, index)
        return place < _place(self._worst[-1]) or place > _place(self._best[-1])

    def add(self, record: ImageRecord) -> None:
        """Add an image, unless it is here already, and drop those that it beats."""
        if any(record.index == other.index for other in self.records):
            return
        self._worst = sorted([*self._worst, record], key=_place)[: self.keep]
        self._best = sorted([*self._best, record], key=_place, reverse=True)[: self.keep]

    def extend(self, records: Iterable[ImageRecord]) -> None:
        """Take in the images of another process."""
        for record in records:
            self.add(record)

    @property
    def records(self) -> list[ImageRecord]:
        """Every image that is held, once."""
        worst = {record.index for record in self._worst}
        return [*self._worst, *(record for record in self._best if record.index not in worst)]

    @property
    def worst(self) -> tuple[ImageRecord, ...]:
        """The lowest mIoU, lowest first; half of the images if fewer than twice `keep`."""
        return tuple(self._worst[: (len(self.records) + 1) // 2])

    @property
    def best(self) -> tuple[ImageRecord, ...]:
        """The highest mIoU, highest first; none of `worst`."""
        return tuple(self._best[: len(self.records) // 2])


def _place(record: ImageRecord) -> tuple[float, int]:
    return record.miou, record.index


def _reduce(labels: Tensor, size: tuple[int, int]) -> NDArray[np.int16]:
    """Labels (H, W) at another size (width, height), by the nearest pixel."""
    image = Image.fromarray(labels.cpu().numpy().astype(np.int32))
    return np.asarray(image.resize(size, Image.Resampling.NEAREST)).astype(np.int16)
