"""Names of files and folders while they are being written, and the removal of those that killed
processes have left behind.

A name holds the machine that it is written on, the start of that machine (in a container, its
numbering of processes too), the process, and a random token of the process, as a container that is
started again gives out the same numbers. So what is still being written stays.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import re
import secrets
import shutil
import socket
import time
import zlib
from pathlib import Path

import psutil

STALE_AFTER = 3600.0
"""Seconds without a change after which what another start of this machine, or another of its
containers, was writing is given up."""

_NAME = re.compile(r"\.part-([0-9a-f]{8})-([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-\d+(\..*)?")
_NUMBERS = itertools.count()
_TOKEN = secrets.token_hex(4)
_EXCHANGE, _HERE = 2, -100
"""RENAME_EXCHANGE and AT_FDCWD of Linux."""


def partial_name(path: Path) -> Path:
    """A new name beside `path`, with its ending, for what will be renamed to `path` once it is
    whole.

    The first call for a folder removes what killed processes of this machine have left there.
    """
    _clean_once(path.parent.absolute(), os.getpid())
    return path.with_name(
        f".part-{_machine()}-{_start()}-{os.getpid()}-{_TOKEN}-{next(_NUMBERS)}{path.suffix}"
    )


def remove_stale(folder: Path) -> list[Path]:
    """Remove partial files and folders of processes of this machine that have ended; returns
    which."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        name = _NAME.fullmatch(path.name)
        if name is not None and _is_stale(path, name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            found.append(path)
    return found


def exchange(first: Path, second: Path) -> bool:
    """Give two existing paths each other's names in one step; False, with nothing done, where the
    system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0)


def _is_stale(path: Path, name: re.Match[str]) -> bool:
    """Whether nobody writes it any more, as far as this process can know."""
    machine, start, process, token = name.group(1, 2, 3, 4)
    if machine != _machine():
        return False
    # its process cannot be asked for, and machines of one image may share name and id
    if start != _start():
        return time.time() - _last_change(path) > STALE_AFTER
    if int(process) == os.getpid():
        return token != _TOKEN
    return not psutil.pid_exists(int(process))


def _last_change(path: Path) -> float:
    """When a file, or a folder or anything directly in it, was changed."""
    try:
        return float(
            max(one.stat().st_mtime for one in (path, *(path.iterdir() if path.is_dir() else ())))
        )
    except FileNotFoundError:  # it is being renamed or removed
        return time.time()


@functools.lru_cache(64)
def _clean_once(folder: Path, process: int) -> None:
    try:
        remove_stale(folder)
    except OSError:  # the write that follows says what is wrong with the folder
        pass


@functools.lru_cache(1)
def _machine() -> str:
    """Eight letters for the machine."""
    return _hash(socket.gethostname(), _read("/etc/machine-id"))


@functools.lru_cache(1)
def _start() -> str:
    """Eight letters for the start of the machine and, in a container, its own numbering of
    processes."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbering = ""
    return _hash(_read("/proc/sys/kernel/random/boot_id"), numbering)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _hash(*words: str) -> str:
    return f"{zlib.crc32(' '.join(words).encode(errors='replace')):08x}"
