"""Writing files and folders whole or not at all: under a temporary name, then renamed."""

import ctypes
import functools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STALE_AFTER = 3600
"""Seconds without a change after which a temporary was left behind by a process that was killed."""

_PREFIX = ".unfinished-"
_EXCHANGE, _HERE = 2, -100
"""RENAME_EXCHANGE and AT_FDCWD of Linux."""


def write_whole(
    path: Path, content: str | bytes | Callable[[Path], object], *, flush: bool = False
) -> Path:
    """Write a file so that nobody ever finds half of it; its folder is made.

    Args:
        path: the file.
        content: text (as UTF-8), bytes, or a function that writes the file to the path it is given.
        flush: wait until the file, and the new name of it, are on the disk.

    Raises:
        OSError: it cannot be written; what was at `path` before is still there.
    """
    with _temporary(path) as part:
        if isinstance(content, str):
            part.write_text(content, encoding="utf-8")
        elif isinstance(content, bytes):
            part.write_bytes(content)
        else:
            content(part)
        if flush:
            _flush(part)
        os.replace(part, path)
        if flush and os.name == "posix":  # others cannot open folders
            _flush(path.parent)
    return path


def write_json(path: Path, values: Any) -> Path:
    """Write plain values as indented JSON, whole or not at all (see `write_whole`)."""
    return write_whole(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def write_folder(folder: Path, fill: Callable[[Path], object]) -> Path:
    """Write a folder whole or not at all, in place of one of that name, if possible in one step.

    Args:
        folder: the folder; the one above it is made.
        fill: writes the files into the empty folder that it is given.

    Raises:
        OSError: it cannot be written; what was at `folder` before is still there.
    """
    with _temporary(folder) as new:
        new.mkdir()
        fill(new)
        if not folder.exists():
            os.replace(new, folder)
        elif not _exchange(new, folder):
            old = new.with_name("old")
            os.replace(folder, old)
            try:
                os.replace(new, folder)
            except BaseException:
                os.replace(old, folder)
                raise
    return folder


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Where to write what will be renamed to `path`; errors of the system name `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path.parent.absolute(), int(time.time() // STALE_AFTER))
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=_PREFIX, ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder) / path.name
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error


@functools.lru_cache(64)
def _remove_stale(folder: Path, hour: int) -> None:
    """Remove temporaries of killed processes, once an hour; younger ones may still be written."""
    for left in folder.glob(f"{_PREFIX}*"):
        try:
            changed = max(one.stat().st_mtime for one in (left, *left.iterdir()))
        except OSError:  # it is being renamed or removed
            continue
        if time.time() - changed > STALE_AFTER:
            shutil.rmtree(left, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two existing paths in one step; False, with nothing done, where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
