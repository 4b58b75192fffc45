"""From the masks of the original datasets to the bytes of grey 8-bit index PNGs."""

import functools
import io
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cascade_clip.data.prepare.matlab import read_array
from cascade_clip.errors import DataError
from cascade_clip.files import LARGEST_PICTURE
from cascade_clip.results import decode_mask
from cascade_clip.vocabulary import load_vocabulary

VOC_CLASSES = 20
CONTEXT_NAMES = 459
"""Names of the full PASCAL Context label list; value 0 is no label."""

CONTEXT_IDS = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113,
    115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326,
    347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip
"""Numbers of the 59 frequent classes in the list of 459, which is alphabetical: the k-th of them is
mask value k.

Source: mmsegmentation, tools/dataset_converters/pascal_context.py.
"""
_CONTEXT_TABLE = np.zeros(CONTEXT_NAMES + 1, dtype=np.uint8)
_CONTEXT_TABLE[list(CONTEXT_IDS)] = np.arange(1, len(CONTEXT_IDS) + 1)


class DetailMasks(NamedTuple):
    """The masks of one image in a PASCAL in Detail file."""

    height: int
    width: int
    regions: list[tuple[int, Any]]
    """Category number and run-length encoding; a later one lies over the earlier ones."""


def sbd_mask(content: bytes) -> bytes:
    """The class mask (0 background, 1..20) of an SBD `cls/*.mat` file: `GTcls.Segmentation`."""
    return _png(_checked(read_array(content, "GTcls", "Segmentation"), VOC_CLASSES))


def context_mask(content: bytes) -> bytes:
    """The 59-class mask (0 other, 1..59) of a PASCAL Context `.mat` file: `LabelMap`, 0..459."""
    return _png(_CONTEXT_TABLE[_checked(read_array(content, "LabelMap"), CONTEXT_NAMES)])


def detail_mask(masks: DetailMasks) -> bytes:
    """The 59-class mask (0 other, 1..59) of one image of a PASCAL in Detail file.

    Raises:
        ValueError: unknown category, damaged encoding, or a region of another size than its image.
    """
    if not 0 < masks.height * masks.width <= LARGEST_PICTURE:
        raise DataError(f"an image of {masks.width} x {masks.height} pixels")
    labels = np.zeros((masks.height, masks.width), dtype=np.int64)
    for category, encoded in masks.regions:
        region = decode_mask(encoded)
        if region.shape != labels.shape:
            raise DataError(f"a region of shape {region.shape} in an image of shape {labels.shape}")
        if not 0 <= category <= CONTEXT_NAMES:
            raise DataError(f"category {category}; PASCAL Context has 1..{CONTEXT_NAMES}")
        labels[region] = category
    return _png(_CONTEXT_TABLE[labels])


def train_id_mask(content: bytes) -> bytes:
    """Train ids 0..170 (255 unlabelled) of a `stuffthingmaps` PNG of COCO-Stuff."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.mode not in ("L", "P"):
                raise DataError(f"a PNG of mode {image.mode}; stuffthingmaps have 8-bit values")
            mask = np.asarray(image)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise DataError(f"not a readable PNG ({error})") from error
    table, unknown = _train_id_table()
    strange = np.unique(mask[unknown[mask]])
    if strange.size:
        raise DataError(f"mask values {strange.tolist()} that COCO-Stuff's stuffthingmaps lack")
    return _png(table[mask])


def _checked(mask: NDArray[Any], largest: int) -> NDArray[Any]:
    if mask.ndim != 2 or mask.dtype.kind not in "iu" or mask.size == 0:
        found = f"{mask.dtype} of shape {mask.shape}"
        raise DataError(f"a mask must be whole numbers of shape (H, W), got {found}")
    low, high = int(mask.min()), int(mask.max())
    if low < 0 or high > largest:
        raise DataError(f"mask values must lie in 0..{largest}, got {low}..{high}")
    return mask


def _png(mask: NDArray[Any]) -> bytes:
    """The same bytes for the same mask: no metadata, fixed compression."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8))
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


@functools.cache
def _train_id_table() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Train id of each raw value, and which raw values nobody uses."""
    vocabulary = load_vocabulary("coco-stuff")
    labels = vocabulary.label_table()[:256]
    unknown = np.zeros(256, dtype=bool)
    unknown[vocabulary.unknown_values(range(256))] = True
    return np.where(labels < 0, vocabulary.ignore, labels).astype(np.uint8), unknown
