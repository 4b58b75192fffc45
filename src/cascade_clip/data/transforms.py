"""Reading pictures and masks, the sizes they are brought to, and the augmentation of training.

Letters: H, W size of a picture; h, w size of a crop (h, w <= crop, the configured side). Geometry
comes from torchvision. The photometric distortion is our own: the published one adds brightness and
turns hue on 8-bit values, torchvision's RandomPhotometricDistort multiplies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from cascade_clip.config import AugmentConfig
from cascade_clip.files.images import DAMAGE, open_picture, read_picture
from cascade_clip.vocabulary import IGNORED

CROP_DRAWS = 10
BRIGHTNESS = 32.0  # largest step added to 8-bit values
FACTOR = (0.5, 1.5)  # range of contrast and saturation
HUE = 18  # largest turn, of 180

_INDEX_MODES = ("1", "L", "P")  # and those of 16 and 32 bits, which begin with I
_COLOR_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX")

_PNG = b"\x89PNG\r\n\x1a\n"


def load_image(source: str | Path | Image.Image | NDArray[Any]) -> Tensor:
    """Read a picture as a person sees it: a uint8 RGB tensor of shape (3, H, W).

    EXIF rotation is applied, transparency lies over white, an animation gives its first frame;
    grey, palette, CMYK and 16-bit pictures become 8-bit RGB. Arrays are (H, W), (H, W, 3) RGB or
    (H, W, 4) RGBA of uint8, uint16, bool or floats in 0..1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or has more pixels than the limit, or the array is none of
            the above.
    """
    if isinstance(source, np.ndarray):
        name, picture = "the image array", Image.fromarray(_array_as_8bit(source))
    else:
        name = "the image" if isinstance(source, Image.Image) else f"image {source}"
        picture = read_picture(source, name)
    if 0 in picture.size:
        raise ValueError(
            f"{name} has no pixels (width x height {picture.width} x {picture.height}); give at"
            " least 1 x 1"
        )
    return torch.from_numpy(_rgb(picture, name)).permute(2, 0, 1)  # (3, H, W)


def load_mask(path: str | Path) -> Tensor:
    """Read the raw values of an index mask: an int32 tensor of shape (H, W); of a palette picture
    the indices, not the colours.

    Grey PNG files of 2 and 4 bits give 0..3 and 0..15, as they stand in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds colours instead of indices.
    """
    mask = read_picture(path, f"mask {path}", mask=True)
    if mask.mode not in _INDEX_MODES and not mask.mode.startswith("I"):
        raise ValueError(
            f"mask {path} is a picture of mode {mask.mode}; masks must be index images (8- or"
            " 16-bit grey, or palette PNG) whose pixel values are the labels, unless the class"
            " list says what each colour means: one `R G B NAME` or `#rrggbb NAME` a line"
        )
    values = np.array(mask).astype(np.int64)  # (H, W)
    if mask.mode == "L":
        values //= _grey_step(path)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"mask {path} has values from {values.min()} to {values.max()}; labels must lie in"
            " 0..65535"
        )
    return torch.from_numpy(values.astype(np.int32))


def _grey_step(path: str | Path) -> int:
    """What Pillow multiplies the values of a grey picture by: 85 and 17 in a PNG of 2 and 4 bits,
    else 1."""
    with Path(path).open("rb") as file:
        head = file.read(25)  # signature, length and name of IHDR, width, height, bit depth
    return {2: 85, 4: 17}.get(head[24], 1) if head.startswith(_PNG) else 1


def load_color_mask(path: str | Path) -> Tensor:
    """Read the colours of a mask: an int32 tensor of shape (H, W) of red * 65536 + green * 256 +
    blue.

    A palette picture gives its colours, grey and one bit are colours of three equal parts,
    transparency is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds no 8-bit colours.
    """
    mask = read_picture(path, f"mask {path}", mask=True)
    if mask.mode not in _COLOR_MODES:
        raise ValueError(
            f"mask {path} is a picture of mode {mask.mode}, which the colour table of a class list"
            " cannot name; convert it to RGB"
        )
    colors = np.array(mask.convert("RGB")).astype(np.int32)  # (H, W, 3)
    return torch.from_numpy(colors[..., 0] << 16 | colors[..., 1] << 8 | colors[..., 2])  # (H, W)


def is_color_mask(path: str | Path) -> bool:
    """Whether a mask file is a colour picture and not an index image, by its header; False where
    that cannot be read."""
    try:
        with open_picture(path, mask=True) as mask:
            return mask.mode in _COLOR_MODES and mask.mode not in _INDEX_MODES
    except DAMAGE:
        return False


def _array_as_8bit(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise ValueError(
            f"an image array must have shape (H, W), (H, W, 3) or (H, W, 4), got {array.shape}"
        )
    if array.size == 0:
        raise ValueError(f"the image array has no pixels: shape {array.shape}; give at least 1 x 1")
    return np.ascontiguousarray(_as_8bit(array, "the image array"))


def _as_8bit(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Bring every kind of pixel value to 0..255, white staying white."""
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if values.dtype.kind == "f":
        if not ((values >= 0) & (values <= 1)).all():  # false for NaN too
            raise ValueError(
                f"{name} holds floats outside 0..1; divide by its largest value, or give uint8"
            )
        rounded: NDArray[np.uint8] = np.rint(values * 255).astype(np.uint8)
        return rounded
    if values.dtype != np.uint8:
        raise ValueError(
            f"{name} has values of type {values.dtype}; give uint8, uint16, bool, or floats in 0..1"
        )
    unchanged: NDArray[np.uint8] = values
    return unchanged


