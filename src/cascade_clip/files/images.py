"""Opening image files from anywhere: which kinds and sizes are read, with errors in one line."""

import os
import re
import struct
import threading
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from cascade_clip.errors import ImageError, MissingFileError

FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM",
    "QOI", "SGI", "TGA", "TIFF", "WEBP",
)  # fmt: skip
"""Kinds that are read if Pillow knows them; others stay closed: EPS starts another program."""

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif", ".heic",
)  # fmt: skip
"""Endings of the files in a folder that count as images."""

MASK_SUFFIXES = tuple(
    suffix for suffix in IMAGE_SUFFIXES if suffix not in (".jpg", ".jpeg", ".avif", ".heic")
)
"""Endings of masks. The others are left out: their compression changes values, and so labels."""

LARGEST_PICTURE = 36_000_000
"""Most pixels of an image file; the environment variable CASCADE_CLIP_MAX_PIXELS changes it."""

LARGEST_MASK = 100_000_000
"""Most pixels of a mask, which no model takes in; CASCADE_CLIP_MAX_PIXELS can only raise it."""

DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError,
    ArithmeticError, RuntimeError, struct.error,
)  # fmt: skip
"""What Pillow raises on damaged files, beside its own exceptions."""

_VARIABLE = "CASCADE_CLIP_MAX_PIXELS"
_ADVICE = f"make it smaller or, if you trust it, set the environment variable {_VARIABLE} higher"
_RAISING = threading.Lock()

# here once: `catch_warnings` is not for threads
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class TooLarge(ImageError):
    """A picture that claims more pixels than the limit."""


def open_picture(path: str | Path, name: str = "", *, mask: bool = False) -> Image.Image:
    """A picture file of one of the kinds that are read, not decoded yet.

    Args:
        path: the file.
        name: what errors call it; by default the path.
        mask: the limit of masks holds instead of that of pictures.

    Raises:
        TooLarge: its header claims more pixels than the limit.
        ValueError: the limit in the environment is no number.
        PIL.UnidentifiedImageError, OSError: as `PIL.Image.open`.
    """
    return _open(path, name or str(path), _pixel_limit(mask=mask))


def is_large(path: Path) -> bool:
    """Whether to read only one such image ahead, by its header; False if that is unreadable."""
    try:
        with open_picture(path) as picture:
            return picture.width * picture.height > LARGEST_PICTURE // 2
    except DAMAGE:
        return False


def read_picture(source: str | Path | Image.Image, name: str, *, mask: bool = False) -> Image.Image:
    """First frame of a file, decoded and turned as its EXIF says; errors name the file in a line.

    Raises:
        FileNotFoundError: there is no such file.
        TooLarge: more pixels than the limit, which for a `mask` is another.
        ValueError: damaged, of another kind, or the limit in the environment is no number.
    """
    limit = _pixel_limit(mask=mask)
    try:
        if isinstance(source, Image.Image):
            return ImageOps.exif_transpose(source)
        with _open(source, name, limit) as picture:
            return ImageOps.exif_transpose(picture)
    except TooLarge:
        raise
    except FileNotFoundError:
        raise MissingFileError(f"{name} does not exist; check the path") from None
    except IsADirectoryError:
        raise ImageError(f"{name} is a folder; give a file") from None
    except Image.DecompressionBombError:  # of a picture within the file
        raise _beyond_pillow(name) from None
    except UnidentifiedImageError:
        kind = "" if isinstance(source, Image.Image) else _closed_kind(source)
        problem = "not a picture that Pillow can read: damaged, or of a kind to convert"
        if kind:
            problem = f"of the kind {kind}, which is not read here; convert it"
        raise ImageError(f"{name} is {problem} to PNG or JPEG") from None
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        advice = "the file may be damaged, get it again"
        raise ImageError(f"{name} cannot be read ({reason}); {advice}") from error


def _open(path: str | Path, name: str, limit: int) -> Image.Image:
    Image.init()
    try:
        picture = Image.open(path, formats=[kind for kind in FORMATS if kind in Image.OPEN])
    except Image.DecompressionBombError:
        raise _beyond_pillow(name) from None
    if picture.width * picture.height > limit:
        picture.close()
        size = f"{picture.width} x {picture.height} pixels"
        raise TooLarge(f"{name} has {size} and the limit is {limit:,}; {_ADVICE}")
    return picture


def _pixel_limit(*, mask: bool) -> int:
    """Most pixels; a larger number from the environment raises Pillow's own limit for good."""
    usual = LARGEST_MASK if mask else LARGEST_PICTURE
    given = os.environ.get(_VARIABLE, "").strip()
    if not given:
        return usual
    if not re.fullmatch("[1-9][0-9]{0,17}", given):
        expected = f"must be a whole number of pixels, such as 100000000, got {given!r}"
        raise ImageError(f"the environment variable {_VARIABLE} {expected}")
    with _RAISING:
        if Image.MAX_IMAGE_PIXELS is not None and Image.MAX_IMAGE_PIXELS < int(given):
            Image.MAX_IMAGE_PIXELS = int(given)
    return max(usual, int(given)) if mask else int(given)


def _beyond_pillow(name: str) -> TooLarge:
    limit = f"Pillow's safety limit (twice PIL.Image.MAX_IMAGE_PIXELS = {Image.MAX_IMAGE_PIXELS})"
    return TooLarge(f"{name} has more pixels than {limit}; {_ADVICE}")


def _closed_kind(path: str | Path) -> str:
    """Which closed kind a file is of, by its first bytes and no reader; empty if none."""
    with Path(path).open("rb") as file:
        prefix = file.read(16)
    for kind, (_, accepts) in Image.OPEN.items():
        if kind not in FORMATS and accepts is not None and accepts(prefix) is True:
            return kind
    return ""
