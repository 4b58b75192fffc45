"""What is done with scores of classes at every pixel (c classes of a chunk, H x W pixels)."""

from __future__ import annotations

import torch
from torch import Tensor

COARSE_SIDE = 128
"""Longer side of the score maps that a segmentation keeps of every class."""

COUNTABLE = 255
"""Classes that an 8-bit number can tell apart."""


def first_best(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of scores (c, ...) over classes, and the first class that has it: (...), (...) int64.

    What `Tensor.max` gives, with kernels that are several times as fast on a CPU, where its reduction over the first axis is slow.
    """
    count = len(scores)
    if scores.device.type != "cpu" or count > COUNTABLE:
        best, index = scores.max(dim=0)
        return best, index
    best = scores.amax(dim=0)  # (...)
    order = torch.arange(count, 0, -1, dtype=torch.uint8).view(-1, *(1,) * (scores.ndim - 1))
    first = ((scores == best).view(torch.uint8) * order).amax(dim=0)  # (...), c for the first class, 1 for the last, 0 for NaN
    return best, count - first.clamp(min=1).long()


def coarse_size(size: tuple[int, int]) -> tuple[int, int]:
    """The size with its longer side at most COARSE_SIDE."""
    factor = min(1.0, COARSE_SIDE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
