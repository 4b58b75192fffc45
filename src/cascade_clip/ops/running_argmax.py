"""What is done with scores of classes at every pixel (c classes of a chunk, H x W pixels)."""

import torch
from torch import Tensor

COARSE_SIDE = 128
"""Longer side of the score maps that a segmentation keeps of every class."""

_FEW = 0.1
"""Share of the pixels below which they are looked at one by one."""

COUNTABLE = 255
"""Classes that an 8-bit number can tell apart."""


def first_best(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of scores (c, ...) and the first class that has it, whole numbers (...).

    What `Tensor.max` gives, with kernels that are several times as fast on a CPU, where its
    reduction over the first axis is slow.
    """
    count = len(scores)
    if scores.device.type != "cpu" or count > COUNTABLE:
        best, index = scores.max(dim=0)
        return best, index
    if count == 1:
        # a running best writes into it
        return scores[0].clone(), torch.zeros_like(scores[0], dtype=torch.int32)
    best = scores.amax(dim=0)  # (...)
    order = torch.arange(count, 0, -1, dtype=torch.uint8).view(-1, *(1,) * (scores.ndim - 1))
    # (...), c for the first class, 1 for the last, 0 for NaN
    first = ((scores == best).view(torch.uint8) * order).amax(dim=0)
    return best, first.clamp_(min=1).int().neg_().add_(count)


class RunningBest:
    """The best row of every pixel over chunks of rows; of equal scores the first row has it."""

    scores: Tensor
    """(H, W), of the best row"""

    def __init__(self) -> None:
        self.count = 0

    @property
    def rows(self) -> Tensor:
        """(H, W), int64: which row it is, counted from 0 over all chunks."""
        return self._rows.long()

    def add(self, scores: Tensor) -> None:
        """Take in the next rows' scores (c, H, W); c may be 0."""
        start, self.count = self.count, self.count + len(scores)
        if not len(scores):
            return
        if start == 0:
            self.scores, index = first_best(scores)  # (H, W)
            # half the memory of int64: these are the largest arrays of a picture
            self._rows = index.int()
        elif scores.device.type == "cpu":
            self._add_where_better(scores, start)
        else:
            high, index = first_best(scores)  # (H, W)
            wins = high > self.scores
            torch.where(wins, high, self.scores, out=self.scores)
            torch.where(wins, index.int().add_(start), self._rows, out=self._rows)

    def _add_where_better(self, scores: Tensor, start: int) -> None:
        """Find the best row only where the chunk wins: in later chunks such pixels are few."""
        high = scores.amax(dim=0)  # (H, W)
        wins = high > self.scores
        share = int(wins.count_nonzero()) / wins.numel()
        if share > _FEW:
            _, index = first_best(scores)
            torch.where(wins, high, self.scores, out=self.scores)
            torch.where(wins, index.int().add_(start), self._rows, out=self._rows)
        elif share:
            y, x = wins.nonzero(as_tuple=True)  # (k,) each
            best, index = first_best(scores[:, y, x])  # (k,)
            self.scores[y, x], self._rows[y, x] = best, index.int().add_(start)


def best_by_label(maps: Tensor, labels: Tensor | None, count: int) -> Tensor:
    """Score maps (R, h, w) to those of labels (C, h, w): the best row of each, 0 if none."""
    if labels is None:
        return maps
    found = maps.new_full((count, *maps.shape[1:]), float("-inf"))
    index = labels.to(maps.device)[:, None, None].expand_as(maps)
    found.scatter_reduce_(0, index, maps, "amax")
    return torch.where(found.isinf(), 0, found)


def coarse_size(size: tuple[int, int]) -> tuple[int, int]:
    """The size with its longer side at most COARSE_SIDE."""
    factor = min(1.0, COARSE_SIDE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
