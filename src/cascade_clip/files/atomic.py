"""Writing whole files."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: str | bytes | Callable[[Path], object]) -> Path:
    """Write a file so that nobody ever finds half of it; its folder is made.

    Args:
        path: the file.
        content: text (as UTF-8), bytes, or a function that writes the file to the path it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        part = Path(folder) / path.name
        if callable(content):
            content(part)
        else:
            part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(part, path)
    return path


def write_json(path: Path, values: Any) -> Path:
    """Write plain values as a JSON file, whole or not at all."""
    return write_whole(path, json.dumps(values, indent=1) + "\n")
