"""Which dataset a configuration means: the only place where that is chosen."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from cascade_clip.config import DataConfig, names_of
from cascade_clip.data.folder import FoundFiles, find_files
from cascade_clip.data.layouts import Split, data_root, find_dataset
from cascade_clip.data.samples import HasSamples, LabelledFiles, Sample
from cascade_clip.errors import SettingError
from cascade_clip.sandbox import CLASS_NAMES, PALETTE, UNSEEN_NAMES, SceneConfig, make_scene
from cascade_clip.vocabulary import (
    IGNORED,
    Vocabulary,
    color_name,
    default_templates,
    load_templates,
    load_vocabulary,
    split_classes,
)

SANDBOX_SCENES = 100_000
"""Length of the built-in dataset where no limit is set."""


class LabelledImages(HasSamples, Protocol):
    """What training and evaluation need of a dataset."""

    vocabulary: Vocabulary


class SandboxScenes:
    """Scenes of the built-in world, made when they are asked for."""

    def __init__(self, count: int, seed: int, size: int) -> None:
        """Scenes 0..count-1 of the world `seed`, `size` pixels wide and high."""
        self.vocabulary, self.scene = sandbox_vocabulary(), SceneConfig(size=size)
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int) -> Sample:
        """One scene; every pixel has a label."""
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} is not among the {self.count} of this dataset")
        scene = make_scene(self.seed, index, self.scene)
        image = torch.from_numpy(scene.image).permute(2, 0, 1).contiguous()  # (3, H, W)
        labels = torch.from_numpy(scene.mask).long()  # (H, W)
        return Sample(image, labels, Path(f"scene-{self.seed}-{index}"))


def sandbox_vocabulary() -> Vocabulary:
    """The class names of the built-in world with its seen and unseen split."""
    return Vocabulary(CLASS_NAMES, tuple((name,) for name in CLASS_NAMES), PALETTE, UNSEEN_NAMES)


def build_dataset(config: DataConfig, use: Split = "train") -> LabelledImages:
    """Build a dataset, its files checked; `use` is the split of a named one where none is set.

    Raises:
        SettingError, DataError, MissingFileError: a setting is missing or not for such data, a
            folder does not exist, images and masks do not pair up.
    """
    if config.name == "sandbox":
        _refuse_settings(config)
        dataset = SandboxScenes(config.limit or SANDBOX_SCENES, config.seed, config.size)
        dataset.vocabulary = split_classes(dataset.vocabulary, config.unseen)
        return dataset
    files, vocabulary = find_labelled(config, use)
    return LabelledFiles(files.check(), vocabulary, config.limit)


def find_labelled(config: DataConfig, use: Split = "train") -> tuple[FoundFiles, Vocabulary]:
    """The files and the class list of a configuration that is not the sandbox; no image is read.

    Raises:
        SettingError, DataError, MissingFileError: as `build_dataset`, but images and masks need not
            pair up.
    """
    _refuse_settings(config)
    if config.name == "folder":
        files = find_files(config.images, config.masks)
        vocabulary = load_vocabulary(config.classes)
    else:
        spec = find_dataset(config.name)
        pairs = spec.find_pairs(data_root(config.root), config.split or use)
        files = FoundFiles(pairs, len(pairs), len(pairs), [], [], [])
        vocabulary = spec.load_classes(pairs)
    vocabulary = split_classes(vocabulary, config.unseen)
    if config.ignore is not None:
        vocabulary = dataclasses.replace(vocabulary, ignore=config.ignore)
    return files, vocabulary


def _refuse_settings(config: DataConfig) -> None:
    """Refuse missing settings, and those that a dataset of this kind would ignore."""
    files = ("images", "masks", "classes")
    missing = [f"data.{name}" for name in files if not getattr(config, name)]
    others: tuple[str, ...] = files
    reason = "which has its own; set data.root"
    if config.name == "sandbox":
        others = (*files, "root", "split", "ignore")
        reason = "which makes its own scenes; set data.name to the dataset that you mean"
    elif config.name == "folder":
        others = ("root", "split")
        reason = "these are for the named datasets; set data.images, data.masks and data.classes"
    # the usual ignore value, which older checkpoints store for scenes too, changes nothing
    idle = ("", None, Vocabulary.ignore)
    given = [f"data.{name}" for name in others if getattr(config, name) not in idle]
    if given:
        names = ", ".join(given)
        raise SettingError(f"{names} cannot be set with data.name {config.name}, {reason}")
    if missing and config.name == "folder":
        names = ", ".join(missing)
        raise SettingError(f"{names} not set: give the image folder, mask folder and class list")


def data_templates(config: DataConfig) -> tuple[str, ...]:
    """The prompt templates of a configuration."""
    if config.templates:
        return load_templates(config.templates)
    if config.name in names_of("datasets"):
        return load_templates(find_dataset(config.name).prompt_templates)
    return load_templates(default_templates(config.classes))


def describe_data(dataset: LabelledImages) -> str:
    """What was found, in one line."""
    vocabulary = dataset.vocabulary
    unseen = vocabulary.unseen
    split = f"{len(unseen)} unseen: {_first(unseen, 12)}" if unseen else "none unseen"
    values = "" if isinstance(dataset, SandboxScenes) else f"; {_describe_masks(vocabulary)}"
    return f"{len(dataset):,} images, {len(vocabulary)} class names, {split}{values}"


def _describe_masks(vocabulary: Vocabulary) -> str:
    """How masks are read, and what in them is ignored."""
    parts = []
    if vocabulary.mask_colors is None or vocabulary.raw_values is not None:
        pairs = vocabulary.raw_values
        void = {vocabulary.ignore, *(value for value, label in pairs or () if label == IGNORED)}
        how = "as the class list says" if pairs else "counted from 0 in the order of the list"
        parts.append(f"mask values {how}, {_ignored(list(map(str, sorted(void))), 'value')}")
    if vocabulary.mask_colors is not None:
        colors = [color_name(color) for color, label in vocabulary.mask_colors if label == IGNORED]
        parts.append(f"mask colours as the class list says, {_ignored(colors, 'colour')}")
    return "; ".join(parts)


def _ignored(names: list[str], kind: str) -> str:
    if not names:
        return f"no {kind} is ignored"
    return f"{kind}{'' if len(names) == 1 else 's'} {_first(names, 5)} ignored"


def _first(names: Sequence[str], most: int) -> str:
    return ", ".join([*names[:most], *["..."] * (len(names) > most)])
