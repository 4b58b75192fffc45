"""One array out of a MATLAB file (level 5, `.mat`) from elsewhere.

SciPy's reader is not used here, because some damaged bytes make it crash the process. This one
skips everything but the wanted array, and every slice that it takes is bounded.

Source of the format: MathWorks, MAT-File Format, part "Level 5 MAT-File Format".
"""

import itertools
import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cascade_clip.errors import DataError

LARGEST_FILE = 1 << 26
"""Most bytes of one unpacked variable; a mask of 500 x 500 pixels has 2 MB at most."""
_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
"""Types of numbers, by the number of the type of an element."""
_STRUCT = 2
_DENSE = range(6, 16)
"""Classes of arrays of numbers."""
_COMPLEX = 0x800

Order = Literal["<", ">"]


class _Matrix(NamedTuple):
    """A variable or a field: its class, shape and name, and the elements that hold its content."""

    kind: int
    shape: list[int]
    name: str
    content: Iterator[tuple[int, bytes]]


def read_array(content: bytes, *path: str) -> NDArray[Any]:
    """The array at a path: the name of a variable, then the fields of structs inside it.

    Args:
        content: the whole file.
        path: for example `"GTcls", "Segmentation"`.

    Raises:
        DataError: damaged, of another version than 5, a variable of more than `LARGEST_FILE` bytes,
            or no array of real numbers at that path.
    """
    try:
        order = _byte_order(content)
        found = _find(_variables(content[_HEADER:], order), path[0])
        for field in path[1:]:
            found = _find(_fields(found, order), field)
        return _numbers(found, order)
    except LookupError as error:
        raise DataError(f"no array {'.'.join(path)} in this MATLAB file ({error})") from None
    except (ValueError, struct.error, zlib.error) as error:
        raise DataError(f"not a readable MATLAB file ({error})") from error


def _byte_order(content: bytes) -> Order:
    """From the header: text, place of a subsystem, version 1.0 and "MI" as a 16-bit number."""
    ends: dict[bytes, Order] = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}
    found = ends.get(content[124:_HEADER])
    if found is None or 0 in content[:4]:  # a zero among the first four bytes means version 4
        raise DataError("the header of MATLAB 5 files is missing")
    return found


def _find(matrices: Iterator[_Matrix], name: str) -> _Matrix:
    found = next((matrix for matrix in matrices if matrix.name == name), None)
    if found is None:
        raise LookupError(f"nothing is called {name}")
    return found


def _variables(content: bytes, order: Order) -> Iterator[_Matrix]:
    for kind, body in _elements(content, order):
        if kind == _COMPRESSED:
            [(kind, body)] = _elements(_decompress(body), order)
        yield _matrix(kind, body, order)


def _fields(matrix: _Matrix, order: Order) -> Iterator[_Matrix]:
    """The fields of a struct of one element; their names are those in the struct."""
    if matrix.kind != _STRUCT or math.prod(matrix.shape) != 1:
        raise LookupError(f"{matrix.name} is not a single struct")
    (_, length), (_, names) = itertools.islice(matrix.content, 2)
    (size,) = struct.unpack(f"{order}i", length)
    if size < 1:
        raise DataError(f"names of {size} bytes")
    for start, (kind, body) in zip(range(0, len(names), size), matrix.content, strict=True):
        yield _matrix(kind, body, order)._replace(name=_text(names[start : start + size]))


def _numbers(matrix: _Matrix, order: Order) -> NDArray[Any]:
    """The numbers of a matrix, in the type in which the file stores them."""
    if matrix.kind not in _DENSE:
        raise LookupError(f"{matrix.name} does not hold real numbers")
    [(kind, body)] = matrix.content
    if kind not in _NUMBERS:
        raise DataError(f"numbers of type {kind}")
    values = np.frombuffer(body, np.dtype(f"{order}{_NUMBERS[kind]}"))
    return values.reshape(matrix.shape, order="F")


def _matrix(kind: int, body: bytes, order: Order) -> _Matrix:
    if kind != _MATRIX:
        raise DataError(f"an element of type {kind} where a matrix should be")
    if not body:  # an empty cell or field
        return _Matrix(0, [0, 0], "", iter(()))
    content = _elements(body, order)
    (_, flags), (_, sides), (_, name) = itertools.islice(content, 3)
    (bits, _) = struct.unpack(f"{order}II", flags)
    shape = list(struct.unpack(f"{order}{len(sides) // 4}i", sides))
    if len(shape) < 2 or min(shape) < 0:
        raise DataError(f"a matrix of shape {shape}")
    kind = 0 if bits & _COMPLEX else bits & 0xFF
    return _Matrix(kind, shape, _text(name), content)


def _elements(content: bytes, order: Order) -> Iterator[tuple[int, bytes]]:
    """Type and content of each element; a small one has its size in the upper half of its type."""
    place = 0
    while place < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, place)
        start = place + 8
        if kind >> 16:
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
        after = max(place + 8, start + size)
        if after > len(content):
            raise DataError("it is cut off")
        yield kind, content[start : start + size]
        place = after if kind == _COMPRESSED else after + -after % 8


def _decompress(content: bytes) -> bytes:
    stream = zlib.decompressobj()
    found = stream.decompress(content, LARGEST_FILE + 1)
    if len(found) > LARGEST_FILE:
        raise DataError(f"it unpacks to more than {LARGEST_FILE:,} bytes")
    if not stream.eof or stream.unused_data:
        raise DataError("its compressed part is incomplete")
    return found


def _text(content: bytes) -> str:
    return content.partition(b"\0")[0].decode("latin-1")
