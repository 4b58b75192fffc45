"""From patches to pixels and to the best class, in the fast way and in the plain one."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from cascade_clip.ops.running_argmax import RunningBest
from cascade_clip.ops.upsampling import upsample_bilinear


@pytest.mark.parametrize("shape", [(4, 4), (1, 5), (5, 1), (7, 32), (32, 7)])
@pytest.mark.parametrize("factor", [1, 2, 3, 14, 15, 16])
@pytest.mark.parametrize("width", [1.0, 1.7, 5.0, 16.0])
def test_upsampling_is_that_of_torch(shape: tuple[int, int], factor: int, width: float) -> None:
    maps = 10 * torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    size = (shape[0] * factor, math.ceil(shape[1] * width))
    exact = F.interpolate(maps[None].double(), size=size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(upsample_bilinear(maps, size), exact.float(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(upsample_bilinear(maps.double(), size), exact)


@pytest.mark.parametrize("size", [(9, 8), (3, 3), (4, 2)])
def test_upsampling_to_sizes_that_are_no_multiple(size: tuple[int, int]) -> None:
    maps = torch.randn(2, 4, 4)
    expected = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(upsample_bilinear(maps, size), expected, rtol=1e-6, atol=1e-6)


def test_upsampling_has_a_gradient() -> None:
    maps = torch.randn(2, 4, 4, requires_grad=True)
    upsample_bilinear(maps, (64, 64)).sum().backward()
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad, torch.full((2, 4, 4), 256.0))


@pytest.mark.parametrize("chunk", [1, 3, 16, 300])
@pytest.mark.parametrize("levels", [2, 5, 10_000])  # few levels: many equal scores
def test_running_best_is_the_first_of_the_largest(chunk: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(levels, (300, 13, 17), generator=generator).float()
    # chunks that win everywhere, somewhere and nowhere
    scores[:150] += torch.randint(2, (150, 1, 1), generator=generator) * levels
    scores[200, 3, 4] = 3.0 * levels
    best = RunningBest()
    for start in range(0, 300, chunk):
        best.add(scores[start : start + chunk].clone())
    best.add(scores[:0])
    assert torch.equal(best.scores, scores.amax(dim=0))
    assert torch.equal(best.rows, (scores == scores.amax(dim=0)).int().argmax(dim=0))
    assert best.rows.dtype == torch.int64


def test_running_best_of_a_chunk_that_is_part_of_a_larger_array() -> None:
    scores = torch.rand(40, 20, 30)[:, :13, :17]
    best = RunningBest()
    for start in range(0, 40, 8):
        best.add(scores[start : start + 8].clone() if start == 0 else scores[start : start + 8])
    assert torch.equal(best.rows, scores.argmax(dim=0))
