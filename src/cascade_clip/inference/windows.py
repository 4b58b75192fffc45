"""Square windows that cover an image of any size (method section 7)."""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Window(NamedTuple):
    """One window of the resized image; it sticks out to the right or below a smaller image."""

    top: int
    left: int
    height: int
    width: int


def list_windows(canvas: tuple[int, int], side: int, stride: int) -> tuple[Window, ...]:
    """List the windows of an image row by row; the last of each row and column is shifted back."""
    tops, lefts = (_starts(length, side, stride) for length in canvas)
    height, width = min(side, canvas[0]), min(side, canvas[1])
    return tuple(Window(top, left, height, width) for top, left in itertools.product(tops, lefts))


def cut_windows(image: Tensor, windows: tuple[Window, ...], side: int) -> Tensor:
    """Cut windows from an image (3, H, W), zero where they stick out: (n, 3, side, side)."""
    parts = []
    for top, left, height, width in windows:
        part = image[:, top : top + height, left : left + width]
        parts.append(F.pad(part, (0, side - part.shape[-1], 0, side - part.shape[-2])))
    return torch.stack(parts)


def _starts(length: int, side: int, stride: int) -> list[int]:
    count = max(math.ceil((length - side) / stride), 0) + 1
    return [max(min(index * stride, length - side), 0) for index in range(count)]
