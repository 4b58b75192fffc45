"""What figures rest on, as hashes: the weights of a checkpoint, and the files and class list of a
data set."""

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
    """SHA-256 of what a data set consists of: names and sizes of its files, not their bytes, and
    what mask values mean.

    Names are relative to the folder that holds all images (or masks), so a copy elsewhere has the
    same hash; the order of files has no effect, the order of classes has. Scenes of the built-in
    world are described by their seed, number, size and drawing. Empty for data sets of another
    kind. The seen and unseen split is not part of it.
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
    """Names in label order, the raw mask values that stand for them, and the colours where there is
    such a table."""
    found: list[Any] = [list(vocabulary.names), list(map(list, vocabulary.raw_values or ()))]
    found.append(vocabulary.ignore)
    if vocabulary.mask_colors is not None:
        found.append([[list(color), label] for color, label in vocabulary.mask_colors])
    return found
