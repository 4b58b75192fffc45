"""Which data set a configuration means: the only place where that is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from cascade_clip.config import DataConfig
from cascade_clip.datasets.folder import Sample, SegmentationFolder
from cascade_clip.vocabulary import Vocabulary, load_templates, load_vocabulary


class LabelledImages(Protocol):
    """What training and evaluation need of a data set."""

    vocabulary: Vocabulary

    def __len__(self) -> int:
        """Number of images."""
        ...

    def sample(self, index: int) -> Sample:
        """One image with its labels and its file name."""
        ...


def build_dataset(config: DataConfig) -> LabelledImages:
    """The data set of a configuration, its files found and checked.

    Raises:
        ValueError, FileNotFoundError: a setting is missing, a folder does not exist, images and masks do not pair up.
    """
    missing = [f"data.{name}" for name in ("images", "masks", "classes") if not getattr(config, name)]
    if missing:
        raise ValueError(f"{', '.join(missing)} not set: give the image folder, the mask folder and the class list")
    vocabulary = load_vocabulary(config.classes, config.unseen)
    return SegmentationFolder(Path(config.images), Path(config.masks), vocabulary, limit=config.limit)


def data_templates(config: DataConfig) -> tuple[str, ...]:
    """The prompt templates of a configuration."""
    return load_templates(config.templates)


