"""From mask logits at patch resolution to full size: plainly bilinear, or guided by the image.

The guided filter (He, Sun, Tang, ECCV 2010) explains a map around every place as a linear function
of the image's colours there; in its fast form (He, Sun 2015) the functions are fitted at low
resolution and applied at full resolution. Borders of masks then follow borders of colours. Nothing
is trained. Letters: c classes of a chunk, h x w patches, H x W pixels.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_clip.config import InferenceConfig


class WindowImage(NamedTuple):
    """The part of an image that maps belong to."""

    image: Tensor  # (3, <= side, <= side), normalised; smaller where the image ends
    mean: Sequence[float]  # of red, green and blue, with which it was normalised
    std: Sequence[float]
    side: int  # in pixels

    def colors(self, size: int) -> Tensor:
        """Colours in 0..1 of the window at another size, (3, size, size)."""
        return window_guide(self.image, self.mean, self.std, self.side, size)


def bilinear(logits: Tensor, size: int, window: WindowImage, settings: InferenceConfig) -> Tensor:
    """Upsample maps (c, h, w) to (c, size, size), whatever the image is."""
    return upsample_bilinear(logits, (size, size))


def guided(logits: Tensor, size: int, window: WindowImage, settings: InferenceConfig) -> Tensor:
    """Upsample maps (c, h, w) to (c, size, size), guided by the image."""
    colors = window.colors(size)  # (3, size, size)
    return upsample_guided(logits, colors, settings.guide_radius, settings.guide_epsilon)


def upsample_bilinear(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (c, h, w) as (c, H, W), bilinear, align_corners False.

    On a CPU, for heights that are a multiple, by a small matrix product along rows and one
    multiply-add between them: a tenth of the time of `interpolate`, whose inner loop looks up every
    pixel's neighbours.
    """
    height = logits.shape[-2]
    if logits.device.type != "cpu" or logits.requires_grad or size[0] % height:
        return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    wide = logits @ _row_weights(logits.shape[-1], size[1]).to(logits.dtype)  # (c, h, W)
    factor = size[0] // height
    # row of the result at the centre of the first row of the maps, or the one below
    first = factor // 2
    found = wide.new_empty(len(logits), *size)
    found[:, :first] = wide[:, :1]
    found[:, size[0] - factor + first :] = wide[:, -1:]
    # (c, h - 1, factor, W)
    between = found[:, first : size[0] - factor + first].unflatten(1, (height - 1, factor))
    # (factor,), of the lower row
    weights = (torch.arange(first, first + factor, dtype=wide.dtype) + 0.5) / factor - 0.5
    torch.addcmul(
        wide[:, :-1, None], (wide[:, 1:] - wide[:, :-1])[:, :, None], weights[:, None], out=between
    )
    return found


@functools.lru_cache(16)
def _row_weights(width: int, result: int) -> Tensor:
    """What every column counts for every column of a bilinear result: (w, W)."""
    with torch.inference_mode(False):
        exact = torch.eye(width, dtype=torch.float64)
        return F.interpolate(exact[:, None], size=result, mode="linear", align_corners=False)[:, 0]


def upsample_guided(logits: Tensor, guide: Tensor, radius: int, epsilon: float) -> Tensor:
    """Upsample maps (c, h, w) to (c, H, W), at least as large, guided by colours (3, H, W) in 0..1.

    Args:
        logits: mask logits at patch resolution.
        guide: the image.
        radius: windows of the fit reach so many patches to every side; at the border they are cut
            off.
        epsilon: variance of colours, in squared units of the guide, below which an area counts as
            plain: there the result is a smooth mean.
    """
    rows, columns = logits.shape[-2:]
    colors = F.adaptive_avg_pool2d(guide[None], (rows, columns))[0]  # (3, h, w)
    slopes, offsets = fit_colors(logits, colors, radius, epsilon)  # (3, c, h, w), (c, h, w)
    size = (guide.shape[-2], guide.shape[-1])
    found = upsample_bilinear(offsets, size)  # (c, H, W)
    for channel, slope in zip(guide, slopes, strict=True):
        found.addcmul_(upsample_bilinear(slope, size), channel)
    return found


def fit_colors(maps: Tensor, colors: Tensor, radius: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Maps (c, h, w) as linear functions of colours (3, h, w): slopes (3, c, h, w) and offsets (c,
    h, w), averaged over windows.

    Ridge regression in every window of (2 radius + 1)^2 places, as in equations 19 to 21 of the
    2010 paper.
    """
    mean_color, mean_map = box_mean(colors, radius), box_mean(maps, radius)  # (3, h, w), (c, h, w)
    products = torch.einsum("ihw,jhw->ijhw", colors, colors).flatten(0, 1)  # (9, h, w)
    spread = box_mean(products, radius).unflatten(0, (3, 3))  # (3, 3, h, w)
    spread = spread - torch.einsum("ihw,jhw->ijhw", mean_color, mean_color)
    ridge = epsilon * torch.eye(3, dtype=spread.dtype, device=spread.device)
    inverse = torch.linalg.inv(spread.permute(2, 3, 0, 1) + ridge)  # (h, w, 3, 3)
    shared = torch.stack([box_mean(color * maps, radius) for color in colors])  # (3, c, h, w)
    shared -= mean_color[:, None] * mean_map
    slopes = torch.einsum("hwij,jchw->ichw", inverse, shared)  # (3, c, h, w)
    offsets = mean_map - torch.einsum("ichw,ihw->chw", slopes, mean_color)  # (c, h, w)
    return torch.stack([box_mean(slope, radius) for slope in slopes]), box_mean(offsets, radius)


def box_mean(maps: Tensor, radius: int) -> Tensor:
    """Mean of maps (c, h, w) over the window around every place; places outside do not count."""
    side = 2 * radius + 1
    return F.avg_pool2d(maps[None], side, 1, radius, count_include_pad=False)[0]


def window_guide(
    image: Tensor, mean: Sequence[float], std: Sequence[float], side: int, size: int
) -> Tensor:
    """Colours in 0..1, (3, size, size), of a window of `side` pixels whose normalised image (3, <=
    side, <= side) may be smaller.

    The last row and column are repeated where the image ends.
    """
    scale, shift = (image.new_tensor(each)[:, None, None] for each in (std, mean))
    colors = image.float() * scale + shift  # (3, H', W')
    missing = (0, side - colors.shape[-1], 0, side - colors.shape[-2])
    colors = F.pad(colors[None], missing, mode="replicate")  # (1, 3, side, side)
    if size != side:
        colors = F.interpolate(colors, (size, size), mode="bilinear", antialias=True)
    return colors[0]  # (3, size, size)
