"""Reports of defects of this program, for whoever mends them."""

import os
import platform
import sys
import tempfile
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("cascade-clip", "torch", "torchvision", "open_clip_torch", "lightning", "numpy",
             "pillow", "jsonargparse")  # fmt: skip
_reports: dict[tuple[str, ...], str] = {}
"""The files that this process has written, by the place of the program that failed."""


def report_defect(error: BaseException) -> str:
    """Write the traceback of a defect, with versions and the command line, to a file in the current
    folder, else in that for temporary files; return one line that names it.

    A process writes one file for each place that fails, however often it does.
    """
    place = (type(error).__name__, *map(str, traceback.extract_tb(error.__traceback__)[-1:]))
    if place not in _reports:
        _reports[place] = _write_report(error)
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return f"defect in cascade-clip, {text}; please report it with {_reports[place]}"


def _write_report(error: BaseException) -> str:
    lines = [
        f"command: {' '.join(sys.argv)}",
        f"platform: {platform.platform()}, Python {platform.python_version()}",
        f"packages: {', '.join(f'{name} {_version(name)}' for name in _PACKAGES)}",
        "",
        "".join(traceback.format_exception(error)),
    ]
    for folder in (".", tempfile.gettempdir()):
        try:
            handle, name = tempfile.mkstemp(".txt", "cascade-clip-defect-", folder)
            with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
                file.write("\n".join(lines))
            return str(Path(name).absolute())
        except OSError:  # it cannot be written there
            continue
    return "the traceback that --debug prints"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