def _rgb(picture: Image.Image, name: str) -> NDArray[np.uint8]:
    """(H, W, 3) of any Pillow mode."""
    if picture.mode.startswith("I") or picture.mode == "F":
        grey = np.array(picture)  # (H, W)
        if grey.dtype.kind in "iu":
            if grey.min() < 0 or grey.max() > 65535:
                raise ValueError(
                    f"{name} holds integers outside the 16-bit range; convert it to 8 or 16 bits"
                )
            grey = grey.astype(np.uint16)
        return np.repeat(_as_8bit(grey, name)[:, :, None], 3, axis=2)
    try:
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return np.array(picture.convert("RGB"))
    except DAMAGE as error:
        raise ValueError(
            f"{name} of mode {picture.mode} cannot be turned into RGB ({error}); convert it to RGB"
            " first"
        ) from error


def resize_shape(height: int, width: int, scale: tuple[int, int]) -> tuple[int, int]:
    """Largest size of the same proportions whose long and short side fit into `scale` (its larger
    and smaller number)."""
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return _scaled(height, factor), _scaled(width, factor)


def short_side_shape(height: int, width: int, short: int) -> tuple[int, int]:
    """Size of the same proportions whose short side is exactly `short`, however long the other
    gets."""
    factor = short / min(height, width)
    return _scaled(height, factor), _scaled(width, factor)


def _scaled(side: int, factor: float) -> int:
    return max(1, int(side * factor + 0.5))


