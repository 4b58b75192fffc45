"""What strangers send: an image file and typed class names, each read under limits.

Every error is one line that names no path of the server.
"""

import io
import re
import struct
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from cascade_clip.config import InferenceConfig
from cascade_clip.errors import ImageError, SettingError
from cascade_clip.files import TooLarge, load_image
from cascade_clip.ops import short_side_shape
from cascade_clip.vocabulary import Vocabulary, parse_classes

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Image formats that are accepted; the other readers of Pillow stay closed to strangers."""
LONGEST_TEXT = 10_000
"""Most characters of a list of class names."""


def open_upload(file: bytes | Path) -> Image.Image:
    """Open an uploaded image, given by its content or its path, without decoding its pixels.

    Raises:
        TooLarge: its header claims more pixels than Pillow ever decodes.
        ImageError: the file is no image of an accepted format, or its header is damaged.
    """
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=formats)
    except Image.DecompressionBombError:
        raise TooLarge("the image has far too many pixels; make it smaller") from None
    except (UnidentifiedImageError, SyntaxError, ValueError, EOFError):
        kinds = "PNG, JPEG, WebP, GIF, BMP or TIFF"
        raise ImageError(
            f"this file is not an image that can be read: give a {kinds} file"
        ) from None
    except (OSError, struct.error, LookupError, ArithmeticError):  # Pillow's, for damaged headers
        raise ImageError("this image file is damaged; save it again") from None


def read_upload(file: bytes | Path, max_pixels: int, settings: InferenceConfig) -> Tensor:
    """Decode an uploaded image to a uint8 tensor (3, H, W), after its size was checked.

    Args:
        file: its content, or its path.
        max_pixels: most pixels, of the image and of the image that the model will see.
        settings: how the model resizes it.

    Raises:
        TooLarge: too many pixels, or so narrow that the model would enlarge it beyond the limit.
        ImageError: not an image, or a damaged one.
    """
    with open_upload(file) as image:
        width, height = image.size
        size = f"{width} x {height} pixels"
        if width * height > max_pixels:
            raise TooLarge(
                f"the image has {size}, more than the limit of {max_pixels:,}; make it smaller"
            )
        if settings.resize and min(width, height):
            rows, columns = short_side_shape(height, width, settings.window)
            if rows * columns > max(max_pixels, settings.window**2):
                raise TooLarge(f"an image of {size} is too narrow for this model; cut it to pieces")
        return load_image(image).contiguous()  # (3, H, W)


def read_class_names(text: str, most: int, *, count_synonyms: bool = True) -> Vocabulary:
    """Parse class names typed as "cat, grass, sofa = couch; settee"; line breaks separate names
    like commas. The text is never read as the name of a file.

    Raises:
        SettingError: no name, a name given twice, more than `most` names (synonyms included, if
            they count), or more than LONGEST_TEXT characters.
    """
    if len(text) > LONGEST_TEXT:
        raise SettingError(
            f"the class names have {len(text):,} characters; {LONGEST_TEXT:,} at most are allowed"
        )
    entries = [entry for entry in re.split("[,\n\r]", text) if entry.strip()]
    if not entries:
        raise SettingError("no class names given; name at least one, separated by commas")
    extra = sum(entry.count(";") + entry.count("=") for entry in entries) if count_synonyms else 0
    if len(entries) + extra > most:
        kind = "class names and synonyms" if extra else "class names"
        raise SettingError(f"{len(entries) + extra} {kind} are given; {most} at most are allowed")
    return parse_classes(",".join(entries))
