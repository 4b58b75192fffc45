"""Attention on a CPU that keeps nothing but its inputs for the backward pass, head after head.

Letters: B images, H heads, n queries, m keys, d width of a head.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

MANY_WEIGHTS = 2**20
"""Weights (B * H * n * m) from which torch's CPU attention with dropout costs much memory."""


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """Softmax attention of queries (B, H, n, d) over keys and values (B, H, m, d): (B, H, n, d), in
    this device's best way.

    That is torch's fused attention, with two exceptions on a CPU. In bfloat16, matrix products head
    after head are half as fast again (measured). With dropout, torch keeps five matrices (B, H, n,
    m) for the backward pass; where they are large, only which weights were dropped is kept, one
    byte each.
    """
    if query.device.type != "cpu" or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    large = query.shape[:3].numel() * key.shape[2] >= MANY_WEIGHTS
    if not large or not (dropout or query.dtype == torch.bfloat16):
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    return cast(Tensor, _HeadByHead.apply(query, key, value, dropout))


class _HeadByHead(torch.autograd.Function):
    """Attention whose weights are made again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            query = query * query.shape[-1] ** -0.5
            shape = (*query.shape[:3], key.shape[2])  # (B, H, n, m)
            kept = torch.rand(shape, dtype=torch.float32) >= dropout if dropout else None
            result = _like(query)
            for place in _places(query):
                weights = (query[place] @ key[place].T).softmax(-1)  # (n, m)
                result[place] = _drop(weights, kept, place, dropout) @ value[place]  # (n, d)
            ctx.save_for_backward(query, key, value, kept)
            ctx.dropout = dropout
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, kept = ctx.saved_tensors
        slopes = [_like(tensor) for tensor in (query, key, value)]
        with torch.autocast("cpu", enabled=False):
            for place in _places(query):
                outer = gradient[place]  # (n, d)
                weights = (query[place] @ key[place].T).softmax(-1)  # (n, m)
                slopes[2][place] = _drop(weights, kept, place, ctx.dropout).T @ outer
                change = _drop(outer @ value[place].T, kept, place, ctx.dropout)  # (n, m)
                change = torch._softmax_backward_data(change, weights, -1, weights.dtype)
                slopes[0][place] = change @ key[place]
                slopes[1][place] = change.T @ query[place]
            slopes[0] *= query.shape[-1] ** -0.5
        return slopes[0], slopes[1], slopes[2], None


def _places(query: Tensor) -> list[tuple[int, int]]:
    """Every image and head."""
    return [(image, head) for image in range(query.shape[0]) for head in range(query.shape[1])]


def _like(tensor: Tensor) -> Tensor:
    """Room for (B, H, n, d) laid out as (B, n, H, d), so that joining heads copies nothing."""
    return tensor.new_empty(tensor.transpose(1, 2).shape).transpose(1, 2)


def _drop(weights: Tensor, kept: Tensor | None, place: tuple[int, int], dropout: float) -> Tensor:
    """Attention weights (n, m) with the dropped ones zero and the others scaled up."""
    return weights if kept is None else weights * kept[place] / (1 - dropout)