def resize_image(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Bilinear resize of (..., H, W) uint8 or float without antialias, as the method was trained
    and tested."""
    resized: Tensor = functional.resize_image(
        image, list(shape), functional.InterpolationMode.BILINEAR, antialias=False
    )
    return resized


def resize_mask(labels: Tensor, shape: tuple[int, int]) -> Tensor:
    """Nearest-neighbour resize of (..., H, W) labels, so that no new labels appear."""
    resized: Tensor = functional.resize_mask(labels, list(shape))
    return resized


def normalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bring (..., 3, H, W) from uint8 to float32: (x / 255 - mean) / std."""
    if image.dtype != torch.uint8 or image.ndim < 3 or image.shape[-3] != 3:
        raise ValueError(
            f"an image must be uint8 of shape (3, H, W), got {image.dtype} of shape"
            f" {tuple(image.shape)}"
        )
    scaled = functional.to_dtype(image, torch.float32, scale=True)
    normalised: Tensor = functional.normalize(scaled, list(mean), list(std), inplace=True)
    return normalised


@dataclass(frozen=True)
class Crop:
    """A rectangle of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, values: Tensor) -> Tensor:
        """The part of (..., H, W) inside the rectangle, as a view."""
        part: Tensor = functional.crop(values, self.top, self.left, self.height, self.width)
        return part


def draw_crop(labels: Tensor, side: int, largest_share: float, generator: torch.Generator) -> Crop:
    """Draw a crop of at most `side` x `side`, again while one class fills it; the tenth draw
    stands.

    A crop is accepted if it holds at least two classes and the largest of them has less than
    `largest_share` of its labelled pixels. A share of 1 or more accepts the first draw.
    """
    height, width = min(side, labels.shape[-2]), min(side, labels.shape[-1])
    margins = labels.shape[-2] - height, labels.shape[-1] - width
    for draw in range(CROP_DRAWS):
        crop = Crop(
            _integer(0, margins[0], generator), _integer(0, margins[1], generator), height, width
        )
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
        """Distort a uint8 picture (3, H, W); every part rounds back to 8 bits as the released
        program does."""
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
            saturation = (
                saturation.to(torch.float32).mul_(self.saturation).clamp_(max=255).to(torch.int32)
            )
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
    """Hue 0..179, saturation and value 0..255 of a uint8 picture (3, H, W), each int32 (H, W),
    equal to OpenCV's 8-bit conversion."""
    red, green, blue = image.to(torch.int32).unbind(0)  # (H, W)
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    # Fixed point with 12 bits, as OpenCV: the reciprocals are rounded before they are multiplied.
    per_value = torch.round((255 << 12) / value.to(torch.float32).clamp_(min=1)).to(torch.int32)
    per_spread = torch.round((180 << 12) / (6 * spread.to(torch.float32).clamp_(min=1))).to(
        torch.int32
    )
    saturation = (spread * per_value + (1 << 11)) >> 12
    hue = torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    hue = torch.where(value == red, green - blue, hue)
    hue = (hue * per_spread + (1 << 11)) >> 12
    return torch.where(hue < 0, hue + 180, hue), saturation, value


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """uint8 picture (3, H, W) of hue 0..179, saturation and value 0..255, each (H, W).

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
    """Random scale, crop, flip and photometric distortion, then normalising and padding to the crop
    size."""

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
            raise ValueError(
                f"image and labels must have one size, got {tuple(image.shape)} and"
                f" {tuple(labels.shape)}"
            )
        picture, mask = tv_tensors.Image(image), tv_tensors.Mask(labels)
        ratio = _uniform(*self.config.ratio, generator)
        scale = max(1, int(self.config.scale[0] * ratio)), max(1, int(self.config.scale[1] * ratio))
        shape = list(resize_shape(labels.shape[0], labels.shape[1], scale))
        picture, mask = (
            functional.resize(item, shape, antialias=False) for item in (picture, mask)
        )
        crop = draw_crop(mask, self.config.crop, self.config.largest_share, generator)
        picture, mask = crop.cut(picture), crop.cut(mask)  # (3, h, w), (h, w)
        if _coin(self.config.flip, generator):
            picture, mask = (functional.horizontal_flip(item) for item in (picture, mask))
        pixels = picture.as_subclass(torch.Tensor).contiguous()
        if self.config.photometric:
            pixels = draw_distortion(generator)(pixels)
        # left, top, right, bottom
        padding = [0, 0, self.config.crop - crop.width, self.config.crop - crop.height]
        # (3, crop, crop)
        pixels = functional.pad(normalise(pixels, self.mean, self.std), padding, fill=0)
        return (
            pixels,
            functional.pad(mask, padding, fill=IGNORED).as_subclass(torch.Tensor).contiguous(),
        )


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number, both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _coin(probability: float, generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator, dtype=torch.float64)) < probability
