"""The SHA-256 of files."""

import hashlib
import re
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def is_damaged_blob(path: Path) -> bool:
    """Whether a file differs from the SHA-256 that the hub's cache names large files by."""
    name = path.resolve().name
    return bool(re.fullmatch(r"[0-9a-f]{64}", name)) and file_sha256(path) != name
