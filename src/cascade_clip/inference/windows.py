"""Square windows that cover an image of any size (method section 7)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Window(NamedTuple):
    """One window of the resized image; it may stick out right and below where the image is
    smaller."""

    top: int
    left: int
    height: int
    width: int


def list_windows(canvas: tuple[int, int], side: int, stride: int) -> tuple[Window, ...]:
    """Windows that cover an image, row by row; the last one in each direction is shifted back
    inside."""
    tops, lefts = _starts(canvas[0], side, stride), _starts(canvas[1], side, stride)
    return tuple(
        Window(top, left, min(side, canvas[0]), min(side, canvas[1]))
        for top in tops
        for left in lefts
    )


def cut_windows(image: Tensor, windows: tuple[Window, ...], side: int) -> Tensor:
    """The pixels of some windows of an image (3, H, W), zero where they stick out: (windows, 3,
    side, side)."""
    parts = [
        image[:, top : top + height, left : left + width] for top, left, height, width in windows
    ]
    return torch.stack(
        [F.pad(part, (0, side - part.shape[-1], 0, side - part.shape[-2])) for part in parts]
    )


def _starts(length: int, side: int, stride: int) -> list[int]:
    count = max(math.ceil((length - side) / stride), 0) + 1
    return [max(min(index * stride, length - side), 0) for index in range(count)]
