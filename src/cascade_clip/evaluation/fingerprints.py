"""Hashes of what is evaluated: weights of a checkpoint, files and class list of a dataset."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cascade_clip.checkpoints import WEIGHTS, find_checkpoint
from cascade_clip.data import LabelledFiles, LabelledImages, SandboxScenes
from cascade_clip.files import file_sha256
from cascade_clip.sandbox import SCENES_VERSION
from cascade_clip.vocabulary import Vocabulary


def hash_checkpoint(source: str | Path) -> str:
    """SHA-256 of the weight file of a checkpoint folder, a run folder or a packaged model.

    Raises:
        FileNotFoundError: no such checkpoint.
    """
    return file_sha256(find_checkpoint(source) / WEIGHTS)


def hash_dataset(dataset: LabelledImages) -> str:
    """Return the SHA-256 of names and sizes of a dataset's files and of what mask values mean.

    Names are relative to the folder that holds all images (or masks), so a copy elsewhere has the
    same hash; the order of classes matters, that of files does not. Built-in scenes are described
    by seed, number, size and drawing. "" for other kinds of dataset. The split is not part of it.
    """
    if isinstance(dataset, SandboxScenes):
        content: Any = ["scenes", SCENES_VERSION, dataset.seed, dataset.count, dataset.scene.size]
    elif isinstance(dataset, LabelledFiles):
        images, masks = ([pair[side] for pair in dataset.pairs] for side in (0, 1))
        content = ["files", sorted(zip(_entries(images), _entries(masks), strict=True))]
    else:
        return ""
    text = json.dumps([content, _meaning(dataset.vocabulary)], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _entries(paths: Sequence[Path]) -> list[tuple[str, int]]:
    """Name relative to the common folder, and size in bytes, of every file."""
    common = os.path.commonpath([path.parent.absolute() for path in paths]) if paths else ""
    return [(path.absolute().relative_to(common).as_posix(), path.stat().st_size) for path in paths]


def _meaning(vocabulary: Vocabulary) -> list[Any]:
    """Return class names, the mask values that mean them, and mask colours where there are any."""
    found: list[Any] = [list(vocabulary.names), list(map(list, vocabulary.raw_values or ()))]
    found.append(vocabulary.ignore)
    if vocabulary.mask_colors is not None:
        found.append([[list(color), label] for color, label in vocabulary.mask_colors])
    return found
