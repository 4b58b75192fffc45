"""SPT-SEG's decoder against the same computation written out patch by patch, and its guard against
a dead start."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_clip.config import DecoderConfig
from cascade_clip.models.decoders.spectral import SpectralDecoder, SpectralLayer, SpectralValues

SETTINGS = DecoderConfig(
    kind="spectral", layers=3, heads=4, feedforward=32, dropout=0.0, gate_leak=0.0, low_share=0.75
)
WIDTH, SIZE = 16, 4


def values_by_hand(module: SpectralValues, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, D) of one image's patches (N, D): one window, position and head after the other."""
    side = module.window
    rows, columns = (-(-cells // side) * side for cells in grid)
    padded = torch.zeros(rows, columns, WIDTH)
    padded[: grid[0], : grid[1]] = patches.view(*grid, WIDTH)
    means = (
        padded.view(rows // side, side, columns // side, side, WIDTH).mean(dim=(1, 3)).flatten(0, 1)
    )
    out = torch.zeros(rows, columns, WIDTH)
    for row in range(rows):
        for column in range(columns):
            top, left = row // side * side, column // side * side
            window = padded[top : top + side, left : left + side].flatten(0, 1)  # (s*s, D)
            # one head of 4: query, key, value
            query = module.high.weight[:SIZE] @ padded[row, column]
            keys, values = (
                window @ module.high.weight[SIZE : 2 * SIZE].T,
                window @ module.high.weight[2 * SIZE :].T,
            )
            out[row, column, :SIZE] = (keys @ query / SIZE**0.5).softmax(dim=0) @ values
            low = []
            for head in range(3):
                part = slice(head * SIZE, (head + 1) * SIZE)
                query = module.low_query.weight[part] @ padded[row, column]
                keys = means @ module.low_pair.weight[: 3 * SIZE][part].T
                values = means @ module.low_pair.weight[3 * SIZE :][part].T
                low.append((keys @ query / SIZE**0.5).softmax(dim=0) @ values)
            out[row, column, SIZE:] = module.low_output(torch.cat(low))
    mixed = out[: grid[0], : grid[1]].flatten(0, 1)  # (N, D)
    cosine = (mixed @ module.direction) / (mixed.norm(dim=-1) * module.direction.norm())
    gate = torch.where(cosine > 0, cosine, module.leak * cosine)
    return (gate[:, None] * mixed) @ module.mixing


# whole windows; padded on both sides; smaller than a window
@pytest.mark.parametrize("grid", [(6, 3), (4, 5), (2, 2)])
def test_values(grid: tuple[int, int]) -> None:
    torch.manual_seed(1)
    module = SpectralValues(WIDTH, dataclasses.replace(SETTINGS, gate_leak=0.1))
    nn.init.normal_(module.mixing)
    patches = F.normalize(torch.randn(2, grid[0] * grid[1], WIDTH), dim=-1)
    with torch.no_grad():
        found = module(patches, grid)
        for image in range(2):
            torch.testing.assert_close(
                found[image], values_by_hand(module, patches[image], grid), rtol=1e-4, atol=1e-5
            )
    assert bool(found.any())


def test_a_layer_by_hand() -> None:
    torch.manual_seed(2)
    layer = SpectralLayer(WIDTH, SETTINGS).eval()
    queries, patches = torch.randn(2, 5, WIDTH), torch.randn(2, 12, WIDTH)
    values = layer.values(patches, (3, 4))
    # no projections, one head, no scale
    gathered = (queries @ values.transpose(1, 2)).softmax(dim=-1) @ values
    first = layer.attention_norm(queries + layer.output(gathered))
    expected = layer.feedforward_norm(first + layer.contract(layer.expand(first).relu()))
    torch.testing.assert_close(layer(queries, patches, (3, 4)), expected, rtol=1e-5, atol=1e-6)


def test_the_decoder_joins_its_layers() -> None:
    """Every layer sees the same patches; the masks are the products with the last one's values; all
    start as copies."""
    torch.manual_seed(3)
    decoder = SpectralDecoder(WIDTH, SETTINGS).eval()
    assert len(decoder.layers) == 2
    for part in ("layers.0.values", "layers.1.values"):
        for name, value in decoder.mask_values.state_dict().items():
            assert torch.equal(value, decoder.get_submodule(part).state_dict()[name])
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # layers that differ
        queries, patches = torch.randn(1, 5, WIDTH), torch.randn(1, 12, WIDTH)
        refined = decoder.layers[1](decoder.layers[0](queries, patches, (3, 4)), patches, (3, 4))
        expected = refined @ decoder.mask_values(patches, (3, 4)).transpose(1, 2)
        torch.testing.assert_close(decoder(queries, patches, (3, 4)), expected)


def gradient_and_masks(leak: float, sign: float) -> tuple[Tensor, dict[str, bool]]:
    """Masks of patches that all lie on one side of the direction, and which parameters get a
    gradient."""
    torch.manual_seed(4)
    settings = DecoderConfig(kind="spectral", layers=1, heads=4, gate_leak=leak, low_share=0.75)
    decoder = SpectralDecoder(WIDTH, settings)
    common = torch.randn(WIDTH)
    patches = common + 0.05 * torch.randn(1, 18, WIDTH)  # what patches have in common decides
    with torch.no_grad():
        padded = patches.unflatten(1, (6, 3))
        mixed = torch.cat(
            [decoder.mask_values._within_windows(padded), decoder.mask_values._over_all(padded)],
            dim=-1,
        )
        decoder.mask_values.direction.copy_(sign * mixed.mean(dim=(0, 1, 2)))
    masks = decoder(torch.randn(1, 4, WIDTH), patches, (6, 3))
    masks.square().sum().backward()
    return masks.detach(), {
        name: bool(parameter.grad.any()) for name, parameter in decoder.named_parameters()
    }


def test_the_published_gate_can_start_dead_and_the_guarded_one_cannot() -> None:
    masks, alive = gradient_and_masks(leak=0.0, sign=-1.0)
    assert not bool(masks.any()) and not any(alive.values())
    masks, alive = gradient_and_masks(leak=0.1, sign=-1.0)
    assert bool(masks.any()) and all(alive.values())
    open_masks, alive = gradient_and_masks(leak=0.0, sign=1.0)
    assert all(alive.values())
    torch.testing.assert_close(masks, -0.1 * open_masks, rtol=1e-4, atol=1e-6)


def test_the_gate_is_the_clamped_cosine_above_zero() -> None:
    module = SpectralValues(
        WIDTH, DecoderConfig(kind="spectral", heads=4, gate_leak=0.25, low_share=0.75)
    )
    direction = module.direction.detach()
    side = torch.zeros(WIDTH)
    side[0], side[1] = -direction[1], direction[0]  # at a right angle
    gate = module.gate(torch.stack([2 * direction, -3 * direction, side])[None])
    torch.testing.assert_close(gate, torch.tensor([[1.0, -0.25, 0.0]]), rtol=1e-5, atol=1e-6)


def test_masks_are_float32_under_autocast() -> None:
    decoder = SpectralDecoder(WIDTH, SETTINGS).eval()
    queries, patches = torch.randn(1, 5, WIDTH), torch.randn(1, 12, WIDTH)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert decoder(queries, patches, (3, 4)).dtype == torch.float32


@pytest.mark.parametrize(
    ("heads", "share", "message"),
    [
        (5, 0.75, "heads must divide the joint width 16, got 5"),
        (1, 0.9, "needs a head of each kind, but 0 of 1 are low"),
    ],
)
def test_heads_that_do_not_fit(heads: int, share: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpectralValues(WIDTH, DecoderConfig(kind="spectral", heads=heads, low_share=share))
