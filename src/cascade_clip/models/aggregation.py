"""Stage aggregation: blocks of a stage become one feature map (section 3.3, Eq. 4, Table 8).

Letters: B images, N patches, D joint width, d blocks of the stage.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cascade_clip.config import AggregationConfig, find_part
from cascade_clip.errors import SettingError


class LastBlock(nn.Module):
    """A stage of one block needs no weights."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the only feature map, (B, N, D)."""
        (only,) = features
        return only  # (B, N, D)


class WeightedSum(nn.Module):
    """Z = sum_l w_l F_l: neighbourhood Gaussian aggregation, or a plain or trainable sum."""

    weights: Tensor

    def __init__(self, weights: Sequence[float], *, trained: bool) -> None:
        """Start from `weights`, one per block; they stay fixed unless `trained`."""
        super().__init__()
        values = torch.tensor(list(weights), dtype=torch.float32)  # (d,)
        if trained:
            self.weights = nn.Parameter(values)
        else:
            self.register_buffer("weights", values)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Add up d maps of shape (B, N, D)."""
        total = self.weights[0] * features[0]  # (B, N, D)
        for weight, feature in zip(self.weights[1:], features[1:], strict=True):
            total = total + weight * feature  # (B, N, D)
        return total


class Concatenation(nn.Module):
    """Concatenation along the width and a linear map back to D (our reading of Table 8)."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(blocks * width, width)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Join d maps of shape (B, N, D)."""
        joined: Tensor = self.linear(torch.cat(list(features), dim=-1))  # (B, N, D)
        return joined


class BlockAttention(nn.Module):
    """Self-attention across d blocks at each patch, then their mean (our reading of Table 8)."""

    def __init__(self, width: int, heads: int = 8) -> None:
        """Attend with `heads` heads, which must divide the width."""
        super().__init__()
        if width % heads:
            raise SettingError(
                f"model.aggregation attention: {heads} heads must divide the joint width {width}"
            )
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Mix d maps of shape (B, N, D)."""
        stack = torch.stack(list(features), dim=2)  # (B, N, d, D)
        tokens = stack.flatten(0, 1)  # (B*N, d, D)
        mixed = self.attention(tokens, tokens, tokens, need_weights=False)[0]  # (B*N, d, D)
        mean: Tensor = mixed.unflatten(0, stack.shape[:2]).mean(dim=2)  # (B, N, D)
        return mean


def gaussian_weights(blocks: int, sigma: float) -> list[float]:
    """Weights exp(-(d-l)^2 / (2 sigma^2)) of the blocks l = 1..d; the last is 1 (Tables 16-17)."""
    return [math.exp(-(distance**2) / (2 * sigma**2)) for distance in reversed(range(blocks))]


def build_aggregation(config: AggregationConfig, blocks: int, width: int) -> nn.Module:
    """Build what joins `blocks` feature maps (B, N, D) of D = `width` into one."""
    if blocks == 1:
        return LastBlock()
    aggregation: nn.Module = find_part("aggregations", config.kind)(config, blocks, width)
    return aggregation


def build_gaussian_sum(config: AggregationConfig, blocks: int, width: int) -> WeightedSum:
    """Build `nga`: the last block counts most at the start."""
    return WeightedSum(gaussian_weights(blocks, config.sigma), trained=config.trained)


def build_plain_sum(config: AggregationConfig, blocks: int, width: int) -> WeightedSum:
    """Build `sum`: all blocks count the same at the start."""
    return WeightedSum([1.0] * blocks, trained=config.trained)


def build_concatenation(config: AggregationConfig, blocks: int, width: int) -> Concatenation:
    """Build `concat`."""
    return Concatenation(blocks, width)


def build_block_attention(config: AggregationConfig, blocks: int, width: int) -> BlockAttention:
    """Build `attention`."""
    return BlockAttention(width)
