"""Names of files and folders while they are being written, and the removal of those that killed processes have left behind.

A name holds the process that writes it and the machine that this process runs on, so that what is still being written elsewhere stays.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import re
import shutil
import socket
import zlib
from pathlib import Path

import psutil

_NAME = re.compile(r"\.part-([0-9a-f]{8})-(\d+)-\d+(\..*)?")
_NUMBERS = itertools.count()
_EXCHANGE, _HERE = 2, -100
"""RENAME_EXCHANGE and AT_FDCWD of Linux."""


def partial_name(path: Path) -> Path:
    """A new name beside `path`, with its ending, for what will be renamed to `path` once it is whole.

    The first call for a folder removes what killed processes of this machine have left there.
    """
    _clean_once(path.parent.absolute(), os.getpid())
    return path.with_name(f".part-{_machine()}-{os.getpid()}-{next(_NUMBERS)}{path.suffix}")


def remove_stale(folder: Path) -> list[Path]:
    """Remove partial files and folders of processes of this machine that have ended; returns which."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        name = _NAME.fullmatch(path.name)
        if name is not None and name[1] == _machine() and not psutil.pid_exists(int(name[2])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            found.append(path)
    return found


def exchange(first: Path, second: Path) -> bool:
    """Give two existing paths each other's names in one step; False, with nothing done, where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0)


@functools.lru_cache(1024)
def _clean_once(folder: Path, process: int) -> None:
    try:
        remove_stale(folder)
    except OSError:  # the write that follows says what is wrong with the folder
        pass


@functools.lru_cache(1)
def _machine() -> str:
    """Eight letters for the machine and, in a container, its own numbering of processes."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbering = ""
    return f"{zlib.crc32(f'{socket.gethostname()} {numbering}'.encode()):08x}"
