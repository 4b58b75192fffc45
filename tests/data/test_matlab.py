"""MATLAB files: arrays of whole files are those that SciPy reads, damaged files are refused."""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from scipy.io import loadmat, savemat

import raw_data
from cascade_clip.data.prepare import matlab as matlab_files
from cascade_clip.data.prepare.masks import sbd_mask
from cascade_clip.data.prepare.matlab import read_array

LABELS = np.arange(12, dtype=np.uint8).reshape(3, 4)
TYPES = "i1 u1 i2 u2 i4 u4 i8 u8 f4 f8".split()


def matlab(compressed: bool = False, **values: Any) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, values, do_compression=compressed)
    return buffer.getvalue()


def sbd_struct() -> dict[str, Any]:
    """As the files of SBD: sparse boundaries in a cell, the mask, a column of class numbers."""
    boundaries = np.empty((2, 1), dtype=object)
    boundaries[0, 0], boundaries[1, 0] = sparse.csc_matrix(LABELS > 9), sparse.csc_matrix((3, 4))
    return {
        "Boundaries": boundaries,
        "Segmentation": LABELS,
        "CategoriesPresent": np.array([[1.0], [2.0]]),
    }


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_are_those_that_scipy_reads(compressed: bool) -> None:
    values: dict[str, Any] = {f"of_{kind}": LABELS.astype(kind) for kind in TYPES}
    others = {"note": "a cat", "wave": np.array([[1 + 2j]]), "cell": sbd_struct()["Boundaries"]}
    values |= {"cube": np.arange(24).reshape(2, 3, 4), "none": np.zeros((0, 3)), "row": [1, 2]}
    content = matlab(compressed, **others, GTcls=sbd_struct(), deep={"a": {"b": LABELS}}, **values)
    wanted = loadmat(io.BytesIO(content))
    for name in values:
        found = read_array(content, name)
        assert found.dtype == wanted[name].dtype and np.array_equal(found, wanted[name])
    inside = wanted["GTcls"][0, 0]
    for name in ("Segmentation", "CategoriesPresent"):
        found = read_array(content, "GTcls", name)
        assert found.dtype == inside[name].dtype and np.array_equal(found, inside[name])
    assert np.array_equal(read_array(content, "deep", "a", "b"), LABELS)
    for path in (
        *(("note",), ("wave",), ("cell",), ("GTcls",), ("nothing",), ("note", "a")),
        *(("GTcls", "Boundaries"), ("GTcls", "nothing"), ("of_i1", "a")),
    ):
        name = re.escape(".".join(path))
        with pytest.raises(ValueError, match=f"no array {name} in this MATLAB file"):
            read_array(content, *path)


def test_a_struct_of_several_elements_has_no_single_field() -> None:
    pair = np.zeros((1, 2), dtype=[("a", object)])
    with pytest.raises(ValueError, match=r"no array s\.a .*not a single struct"):
        read_array(matlab(s=pair), "s", "a")


def test_the_other_byte_order() -> None:
    name, numbers = struct.pack(">HHcxxx", 1, 1, b"a"), struct.pack(">II3H2x", 4, 6, 1, 2, 515)
    inside = struct.pack(">IIII", 6, 8, 11, 0) + struct.pack(">IIii", 5, 8, 1, 3) + name + numbers
    content = (
        b"MATLAB 5.0 MAT-file".ljust(124)
        + b"\x01\x00MI"
        + struct.pack(">II", 14, len(inside))
        + inside
    )
    assert read_array(content, "a").tolist() == [[1, 2, 515]]


def number_at(place: int, value: int, content: bytes) -> bytes:
    """The content with another 32-bit number at a place."""
    changed = bytearray(content)
    struct.pack_into("<I", changed, place, value)
    return bytes(changed)


SIMPLE = matlab(a=LABELS)
"""Header 0, tag 128, flags 136, shape 152, name 168, tag of the values 176, values 184, end 200."""


def bomb() -> bytes:
    packed = zlib.compress(bytes(matlab_files.LARGEST_FILE + 1), 9)
    return SIMPLE[:128] + struct.pack("<II", 15, len(packed)) + packed


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the header of MATLAB 5 files is missing"),
        (SIMPLE[:127], "the header of MATLAB 5 files is missing"),
        # version 4, another reader
        (bytes(4) + SIMPLE[4:], "the header of MATLAB 5 files is missing"),
        (SIMPLE[:-1], "it is cut off"),
        (number_at(180, 2**31, SIMPLE), "it is cut off"),
        (number_at(176, 25, SIMPLE), "numbers of type 25"),  # SciPy crashes
        (number_at(180, 11, SIMPLE), "cannot reshape"),
        (number_at(176, 5, SIMPLE), "cannot reshape"),
        (number_at(160, 2**32 - 3, SIMPLE), r"a matrix of shape \[-3, 4\]"),
        (number_at(160, 2**31 - 1, SIMPLE), "cannot reshape"),
        (number_at(156, 4, SIMPLE), r"a matrix of shape \[3\]"),
        (number_at(140, 4, SIMPLE), "requires a buffer of 8 bytes"),
        (number_at(128, 2, SIMPLE), "an element of type 2 where a matrix should be"),
        (bomb(), "it unpacks to more than 67,108,864 bytes"),
        (matlab(True, a=LABELS)[:-1] + b"\0", "incorrect data check"),
        (number_at(132, 40, matlab(True, a=LABELS)), "its compressed part is incomplete"),
    ],
    ids=range(16),
)
def test_damaged_files(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=f"not a readable MATLAB file .*{reason}") as found:
        read_array(content, "a")
    assert "\n" not in str(found.value)


def test_mutants_are_read_or_refused() -> None:
    """Files of which a few numbers were changed at random."""
    seeds = [matlab(GTcls=sbd_struct()), matlab(True, GTcls=sbd_struct()), raw_data.sbd_file(0)]
    generator, read, refused = np.random.default_rng(0), 0, 0
    numbers = (0, 1, 5, 8, 9, 14, 17, 25, 200, 0x10001, 0x20005, 0x50001, 2**31 - 1, 2**32 - 1)
    for number in range(3000):
        content = bytearray(seeds[number % len(seeds)])
        for _ in range(1 + int(generator.integers(3))):
            place = int(generator.integers(128, len(content) - 4))
            if generator.integers(4):
                struct.pack_into("<I", content, place // 4 * 4, int(generator.choice(numbers)))
            else:
                content[place] ^= 1 << int(generator.integers(8))
        try:
            sbd_mask(bytes(content))
            read += 1
        except ValueError:
            refused += 1
    assert min(read, refused) > 100
