"""MATLAB files (level 5, `.mat`) from elsewhere: every element is checked before SciPy reads it,
which crashes on some damaged bytes.

Source of the format: MathWorks, MAT-File Format, part "Level 5 MAT-File Format".
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from typing import Any, Literal

from cascade_clip.errors import DataError

LARGEST_FILE = 1 << 26
"""Bytes that a file may have when it is unpacked; a mask of 500 x 500 pixels has 2 MB at most."""
MOST_MATRICES = 100_000
"""Matrices in one file, those in structs and cells too."""
DEEPEST = 8
"""Matrices inside one another; SBD has three."""
_HEADER, _TAG = 128, 8
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED, _UTF8 = 1, 5, 6, 14, 15, 16
_NUMBERS = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}
"""Bytes of one value of each type of number."""
_CHARACTERS = {1: 1, 2: 1, 4: 2, 16: 1, 17: 2, 18: 4}
"""The least bytes of one character of each type of text."""
_CELL, _STRUCT, _TEXT, _SPARSE = 1, 2, 4, 5
_DENSE = range(6, 16)
"""Classes of arrays."""
_COMPLEX = 0x800

Order = Literal["<", ">"]


def load_matlab(content: bytes) -> dict[str, Any]:
    """The variables of a `.mat` file, as `scipy.io.loadmat` gives them.

    Raises:
        ValueError: damaged, of another version than 5, of more than `LARGEST_FILE` bytes, or with
            objects or functions.
    """
    from scipy.io import loadmat

    try:
        found: dict[str, Any] = loadmat(io.BytesIO(unpack_matlab(content)))
    except Exception as error:  # on damaged bytes the reader raises almost anything
        raise DataError(f"not a readable MATLAB file ({' '.join(str(error).split())})") from error
    return found


def unpack_matlab(content: bytes) -> bytes:
    """The same file without compression, with every element checked: type, size, and that it ends
    with what it lies in.

    Raises:
        ValueError: as `load_matlab`.
    """
    order = _byte_order(content)
    parts, place, room = [content[:_HEADER]], _HEADER, LARGEST_FILE
    while place < len(content):
        kind, size = _read_tag(content, place, order)
        after = place + _TAG + size
        if after > len(content):
            raise DataError("it is cut off")
        if kind == _COMPRESSED:
            parts.append(_decompress(content[place + _TAG : after], room))
        else:
            parts.append(content[place:after])
        room -= len(parts[-1])
        place = after
        if room < 0:
            raise DataError(f"it unpacks to more than {LARGEST_FILE:,} bytes")
    whole = b"".join(parts)
    walk = _Walk(whole, order)
    for end in _ends(parts):
        walk.check_matrix(end)
    return whole


def _byte_order(content: bytes) -> Order:
    """From the header: text, place of a subsystem, version 1.0 and "MI" as a 16-bit number."""
    ends: dict[bytes, Order] = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}
    found = ends.get(content[124:_HEADER])
    if found is None or 0 in content[:4]:  # a zero among the first four bytes means version 4
        raise DataError("the header of MATLAB 5 files is missing")
    return found


def _read_tag(content: bytes, place: int, order: Order) -> tuple[int, int]:
    """Type and bytes of the element at a place."""
    if place + _TAG > len(content):
        raise DataError("it is cut off")
    kind, size = struct.unpack_from(f"{order}II", content, place)
    return kind, size


def _decompress(content: bytes, room: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(content, room + 1)
    except zlib.error as error:
        raise DataError(f"its compressed part is damaged: {error}") from error
    if len(found) > room:
        raise DataError(f"it unpacks to more than {LARGEST_FILE:,} bytes")
    if not stream.eof or stream.unused_data:
        raise DataError("its compressed part is not whole")
    return found


def _ends(parts: list[bytes]) -> list[int]:
    """Where each variable ends in the unpacked file."""
    found, place = [], len(parts[0])
    for part in parts[1:]:
        place += len(part)
        found.append(place)
    return found


class _Walk:
    """A place in an unpacked file, which moves on with everything that is checked."""

    def __init__(self, content: bytes, order: Order) -> None:
        self.content, self.order, self.place, self.matrices = content, order, _HEADER, 0

    def check_matrix(self, limit: int, depth: int = 1) -> None:
        """Check the matrix that begins here and ends by `limit`, and all that lies in it."""
        self.matrices += 1
        if self.matrices > MOST_MATRICES or depth > DEEPEST:
            raise DataError(
                f"it has more than {MOST_MATRICES:,} matrices or {DEEPEST} inside one another"
            )
        kind, size = _read_tag(self.content, self.place, self.order)
        self.place += _TAG
        end = self.place + size
        if kind != _MATRIX or end > limit:
            raise DataError(f"an element of type {kind} and {size} bytes where a matrix should be")
        if size == 0 and depth > 1:  # an empty cell
            return
        flags = self._integers(end, (_UINT32,), 2)[0]
        shape = self._integers(end, (_INT32, _UINT32))
        self._element(end, (_INT8, _UTF8))  # its name
        if not 2 <= len(shape) <= 32 or min(shape) < 0:
            raise DataError(f"a matrix of shape {shape}")
        self._check_content(flags, shape, end, depth)
        if self.place != end or (depth == 1 and end != limit):
            raise DataError("a matrix does not end where it says")

    def _check_content(self, flags: int, shape: tuple[int, ...], end: int, depth: int) -> None:
        kind, parts, count = flags & 0xFF, 2 if flags & _COMPLEX else 1, math.prod(shape)
        if kind in _DENSE:
            for _ in range(parts):
                self._values(end, _NUMBERS, count, count)
        elif kind == _TEXT:
            self._values(end, _CHARACTERS, count, LARGEST_FILE)
        elif kind == _SPARSE and len(shape) == 2:
            self._values(end, _NUMBERS, 0, LARGEST_FILE)  # rows
            self._values(end, _NUMBERS, shape[1] + 1, LARGEST_FILE)  # where columns begin
            for _ in range(parts):
                # MATLAB writes logical values as bytes that it calls doubles
                self._element(end, tuple(_NUMBERS))
        elif kind in (_CELL, _STRUCT):
            fields = self._count_fields(end) if kind == _STRUCT else 1
            if count * fields * _TAG > end - self.place or (count > 1 and not fields):
                raise DataError(f"{count} x {fields} matrices in {end - self.place} bytes")
            for _ in range(count * fields):
                self.check_matrix(end, depth + 1)
        else:
            raise DataError(f"a matrix of class {kind} and shape {shape}")

    def _count_fields(self, end: int) -> int:
        """The number of fields of a struct, from the bytes of one name and those of all."""
        length = self._integers(end, (_INT32,), 1)[0]
        _, names = self._element(end, (_INT8,))
        if length < 1 or len(names) % length:
            raise DataError(f"{len(names)} bytes of field names of {length} bytes each")
        return len(names) // length

    def _values(self, end: int, types: dict[int, int], least: int, most: int) -> None:
        """Check an element of `least` to `most` values."""
        kind, content = self._element(end, tuple(types))
        count, rest = divmod(len(content), types[kind])
        if rest or not least <= count <= most:
            raise DataError(f"{len(content)} bytes of type {kind} for {least} values")

    def _integers(
        self, end: int, types: tuple[int, ...], count: int | None = None
    ) -> tuple[int, ...]:
        kind, content = self._element(end, types)
        if len(content) % 4 or (count is not None and len(content) != 4 * count):
            raise DataError(f"{len(content)} bytes of type {kind}")
        found: tuple[int, ...] = struct.unpack(
            f"{self.order}{len(content) // 4}{'i' if kind == _INT32 else 'I'}", content
        )
        return found

    def _element(self, end: int, types: tuple[int, ...]) -> tuple[int, bytes]:
        """Type and content of the element that begins here; a small one has its size in the upper
        half of its type."""
        kind, size = _read_tag(self.content, self.place, self.order)
        start = self.place + _TAG
        if kind >> 16:
            kind, size, start = kind & 0xFFFF, kind >> 16, self.place + 4
            after = start + 4
        else:
            after = start + size + -size % 8
        if kind not in types or after > end or start + size > after:
            raise DataError(f"an element of type {kind} and {size} bytes in a wrong place")
        self.place = after
        return kind, self.content[start : start + size]
