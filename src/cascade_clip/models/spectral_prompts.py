"""Spectral prompts: a learned filter of spatial frequencies, added to the patch tokens of the first
blocks (SPT-SEG).

Letters: B images, N = h x w patches, W tower width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cascade_clip.encoders import Grid

DEVIATION = 0.02
"""Standard deviation of the first real and imaginary parts."""


class SpectralFilter(nn.Module):
    """X + S(X, g) with S = irfft2(rfft2(X * g) * filter): one complex factor per frequency and
    channel, the same in every place.

    It adds no tokens. The published filter fits one grid; here it is a function of frequency in
    cycles per patch, which other grids read between its values (our extension).
    """

    def __init__(self, grid: Grid, width: int, blocks: Sequence[int], *, trained: bool) -> None:
        """Start small and random for the frequencies of `grid`; act before `blocks` (from 1)."""
        super().__init__()
        self.grid = grid
        self.blocks = frozenset(blocks)
        # the last axis: real, imaginary
        factors = torch.randn(grid[0], grid[1] // 2 + 1, width, 2) * DEVIATION
        self.weight = nn.Parameter(factors, requires_grad=trained)

    def forward(self, patches: Tensor, class_token: Tensor, grid: Grid) -> Tensor:
        """Patches (B, N, W) with spectral prompts; class tokens (B, 1, W), N = rows * columns."""
        # transforms are float32 whatever the autocast
        with torch.autocast(patches.device.type, enabled=False):
            product = (patches.float() * class_token.float()).unflatten(1, grid)  # (B, h, w, W)
            spectrum = torch.fft.rfft2(product, dim=(1, 2), norm="ortho")  # (B, h, w // 2 + 1, W)
            weight = resize_filter(self.weight.float(), self.grid, grid)
            factors = torch.view_as_complex(weight.contiguous())  # (h, w // 2 + 1, W)
            # (B, h, w, W)
            prompts = torch.fft.irfft2(spectrum * factors, s=grid, dim=(1, 2), norm="ortho")
        added: Tensor = patches + prompts.flatten(1, 2).to(patches.dtype)  # (B, N, W)
        return added


def resize_filter(weight: Tensor, old: Grid, new: Grid) -> Tensor:
    """Factors (rows, columns // 2 + 1, W, 2) of the frequencies of `old`, read linearly at those of
    `new`.

    Rows hold the frequencies 0, 1/rows, ... below 1 cycle per patch and go round, as the discrete
    transform does; columns hold those from 0 to at most a half. A frequency beyond the last column
    takes that column.
    """
    if old == new:
        return weight
    last = weight.shape[1] - 1
    rows = torch.arange(new[0], device=weight.device) * (old[0] / new[0])
    columns = torch.arange(new[1] // 2 + 1, device=weight.device) * (old[1] / new[1])
    columns = columns.clamp(max=last)
    weight = _read_between(weight, 0, rows, (rows.floor() + 1) % old[0])
    return _read_between(weight, 1, columns, (columns.floor() + 1).clamp(max=last))


def _read_between(values: Tensor, axis: int, places: Tensor, after: Tensor) -> Tensor:
    """Values at fractional places of an axis, between the whole place below and `after`."""
    share = (places - places.floor()).to(values.dtype)
    share = share.view([-1 if index == axis else 1 for index in range(values.ndim)])
    low, high = values.index_select(axis, places.long()), values.index_select(axis, after.long())
    return low + share * (high - low)
