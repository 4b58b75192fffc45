"""Position embeddings for grids of any size."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Grid = tuple[int, int]

MOST_GRIDS = 8
"""Grids whose resized positions are kept: images given directly may each bring another one."""


class PositionEmbedding(nn.Module):
    """Learned positions of one grid, resized bilinearly for others; the last MOST_GRIDS are kept.

    The cache holds values that follow from the parameter alone; it is emptied when the parameter
    changes. A parameter made under inference mode does not say when it changes: then nothing is
    kept.
    """

    def __init__(self, positions: Tensor, grid: Grid) -> None:
        """Hold `positions` of shape (rows * columns, W)."""
        super().__init__()
        self.grid = grid
        self.positions = nn.Parameter(positions.detach().clone(), requires_grad=False)
        self._cache: dict[tuple[object, ...], Tensor] = {}

    def forward(self, grid: Grid) -> Tensor:
        """Positions (N, W) of a grid of patches."""
        if grid == self.grid:
            return self.positions  # (N, W)
        if self.positions.is_inference():
            return resize_positions(self.positions, self.grid, grid)
        held = self.positions
        key = (grid, held.device, held.dtype, held._version, held.data_ptr())
        found = self._cache.get(key)
        if found is None:
            valid = [(known, value) for known, value in self._cache.items() if known[1:] == key[1:]]
            self._cache = dict(valid[1 - MOST_GRIDS :])
            with torch.inference_mode(False), torch.no_grad():
                found = resize_positions(self.positions.clone(), self.grid, grid)
            self._cache[key] = found
        return found


def resize_positions(positions: Tensor, old: Grid, new: Grid) -> Tensor:
    """Resize positions (old rows * columns, W): bilinear, align_corners False, no antialias."""
    table = positions.T.reshape(1, -1, *old)  # (1, W, rows, columns)
    table = F.interpolate(table, size=new, mode="bilinear", align_corners=False)
    return table.flatten(2)[0].T.contiguous()  # (N, W)
