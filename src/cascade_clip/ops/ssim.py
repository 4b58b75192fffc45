"""Structural similarity of two maps: an 11 x 11 Gaussian window, zeros beyond the border (Wang et
al. 2004, as SPT-SEG's loss has it).

Letters: K maps, H x W pixels.
"""

import torch
from torch import Tensor

SIDE, SIGMA = 11, 1.5
STEADY_MEAN, STEADY_DEVIATION = 1e-4, 9e-4
"""(0.01)^2 and (0.03)^2: they keep the quotient finite for values of a range of 1."""


def similarity_map(first: Tensor, second: Tensor | None) -> Tensor:
    """Similarity at every pixel of maps (K, H, W), at most 1; `second` None means zeros."""
    if second is None:
        mean, square = _blur(torch.stack([first, first * first]))  # each (K, H, W)
        spread = (square - mean * mean).clamp(min=0)
        alone: Tensor = (STEADY_MEAN * STEADY_DEVIATION) / (
            (mean * mean + STEADY_MEAN) * (spread + STEADY_DEVIATION)
        )
        return alone
    mean, other, square, other_square, product = _blur(
        torch.stack([first, second, first * first, second * second, first * second])
    )
    spread = (square - mean * mean).clamp(min=0)  # below 0 by rounding only
    other_spread = (other_square - other * other).clamp(min=0)
    means = (2 * mean * other + STEADY_MEAN) / (mean * mean + other * other + STEADY_MEAN)
    shared = 2 * (product - mean * other) + STEADY_DEVIATION
    found: Tensor = means * shared / (spread + other_spread + STEADY_DEVIATION)
    return found


def _blur(maps: Tensor) -> Tensor:
    """Average maps (..., H, W) with the window by matrix products, faster than convolutions."""
    # (H, H), (W, W)
    down, across = _window_matrix(maps.shape[-2], maps), _window_matrix(maps.shape[-1], maps)
    return torch.matmul(down @ maps, across)


def _window_matrix(length: int, like: Tensor) -> Tensor:
    """Symmetric weights (length, length) of an axis's values in its means; 0 beyond it."""
    places = torch.arange(length, device=like.device, dtype=like.dtype)
    offsets = (places[:, None] - places).abs()
    half = torch.arange(-(SIDE // 2), SIDE // 2 + 1, device=like.device, dtype=like.dtype)
    total = torch.exp(-(half**2) / (2 * SIGMA**2)).sum()
    return torch.exp(-(offsets**2) / (2 * SIGMA**2)) / total * (offsets <= SIDE // 2)
