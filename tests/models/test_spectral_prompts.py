"""Spectral prompts: what a filter does to the patches, on its own grid and on others, and where in
the encoder it acts."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from cascade_clip.config import ModelConfig, PromptConfig
from cascade_clip.config.serialization import config_from_dict
from cascade_clip.models.builder import build_filter, build_segmenter
from cascade_clip.models.segmenter import Segmenter
from cascade_clip.models.spectral_prompts import SpectralFilter, resize_filter
from tiny_models import TINY_MODEL


def with_factors(grid: tuple[int, int], factors: Tensor) -> SpectralFilter:
    """A filter with complex factors (rows, columns // 2 + 1) for each of 3 channels."""
    spectral = SpectralFilter(grid, 3, (1,), trained=True)
    with torch.no_grad():
        spectral.weight.copy_(
            torch.view_as_real(factors.to(torch.complex64))[..., None, :].expand_as(spectral.weight)
        )
    return spectral


def test_a_filter_of_ones_adds_the_product() -> None:
    patches, class_token = torch.randn(2, 20, 3), torch.randn(2, 1, 3)
    out = with_factors((4, 5), torch.ones(4, 3))(patches, class_token, (4, 5))
    torch.testing.assert_close(out, patches + patches * class_token)


def test_a_turning_phase_shifts_the_product() -> None:
    """exp(-2 pi i (1 k / 4 + 2 l / 6)) moves by 1 row and 2 columns, round the border; rows and
    columns are not swapped."""
    rows, columns = torch.arange(4)[:, None], torch.arange(4)[None]
    factors = torch.exp(-2j * math.pi * (rows / 4 + 2 * columns / 6))
    patches, class_token = torch.randn(1, 24, 3), torch.randn(1, 1, 3)
    out = with_factors((4, 6), factors)(patches, class_token, (4, 6))
    moved = (patches * class_token).unflatten(1, (4, 6)).roll((1, 2), dims=(1, 2)).flatten(1, 2)
    torch.testing.assert_close(out, patches + moved, rtol=1e-5, atol=1e-5)


def test_the_start_is_small_and_random() -> None:
    weight = SpectralFilter((32, 32), 64, (1, 2), trained=True).weight
    assert weight.shape == (32, 17, 64, 2)
    assert float(weight.std()) == pytest.approx(0.02, rel=0.02)
    assert (
        sum(
            parameter.numel()
            for parameter in SpectralFilter((32, 32), 768, (1,), trained=True).parameters()
        )
        == 835_584
    )


@pytest.mark.parametrize(
    ("old", "new", "rows", "columns"),
    [
        ((4, 6), (4, 6), [0, 1, 2, 3], [0, 1, 2, 3]),
        ((4, 6), (2, 6), [0, 2], [0, 1, 2, 3]),  # every second frequency
        # -1: between the last row and the first
        ((4, 6), (8, 6), [0, 0.5, 1, 1.5, 2, 2.5, 3, -1], [0, 1, 2, 3]),
        ((4, 6), (4, 3), [0, 1, 2, 3], [0, 2]),  # a third of a cycle is column 2 of 6
        ((4, 6), (4, 12), [0, 1, 2, 3], [0, 0.5, 1, 1.5, 2, 2.5, 3]),
        # half a cycle lies beyond the last column of 5
        ((4, 5), (4, 6), [0, 1, 2, 3], [0, 5 / 6, 10 / 6, 2]),
    ],
)
def test_other_grids_read_between_the_frequencies(
    old: tuple[int, int], new: tuple[int, int], rows: list[float], columns: list[float]
) -> None:
    """Factors that grow by 10 a row and by 1 a column show which places were read."""
    weight = (10.0 * torch.arange(old[0])[:, None] + torch.arange(old[1] // 2 + 1))[
        ..., None, None
    ].expand(-1, -1, 3, 2)
    found = resize_filter(weight, old, new)[..., 0, 0]
    # (30 + 0) / 2 = 15
    wanted = torch.tensor(
        [[10.0 * (1.5 if row == -1 else row) + column for column in columns] for row in rows]
    )
    torch.testing.assert_close(found, wanted)


def test_transforms_are_float32_under_autocast() -> None:
    spectral, patches, class_token = (
        SpectralFilter((4, 4), 3, (1,), trained=True),
        torch.randn(1, 16, 3),
        torch.randn(1, 1, 3),
    )
    exact = spectral(patches, class_token, (4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(spectral(patches, class_token, (4, 4)), exact)
        assert spectral(patches.bfloat16(), class_token.bfloat16(), (4, 4)).dtype == torch.bfloat16


def build(**prompts: Any) -> Segmenter:
    torch.manual_seed(0)
    values = {
        **TINY_MODEL,
        "prompts": {"kind": "none", "dropout": 0.0, "spectral": True, **prompts},
    }
    return build_segmenter(config_from_dict(ModelConfig, values)).eval()


@pytest.mark.parametrize("kind", ["none", "shallow", "deep"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])  # the filter's own grid, and another
def test_it_acts_on_patches_before_the_first_two_blocks(kind: str, size: tuple[int, int]) -> None:
    """Block by block by hand; class and prompt tokens are not filtered, and a block is read before
    the next one's prompts."""
    model = build(kind=kind, tokens=2)
    backbone, grid = model.backbone, (size[0] // 16, size[1] // 16)
    tower, spectral = backbone.tower, backbone.spectral
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        class_token, patches = tower.embed(images)
        held = class_token[:, :0]
        for number, block in enumerate(tower.blocks, start=1):
            if backbone.prompts is not None and (kind == "deep" or number == 1):
                held = backbone.prompts.before(number, 2)
            if number in (1, 2):
                patches = spectral(patches, class_token, grid)
            tokens = tower.run_block(block, torch.cat([class_token, held, patches], dim=1))
            class_token, held, patches = (
                tokens[:, :1],
                tokens[:, 1 : 1 + held.shape[1]],
                tokens[:, 1 + held.shape[1] :],
            )
            found = model.features(images, [number], projected=False).patches[number]
            torch.testing.assert_close(found, patches, rtol=1e-4, atol=1e-5)


def test_settings() -> None:
    trained, frozen, elsewhere = build(), build(spectral_trained=False), build(spectral_blocks=[3])
    assert trained.backbone.spectral.weight.shape == (4, 3, 64, 2)
    assert (
        trained.backbone.spectral.weight.requires_grad
        and not frozen.backbone.spectral.weight.requires_grad
    )
    assert "backbone.spectral.weight" in frozen.state_dict()  # random and needed all the same
    assert build(spectral=False).backbone.spectral is None
    images = torch.randn(1, 3, 64, 64)
    plain = build(spectral=False)
    with torch.no_grad():
        features = [
            model.features(images, [2, 3], projected=False).patches for model in (elsewhere, plain)
        ]
    assert torch.equal(features[0][2], features[1][2]) and not torch.equal(
        features[0][3], features[1][3]
    )


def test_towers_and_blocks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="spectral_blocks names block 13, but there are 12"):
        build(spectral_blocks=[1, 13])
    with pytest.raises(ValueError, match="needs a tower with a class token, not SimpleNamespace"):
        build_filter(PromptConfig(spectral=True), cast(Any, SimpleNamespace(class_tokens=0)))
    with pytest.raises(ValueError, match="spectral_blocks is empty"):
        config_from_dict(ModelConfig, {"prompts": {"spectral_blocks": []}})
