"""The augmentation of training images and their labels.

Letters: H, W size of an image; h, w size of a crop (h, w <= crop, the configured side). Geometry
comes from torchvision. The photometric distortion is our own: the published one adds brightness and
turns hue on 8-bit values, torchvision's RandomPhotometricDistort multiplies.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from cascade_clip.config import AugmentConfig
from cascade_clip.ops import normalise, resize_shape
from cascade_clip.vocabulary import IGNORED

CROP_DRAWS = 10
BRIGHTNESS = 32.0  # largest step added to 8-bit values
FACTOR = (0.5, 1.5)  # range of contrast and saturation
HUE = 18  # largest turn, of 180


@dataclass(frozen=True)
class Crop:
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, values: Tensor) -> Tensor:
        """The part of (..., H, W) inside the rectangle, as a view."""
        part: Tensor = functional.crop(values, self.top, self.left, self.height, self.width)
        return part


def draw_crop(labels: Tensor, side: int, largest_share: float, generator: torch.Generator) -> Crop:
    """Draw a crop of at most `side` x `side`, up to ten times while one class fills it.

    A crop is accepted if it holds at least two classes and the largest of them has less than
    `largest_share` of its labelled pixels. A share of 1 or more accepts the first draw.
    """
    height, width = min(side, labels.shape[-2]), min(side, labels.shape[-1])
    margins = labels.shape[-2] - height, labels.shape[-1] - width
    for draw in range(CROP_DRAWS):
        top, left = (_integer(0, margin, generator) for margin in margins)
        crop = Crop(top, left, height, width)
        last = draw == CROP_DRAWS - 1 or margins == (0, 0)
        if last or largest_share >= 1 or _is_mixed(crop.cut(labels), largest_share):
            break
    return crop


def _is_mixed(labels: Tensor, largest_share: float) -> bool:
    counts = torch.bincount(labels.flatten() - IGNORED)[1:]  # (C,), the ignored pixels left out
    return int((counts > 0).sum()) > 1 and int(counts.max()) < largest_share * int(counts.sum())


@dataclass(frozen=True)
class Distortion:
    """What one photometric distortion does; None leaves that part alone."""

    brightness: float | None
    """Added to the 8-bit values, -32..32."""
    contrast: float | None
    """Factor on the 8-bit values, 0.5..1.5."""
    contrast_first: bool
    """Whether contrast comes before saturation and hue, or after them."""
    saturation: float | None
    """Factor on S of HSV, 0.5..1.5."""
    hue: int | None
    """Added to H of HSV modulo 180, -18..18."""

    def __call__(self, image: Tensor) -> Tensor:
        """Distort a uint8 image (3, H, W); each part rounds to 8 bits, as in the release."""
        if self.brightness is not None:
            image = _linear(image, 1.0, self.brightness)
        if self.contrast is not None and self.contrast_first:
            image = _linear(image, self.contrast, 0.0)
        if self.saturation is not None or self.hue is not None:
            image = self._distort_colours(image)
        if self.contrast is not None and not self.contrast_first:
            image = _linear(image, self.contrast, 0.0)
        return image

    def _distort_colours(self, image: Tensor) -> Tensor:
        hue, saturation, value = rgb_to_hsv(image)  # (H, W) each
        if self.saturation is not None:
            scaled = saturation.to(torch.float32).mul_(self.saturation)
            saturation = scaled.clamp_(max=255).to(torch.int32)
        if self.hue is not None:
            hue = (hue + self.hue).remainder_(180)
        return hsv_to_rgb(hue, saturation, value)


def draw_distortion(generator: torch.Generator) -> Distortion:
    """Each part with probability one half, contrast before or after the colours by another coin."""
    return Distortion(
        brightness=_uniform(-BRIGHTNESS, BRIGHTNESS, generator) if _coin(0.5, generator) else None,
        contrast=_uniform(*FACTOR, generator) if _coin(0.5, generator) else None,
        contrast_first=_coin(0.5, generator),
        saturation=_uniform(*FACTOR, generator) if _coin(0.5, generator) else None,
        hue=_integer(-HUE, HUE, generator) if _coin(0.5, generator) else None,
    )


def rgb_to_hsv(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue 0..179, saturation, value 0..255, int32 (H, W), of uint8 (3, H, W), exactly as OpenCV."""
    red, green, blue = image.to(torch.int32).unbind(0)  # (H, W)
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    # Fixed point with 12 bits, as OpenCV: the reciprocals are rounded before they are multiplied.
    per_value = torch.round((255 << 12) / value.to(torch.float32).clamp_(min=1)).to(torch.int32)
    sextants = 6 * spread.to(torch.float32).clamp_(min=1)
    per_spread = torch.round((180 << 12) / sextants).to(torch.int32)
    saturation = (spread * per_value + (1 << 11)) >> 12
    hue = torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    hue = torch.where(value == red, green - blue, hue)
    hue = (hue * per_spread + (1 << 11)) >> 12
    return torch.where(hue < 0, hue + 180, hue), saturation, value


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """uint8 image (3, H, W) of hue 0..179, saturation and value 0..255, each (H, W).

    OpenCV drops the fractions here, and so do we; one result in 600 differs from it, by 1.
    """
    sector = hue.to(torch.float32) * (6 / 180)  # (H, W), 0..6
    start = torch.tensor([5.0, 3.0, 1.0])[:, None, None]
    # (3, H, W), a channel is at its lowest where its turn lies in 1..3
    turn = (start + sector).remainder_(6)
    fall = torch.minimum(turn, 4 - turn).clamp_(0, 1)
    share = 1 - fall.mul_(saturation.to(torch.float32) * (1 / 255))
    return share.mul_(value.to(torch.float32) * (1 / 255)).mul_(255).to(torch.uint8)


