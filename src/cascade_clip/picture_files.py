"""Opening picture files from anywhere: which kinds are read, how large they may be, and errors in one line."""

from __future__ import annotations

import os
import struct
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP",
)  # fmt: skip
"""Kinds of picture that are read, as far as this Pillow knows them; the others stay closed: EPS, for one, starts another program."""

LARGEST_PICTURE = 36_000_000
"""Pixels of a picture file at most; the environment variable CASCADE_CLIP_MAX_PIXELS sets another number."""

DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, struct.error)
"""What Pillow raises on damaged files, beside its own exceptions."""


def open_picture(path: str | Path) -> Image.Image:
    """A picture file of one of the kinds that are read, not decoded yet.

    Raises:
        ValueError: its header claims more pixels than the limit.
        PIL.UnidentifiedImageError, OSError, PIL.Image.DecompressionBombError: as `PIL.Image.open`.
    """
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
        picture = Image.open(path, formats=[kind for kind in FORMATS if kind in Image.OPEN])
    limit = int(os.environ.get("CASCADE_CLIP_MAX_PIXELS") or LARGEST_PICTURE)
    if picture.width * picture.height > limit:
        picture.close()
        raise ValueError(
            f"it has {picture.width} x {picture.height} pixels and the limit is {limit:,}; make it smaller, or set the environment "
            "variable CASCADE_CLIP_MAX_PIXELS to a larger number if you trust the file"
        )
    return picture


def is_large(path: Path) -> bool:
    """Whether a picture is so large that two of its kind should not be in memory, by its header; False where that cannot be read."""
    try:
        with open_picture(path) as picture:
            return picture.width * picture.height > LARGEST_PICTURE // 4
    except (*DAMAGE, Image.DecompressionBombError):
        return False


def read_picture(source: str | Path | Image.Image, name: str) -> Image.Image:
    """First frame of a file, decoded and turned as its EXIF says; every failure names the file in one line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: damaged, of another kind, or too large.
    """
    try:
        if isinstance(source, Image.Image):
            return ImageOps.exif_transpose(source)
        with open_picture(source) as picture:
            return ImageOps.exif_transpose(picture)
    except FileNotFoundError:
        raise FileNotFoundError(f"{name} does not exist; check the path") from None
    except IsADirectoryError:
        raise ValueError(f"{name} is a folder; give a file") from None
    except Image.DecompressionBombError:
        raise ValueError(
            f"{name} has more pixels than Pillow's safety limit (twice PIL.Image.MAX_IMAGE_PIXELS = {Image.MAX_IMAGE_PIXELS}); "
            "make it smaller, or raise that limit if you trust the file"
        ) from None
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not a picture that Pillow can read: damaged, or of a kind to convert to PNG or JPEG") from None
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{name} cannot be read ({reason}); the file may be damaged, get it again") from error
