"""MATLAB files: whole ones are read as SciPy reads them, damaged ones are refused before SciPy's
reader, which they would crash."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from scipy.io import loadmat, savemat

import raw_data
from cascade_clip.data.prepare import matlab as matlab_files
from cascade_clip.data.prepare.masks import sbd_mask
from cascade_clip.data.prepare.matlab import load_matlab, unpack_matlab
from paths import TESTS

LABELS = np.arange(12, dtype=np.uint8).reshape(3, 4)


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
def test_whole_files(compressed: bool) -> None:
    content = matlab(
        compressed,
        GTcls=sbd_struct(),
        LabelMap=LABELS.astype(np.uint16) * 1000,
        note="a cat",
        wave=np.array([[1 + 2j]]),
    )
    found, wanted = load_matlab(content), loadmat(io.BytesIO(content))
    assert found.keys() == wanted.keys()
    assert found["LabelMap"].tolist() == (LABELS.astype(int) * 1000).tolist()
    assert found["note"].tolist() == ["a cat"] and found["wave"].tolist() == [[1 + 2j]]
    inside = found["GTcls"][0, 0]
    assert inside["Segmentation"].dtype == np.uint8 and np.array_equal(
        inside["Segmentation"], LABELS
    )
    assert inside["Boundaries"][0, 0].toarray().sum() == 2 and inside["Boundaries"][1, 0].nnz == 0


def test_the_compression_is_taken_away() -> None:
    assert (
        unpack_matlab(matlab(True, a=LABELS, b=LABELS))
        == unpack_matlab(plain := matlab(False, a=LABELS, b=LABELS))
        == plain
    )


def test_logical_sparse_values_that_matlab_calls_doubles() -> None:
    """MATLAB stores one byte for each, under the type of doubles."""
    content = matlab(a=sparse.csc_matrix(np.diag([1.0] * 5)))
    stored = struct.pack("<II5d", 9, 40, *[1.0] * 5)
    assert content.count(stored) == 1
    short = bytearray(content.replace(stored, struct.pack("<II5B3x", 9, 5, *[1] * 5)))
    struct.pack_into("<I", short, 132, len(short) - 136)
    flags = short.index(struct.pack("<II", 6, 8)) + 8
    short[flags + 1] |= 2  # logical
    assert load_matlab(bytes(short))["a"].toarray().tolist() == np.eye(5, dtype=bool).tolist()


def test_the_other_byte_order() -> None:
    name, numbers = struct.pack(">HHcxxx", 1, 1, b"a"), struct.pack(">II3H2x", 4, 6, 1, 2, 515)
    inside = struct.pack(">IIII", 6, 8, 11, 0) + struct.pack(">IIii", 5, 8, 1, 3) + name + numbers
    content = (
        b"MATLAB 5.0 MAT-file".ljust(124)
        + b"\x01\x00MI"
        + struct.pack(">II", 14, len(inside))
        + inside
    )
    assert load_matlab(content)["a"].tolist() == [[1, 2, 515]]


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


def nested(levels: int) -> bytes:
    value: Any = LABELS
    for _ in range(levels):
        value = {"a": value}
    return matlab(a=value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the header of MATLAB 5 files is missing"),
        (SIMPLE[:127], "the header of MATLAB 5 files is missing"),
        # version 4, another reader
        (bytes(4) + SIMPLE[4:], "the header of MATLAB 5 files is missing"),
        (SIMPLE[:-1], "it is cut off"),
        (SIMPLE + b"\0", "it is cut off"),
        # SciPy crashes
        (number_at(176, 25, SIMPLE), "an element of type 25 and 12 bytes in a wrong place"),
        (
            number_at(180, 2**31, SIMPLE),
            "an element of type 2 and 2147483648 bytes in a wrong place",
        ),
        (number_at(180, 11, SIMPLE), "11 bytes of type 2 for 12 values"),
        (number_at(176, 4, SIMPLE), "12 bytes of type 4 for 12 values"),
        (number_at(144, 17, SIMPLE), r"a matrix of class 17 and shape \(3, 4\)"),
        (number_at(160, 2**32 - 3, SIMPLE), r"a matrix of shape \(-3, 4\)"),
        (number_at(156, 4, SIMPLE), r"a matrix of shape \(3,\)"),
        (number_at(140, 4, SIMPLE), "4 bytes of type 6"),
        (number_at(128, 2, SIMPLE), "an element of type 2 and 64 bytes where a matrix should be"),
        (number_at(132, 72, SIMPLE + bytes(8)), "a matrix does not end where it says"),
        (number_at(144, 1, SIMPLE), "12 x 1 matrices in 24 bytes"),
        (number_at(144, 2, SIMPLE), "an element of type 2 and 12 bytes in a wrong place"),
        (number_at(144, 5, SIMPLE), "it is cut off"),
        (bomb(), "it unpacks to more than 67,108,864 bytes"),
        (nested(8), "8 inside one another"),
        (
            matlab(True, a=LABELS)[:-1] + b"\0",
            "its compressed part is damaged: .*incorrect data check",
        ),
    ],
    ids=range(21),
)
def test_damaged_files(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=f"not a readable MATLAB file .*{reason}") as found:
        load_matlab(content)
    assert "\n" not in str(found.value)


def test_depth_and_number_of_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_matlab(nested(7))["a"].dtype.names == ("a",)
    monkeypatch.setattr(matlab_files, "MOST_MATRICES", 7)
    content = matlab(GTcls=sbd_struct())  # a struct of three, one of them a cell of two
    assert load_matlab(content)
    monkeypatch.setattr(matlab_files, "MOST_MATRICES", 5)
    with pytest.raises(ValueError, match="more than 5 matrices"):
        load_matlab(content)


CHILD = """
import json, sys
sys.path.insert(0, {tests!r})
import test_matlab_files
print(json.dumps(test_matlab_files.try_mutants(3000)))
"""


def try_mutants(count: int) -> dict[str, int]:
    """Read files of which a few numbers were changed at random; how many were read and refused."""
    seeds = [
        matlab(GTcls=sbd_struct()),
        matlab(LabelMap=LABELS.astype(np.uint16)),
        raw_data.sbd_file(0),
    ]
    seeds.append(unpack_matlab(seeds[2]))
    generator, found = np.random.default_rng(0), {"read": 0, "refused": 0}
    numbers = (0, 1, 5, 8, 9, 14, 17, 25, 200, 0x10001, 0x20005, 0x50001, 2**31 - 1, 2**32 - 1)
    for number in range(count):
        content = bytearray(seeds[number % len(seeds)])
        for _ in range(1 + int(generator.integers(3))):
            place = int(generator.integers(128, len(content) - 4))
            if generator.integers(4):
                struct.pack_into("<I", content, place // 4 * 4, int(generator.choice(numbers)))
            else:
                content[place] ^= 1 << int(generator.integers(8))
        try:
            sbd_mask(bytes(content))
            found["read"] += 1
        except ValueError:
            found["refused"] += 1
    return found


def test_mutants_do_not_crash_the_process() -> None:
    words = [sys.executable, "-W", "ignore", "-c", CHILD.format(tests=str(TESTS))]
    said = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr[-500:]
    found = json.loads(said.stdout)
    assert found["read"] + found["refused"] == 3000 and min(found.values()) > 100
