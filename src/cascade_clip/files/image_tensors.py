"""Image and mask files as tensors."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cascade_clip.errors import ImageError
from cascade_clip.files.images import DAMAGE, open_picture, read_picture

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
        size = f"width x height {picture.width} x {picture.height}"
        raise ImageError(f"{name} has no pixels ({size}); give at least 1 x 1")
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
        raise ImageError(
            f"mask {path} is a picture of mode {mask.mode}; masks must be index images (8- or"
            " 16-bit grey, or palette PNG) whose pixel values are the labels, unless the class"
            " list says what each colour means: one `R G B NAME` or `#rrggbb NAME` a line"
        )
    values = np.array(mask).astype(np.int64)  # (H, W)
    if mask.mode == "L":
        values //= _grey_step(path)
    if values.min() < 0 or values.max() > 65535:
        found = f"values from {values.min()} to {values.max()}"
        raise ImageError(f"mask {path} has {found}; labels must lie in 0..65535")
    return torch.from_numpy(values.astype(np.int32))


def _grey_step(path: str | Path) -> int:
    """What Pillow multiplies grey values by: 85 and 17 in a PNG of 2 and 4 bits, else 1."""
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
        raise ImageError(
            f"mask {path} is a picture of mode {mask.mode}, which the colour table of a class list"
            " cannot name; convert it to RGB"
        )
    colors = np.array(mask.convert("RGB")).astype(np.int32)  # (H, W, 3)
    return torch.from_numpy(colors[..., 0] << 16 | colors[..., 1] << 8 | colors[..., 2])  # (H, W)


def is_color_mask(path: str | Path) -> bool:
    """Whether a mask is no index image but colours, by its header; False if that is unreadable."""
    try:
        with open_picture(path, mask=True) as mask:
            return mask.mode in _COLOR_MODES and mask.mode not in _INDEX_MODES
    except DAMAGE:
        return False


def _array_as_8bit(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        shapes = "(H, W), (H, W, 3) or (H, W, 4)"
        raise ImageError(f"an image array must have shape {shapes}, got {array.shape}")
    if array.size == 0:
        raise ImageError(f"the image array has no pixels: shape {array.shape}; give at least 1 x 1")
    return np.ascontiguousarray(_as_8bit(array, "the image array"))


def _as_8bit(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Bring every kind of pixel value to 0..255, white staying white."""
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if values.dtype.kind == "f":
        if not ((values >= 0) & (values <= 1)).all():  # false for NaN too
            advice = "divide by its largest value, or give uint8"
            raise ImageError(f"{name} holds floats outside 0..1; {advice}")
        values = np.rint(values * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        advice = "give uint8, uint16, bool, or floats in 0..1"
        raise ImageError(f"{name} has values of type {values.dtype}; {advice}")
    return values


def _rgb(picture: Image.Image, name: str) -> NDArray[np.uint8]:
    """(H, W, 3) of any Pillow mode."""
    if picture.mode.startswith("I") or picture.mode == "F":
        grey = np.array(picture)  # (H, W)
        if grey.dtype.kind in "iu":
            if grey.min() < 0 or grey.max() > 65535:
                advice = "convert it to 8 or 16 bits"
                raise ImageError(f"{name} holds integers outside the 16-bit range; {advice}")
            grey = grey.astype(np.uint16)
        return np.repeat(_as_8bit(grey, name)[:, :, None], 3, axis=2)
    try:
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return np.array(picture.convert("RGB"))
    except DAMAGE as error:
        problem = f"cannot be turned into RGB ({error}); convert it to RGB first"
        raise ImageError(f"{name} of mode {picture.mode} {problem}") from error
