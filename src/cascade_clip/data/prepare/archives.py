"""Reading tar and zip archives and folders as one stream of members, safely.

Nothing is unpacked to where an archive says: callers choose the members they want and where each
goes. A wanted member is refused when its name is absolute or leads upwards, when it is a link or a
device, or when its bytes do not agree with the size it declares.
"""

import contextlib
import functools
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from cascade_clip.errors import DataError

LARGEST_MEMBER = 256 << 20
"""Bytes that one member may declare at most; images and masks are far smaller."""

_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, RuntimeError, OSError)


class Member(NamedTuple):
    """One file in an archive or folder."""

    name: PurePosixPath
    """Path inside the archive, as it stands there."""
    size: int
    """Declared size in bytes."""
    is_file: bool
    """Whether it is a plain file (no link, no device)."""
    load: Callable[[], bytes]
    source: Path
    """The archive or folder that holds it."""
    path: Path | None = None
    """The file itself, in a folder."""

    def read(self) -> bytes:
        """The content.

        Raises:
            DataError: unsafe name, not a plain file, too large, damaged, or another length than
                declared.
        """
        # tarfile's data filter repairs unsafe names and allows links; an original archive has none
        unsafe = self.name.is_absolute() or ".." in self.name.parts or ":" in self.name.parts[0]
        if unsafe or "\\" in str(self.name):
            self._refuse("is an unsafe name; this is not the original archive")
        if not self.is_file:
            self._refuse("is a link or a device; this is not the original archive")
        if self.size > LARGEST_MEMBER:
            self._refuse(f"declares {self.size} bytes; nothing in these datasets is so large")
        with _reading(self.source):
            content = self.load()
        if len(content) != self.size:
            self._refuse(f"has {len(content)} bytes and declares {self.size}; download it again")
        return content

    def _refuse(self, reason: str) -> None:
        raise DataError(f"{self.source}: {str(self.name)!r} {reason}")


def list_members(source: Path) -> Iterator[Member]:
    """Files of a folder, a zip archive or a tar archive (plain or compressed), one after the other.

    Members of an archive must be read while they are current. Hidden files (and so the side files
    of macOS) are left out; names in a folder begin with the name of the folder.

    Raises:
        DataError: the archive cannot be read.
    """
    members = _folder if source.is_dir() else _zip if zipfile.is_zipfile(source) else _tar
    with _reading(source):
        for member in members(source):
            if member.name.name and not member.name.name.startswith("."):
                yield member


def unpacked_bytes(source: Path) -> int:
    """Most bytes that the files of a source take on disk; for a compressed tar, its own size."""
    if source.is_dir():
        return sum(member.size for member in _folder(source))
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            return sum(info.file_size for info in archive.infolist())
    return source.stat().st_size


@contextlib.contextmanager
def _reading(source: Path) -> Iterator[None]:
    """Turn what the archive libraries raise on damaged archives into one line."""
    try:
        yield
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not that of a damaged archive
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        text = f"{source} cannot be read to its end ({reason}); download it again"
        raise DataError(text) from error


def _folder(source: Path) -> Iterator[Member]:
    for place, folders, files in os.walk(source):
        folders.sort()
        for file in sorted(files):
            path = Path(place) / file
            name = PurePosixPath(source.name, *path.relative_to(source).parts)
            yield Member(name, path.stat().st_size, path.is_file(), path.read_bytes, source, path)


def _zip(source: Path) -> Iterator[Member]:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                is_file = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
                load = functools.partial(archive.read, info)
                yield Member(PurePosixPath(info.filename), info.file_size, is_file, load, source)


class _Bounded:
    """The stream below a tar archive, which reads long names and headers whatever their size."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def read(self, size: int = -1) -> bytes:
        if size > LARGEST_MEMBER:
            raise tarfile.ReadError(f"a part of {size:,} bytes")
        content: bytes = self._stream.read(size)
        return content


class _TarFile(tarfile.TarFile):
    def __init__(
        self, name: Any = None, mode: Any = "r", fileobj: Any = None, **options: Any
    ) -> None:
        super().__init__(name, mode, _Bounded(fileobj) if fileobj is not None else None, **options)


def _tar(source: Path) -> Iterator[Member]:
    with _TarFile.open(source) as archive:
        for info in archive:
            if not info.isdir():
                load = functools.partial(_tar_content, archive, info)
                yield Member(PurePosixPath(info.name), info.size, info.isreg(), load, source)


def _tar_content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    return file.read() if file is not None else b""