def _linear(image: Tensor, factor: float, offset: float) -> Tensor:
    """x * factor + offset on 8-bit values, cut to 0..255; fractions are dropped."""
    return image.to(torch.float32).mul_(factor).add_(offset).clamp_(0, 255).to(torch.uint8)


class TrainTransform:
    """Random scale, crop, flip and photometric distortion; normalises and pads to the crop size."""

    def __init__(self, config: AugmentConfig, mean: Sequence[float], std: Sequence[float]) -> None:
        """Keep the settings; `mean` and `std` are per channel, for values in 0..1."""
        self.config = config
        self.mean = tuple(mean)
        self.std = tuple(std)

    def __call__(
        self, image: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Augment uint8 (3, H, W) and int64 (H, W) with all randomness from `generator`.

        Returns:
            float32 (3, crop, crop), padded right and bottom with 0 after normalising, and int64
                (crop, crop), padded with -1.
        """
        if image.shape[-2:] != labels.shape:
            shapes = f"{tuple(image.shape)} and {tuple(labels.shape)}"
            raise ValueError(f"image and labels must have one size, got {shapes}")
        picture, mask = tv_tensors.Image(image), tv_tensors.Mask(labels)
        ratio = _uniform(*self.config.ratio, generator)
        scale = max(1, int(self.config.scale[0] * ratio)), max(1, int(self.config.scale[1] * ratio))
        shape = list(resize_shape(labels.shape[0], labels.shape[1], scale))
        resize = functools.partial(functional.resize, size=shape, antialias=False)
        picture, mask = resize(picture), resize(mask)  # (3, H, W), (H, W)
        crop = draw_crop(mask, self.config.crop, self.config.largest_share, generator)
        picture, mask = crop.cut(picture), crop.cut(mask)  # (3, h, w), (h, w)
        if _coin(self.config.flip, generator):
            picture, mask = functional.horizontal_flip(picture), functional.horizontal_flip(mask)
        pixels = picture.as_subclass(torch.Tensor).contiguous()
        if self.config.photometric:
            pixels = draw_distortion(generator)(pixels)
        # left, top, right, bottom
        padding = [0, 0, self.config.crop - crop.width, self.config.crop - crop.height]
        # (3, crop, crop)
        pixels = functional.pad(normalise(pixels, self.mean, self.std), padding, fill=0)
        mask = functional.pad(mask, padding, fill=IGNORED)
        return pixels, mask.as_subclass(torch.Tensor).contiguous()


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number, both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _coin(probability: float, generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator, dtype=torch.float64)) < probability
