"""Pictures to segment and the files that come out, for the tests of the cluster engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cascade_clip.inference.image_batch import Source, find_sources
from cascade_clip.inference.ray_manifest import FOLDER

NAMES = "cat, grass"


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (40, 48)) -> list[Source]:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return find_sources([str(folder)])


def read_results(out: Path) -> dict[str, bytes]:
    """Everything below an output folder except the manifest and what a killed process was
    writing."""
    files = [
        path
        for path in out.rglob("[!.]*")
        if path.is_file() and FOLDER not in path.relative_to(out).parts
    ]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}
