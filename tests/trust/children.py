"""Work in children of this process, which have everything imported already: to be killed, or to run
on a small disk of their own."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000
READ_ONLY, REMOUNT, PRIVATE = 1, 32, 0x40000 | 16384
"""Flags of unshare and mount."""


class Said(NamedTuple):
    """What a command left behind."""

    code: int
    errors: list[str]

    @property
    def is_one_line(self) -> bool:
        """Whether it refused as it should: exit code 2, one line of error, no traceback."""
        wrong = [line for line in self.errors if line.startswith("cascade-clip: error: ")]
        return (
            self.code == 2
            and len(wrong) == 1
            and not any("Traceback" in line for line in self.errors)
        )


def start_child(work: Callable[[], object]) -> int:
    """Begin some work in a child that leads a process group of its own; returns its process number.
    What it says is thrown away."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        if not os.environ.get("TRUST_DEBUG"):
            os.dup2(silence, 2)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def finish(work: Callable[[], object]) -> tuple[bool, float]:
    """Do some work in a child; whether it ended well, and the seconds it took."""
    begin = time.monotonic()
    _, status = os.waitpid(start_child(work), 0)
    return status == 0, time.monotonic() - begin


def kill_after(seconds: float, work: Callable[[], object]) -> bool:
    """Kill (SIGKILL) a child and all its processes so many seconds after it began; False where it
    had ended before."""
    child = start_child(work)
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def ask_child(work: Callable[[], Any]) -> Any:
    """What some work in a child returns, by way of JSON; None where it failed."""
    read, write = os.pipe()

    def tell() -> None:
        os.write(write, json.dumps(work()).encode())

    child = start_child(tell)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else None


def run_command(words: list[str]) -> Said:
    """A command of the program in this process."""
    from cascade_clip.cli.main import main

    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    return Said(code, [line for line in errors.getvalue().splitlines() if line.strip()])


def own_namespace() -> bool:
    """Let this child mount what it likes; False where the system does not allow it."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEW_USER | NEW_MOUNTS) != 0:
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    except OSError:
        return False
    return bool(libc.mount(b"none", b"/", None, PRIVATE, None) == 0)


def mount_disk(folder: Path, kibibytes: int, flags: int = 0) -> None:
    """Put an empty disk of some size at a folder of a child with its own namespace; REMOUNT changes
    the one that is there."""
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={kibibytes}k".encode()
    if libc.mount(b"none", os.fsencode(folder), b"tmpfs", flags, options) != 0:
        raise OSError(ctypes.get_errno(), f"cannot mount at {folder}")
