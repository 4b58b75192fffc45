"""Run-length encoded masks as the COCO tools write them, in numpy.

A mask is read column by column; `counts` are the lengths of its runs, the first one of zeros (0
when the mask begins with a one). The compressed form stores each length from the fourth on as the
difference to the length two before, in groups of 5 bits, lowest first: bit 0x20 says that another
group follows, bit 0x10 of the last group is the sign, and 48 makes the character printable
(cocoapi, maskApi.c).
"""

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from cascade_clip.errors import DataError

_GROUP = 5
_MORE, _SIGN, _FIRST_CHARACTER = 0x20, 0x10, 48
LARGEST_MASK = 1 << 27
"""Pixels of a mask at most."""
_MOST_GROUPS = 12  # 60 bits, the most that fits into int64


class RunLengths(TypedDict):
    """A mask in COCO's compressed form, ready for JSON."""

    size: list[int]
    """Height and width."""
    counts: str


def encode_mask(mask: NDArray[np.bool_]) -> RunLengths:
    """Compress a mask.

    Args:
        mask: (H, W), boolean.

    Raises:
        ValueError: the mask has another type or number of dimensions, or no pixels.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_ or mask.size == 0:
        found = f"{mask.dtype} of shape {mask.shape}"
        raise ValueError(
            f"a mask to encode must be a boolean array (H, W) with pixels, got {found}"
        )
    pixels = mask.ravel(order="F")  # (H * W)
    starts = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(starts, prepend=0, append=pixels.size)
    if pixels[0]:
        counts = np.concatenate([[0], counts])
    size = [int(side) for side in mask.shape]
    return {"size": size, "counts": _compress(counts.astype(np.int64))}


def decode_mask(encoded: Mapping[str, Any]) -> NDArray[np.bool_]:
    """The mask that a run-length encoding stands for.

    Args:
        encoded: `size` (height, width) and `counts`: a compressed string (str or bytes) or a list
            of run lengths.

    Returns:
        (H, W), boolean.

    Raises:
        ValueError: a key is missing, the string is damaged, or the runs do not fill the size.
    """
    try:
        height, width = (int(side) for side in encoded["size"])
        counts = encoded["counts"]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        needed = "`size` [height, width] and `counts`"
        raise DataError(f"a run-length encoding needs {needed}") from error
    task = f"run lengths must fill {height} x {width} pixels"
    if height < 1 or width < 1 or height * width > LARGEST_MASK:
        raise DataError(f"{task}, but a mask has 1 to {LARGEST_MASK:,}")
    if isinstance(counts, (str, bytes)):
        lengths = _decompress(counts.encode() if isinstance(counts, str) else counts)
    else:
        lengths = _listed(counts)
    outside = (lengths < 0) | (lengths > height * width)  # sums of larger ones could wrap around
    if outside.any() or int(lengths.sum()) != height * width:
        raise DataError(f"{task}, these add up to {int(lengths.sum())}")
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(height, width, order="F")


def _listed(counts: Any) -> NDArray[np.int64]:
    lengths = np.asarray(counts)
    if lengths.ndim != 1 or (lengths.size and lengths.dtype.kind not in "iu"):
        raise DataError("run lengths must be a string or a list of whole numbers")
    return lengths.astype(np.int64)


def _compress(counts: NDArray[np.int64]) -> str:
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    groups, used = [], []
    active = np.ones(len(rest), dtype=bool)
    while active.any():
        low = rest & (_MORE - 1)
        rest = rest >> _GROUP
        more = active & np.where(low & _SIGN, rest != -1, rest != 0)
        groups.append(low + np.where(more, _MORE, 0) + _FIRST_CHARACTER)
        used.append(active)
        active = more
    # row by row: all groups of a run, then the next run
    characters: NDArray[np.int64] = np.stack(groups, axis=1)[np.stack(used, axis=1)]
    return bytes(characters.tolist()).decode("ascii")


def _decompress(text: bytes) -> NDArray[np.int64]:
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - _FIRST_CHARACTER
    if codes.size == 0 or codes.min() < 0 or codes.max() >= 2 * _MORE or codes[-1] & _MORE:
        raise DataError("damaged run-length string: empty, cut off, or with foreign characters")
    last = np.flatnonzero((codes & _MORE) == 0)  # the group that ends each run
    first = np.concatenate([[0], last[:-1] + 1])
    sizes = last - first + 1
    if sizes.max() > _MOST_GROUPS:
        raise DataError("damaged run-length string: one run has more than 60 bits")
    position = np.arange(len(codes)) - np.repeat(first, sizes)
    values = np.add.reduceat((codes & (_MORE - 1)) << (_GROUP * position), first)
    values = values - np.where(codes[last] & _SIGN, np.int64(1) << (_GROUP * sizes), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
