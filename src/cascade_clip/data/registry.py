"""Which data set a configuration means: the only place where that is chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from cascade_clip.config import DataConfig
from cascade_clip.data.folder import LabelledFiles, Sample, SegmentationFolder
from cascade_clip.data.layouts import Split, data_root, layout_vocabulary, list_layout
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
"""Length of the built-in data set where no limit is set."""


class LabelledImages(Protocol):
    """What training and evaluation need of a data set."""

    vocabulary: Vocabulary

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """One image with its labels and its file name."""
        ...


class SandboxScenes:
    """Scenes of the built-in world, made when they are asked for."""

    def __init__(self, count: int, seed: int, size: int) -> None:
        """Scenes 0..count-1 of the world `seed`, `size` pixels wide and high."""
        self.vocabulary = sandbox_vocabulary()
        self.count, self.seed = count, seed
        self.scene = SceneConfig(size=size)

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int) -> Sample:
        """One scene; every pixel has a label."""
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} is not among the {self.count} of this data set")
        scene = make_scene(self.seed, index, self.scene)
        image = torch.from_numpy(scene.image).permute(2, 0, 1).contiguous()  # (3, H, W)
        return Sample(
            image, torch.from_numpy(scene.mask).long(), Path(f"scene-{self.seed}-{index}")
        )


def sandbox_vocabulary() -> Vocabulary:
    """The class names of the built-in world with its seen and unseen split."""
    return Vocabulary(CLASS_NAMES, tuple((name,) for name in CLASS_NAMES), PALETTE, UNSEEN_NAMES)


def build_dataset(config: DataConfig, use: Split = "train") -> LabelledImages:
    """The data set of a configuration, its files found and checked; `use` is the part of a named
    data set where no split is set.

    Raises:
        ValueError, FileNotFoundError: a setting is missing or not for such data, a folder does not
            exist, images and masks do not pair up.
    """
    _refuse_settings(config)
    builders: dict[str, Callable[[DataConfig], LabelledImages]] = {
        "folder": _build_folder,
        "sandbox": _build_sandbox,
    }
    return builders.get(config.name, _build_named)(
        config if config.split else dataclasses.replace(config, split=use)
    )


def _refuse_settings(config: DataConfig) -> None:
    """Refuse settings that a data set of this kind would pass over in silence."""
    files = ("images", "masks", "classes")
    others, reason = {
        "folder": (
            ("root", "split"),
            "these are for the named data sets; set data.images, data.masks and data.classes",
        ),
        "sandbox": (
            (*files, "root", "split", "ignore"),
            "which makes its own scenes; set data.name to the data set that you mean",
        ),
    }.get(config.name, (files, "which has its own; set data.root"))
    # the usual ignore value, which older checkpoints store for scenes too, changes nothing
    idle = ("", None, Vocabulary.ignore)
    given = [f"data.{name}" for name in others if getattr(config, name) not in idle]
    if given:
        raise SettingError(
            f"{', '.join(given)} cannot be set with data.name {config.name}, {reason}"
        )


def data_templates(config: DataConfig) -> tuple[str, ...]:
    """The prompt templates of a configuration."""
    return load_templates(config.templates or default_templates(config.classes or config.name))


def _build_sandbox(config: DataConfig) -> LabelledImages:
    dataset = SandboxScenes(config.limit or SANDBOX_SCENES, config.seed, config.size)
    dataset.vocabulary = split_classes(dataset.vocabulary, config.unseen)
    return dataset


def _build_folder(config: DataConfig) -> LabelledImages:
    missing = [
        f"data.{name}" for name in ("images", "masks", "classes") if not getattr(config, name)
    ]
    if missing:
        raise SettingError(
            f"{', '.join(missing)} not set: give the image folder, the mask folder and the class"
            " list"
        )
    vocabulary = load_vocabulary(config.classes, config.unseen)
    if config.ignore is not None:
        vocabulary = dataclasses.replace(vocabulary, ignore=config.ignore)
    return SegmentationFolder(
        Path(config.images), Path(config.masks), vocabulary, limit=config.limit
    )


def _build_named(config: DataConfig) -> LabelledImages:
    pairs = list_layout(config.name, data_root(config.root), config.split or "train")
    vocabulary = split_classes(layout_vocabulary(config.name, pairs), config.unseen)
    if config.ignore is not None:
        vocabulary = dataclasses.replace(vocabulary, ignore=config.ignore)
    return LabelledFiles(pairs, vocabulary, config.limit)


def describe_data(dataset: LabelledImages) -> str:
    """What was found, in one line."""
    vocabulary = dataset.vocabulary
    unseen = (
        f", {len(vocabulary.unseen)} unseen: {', '.join(vocabulary.unseen[:12])}"
        if vocabulary.unseen
        else ", none unseen"
    )
    values = "" if isinstance(dataset, SandboxScenes) else f"; {_describe_masks(vocabulary)}"
    return (
        f"{len(dataset):,} images, {len(vocabulary)} class"
        f" names{unseen}{', ...' if len(vocabulary.unseen) > 12 else ''}{values}"
    )


def _describe_masks(vocabulary: Vocabulary) -> str:
    """How masks are read, and what in them is ignored."""
    parts = []
    if vocabulary.mask_colors is None or vocabulary.raw_values is not None:
        void = sorted(
            {
                vocabulary.ignore,
                *(value for value, label in vocabulary.raw_values or () if label == IGNORED),
            }
        )
        counted = (
            "counted from 0 in the order of the list"
            if vocabulary.raw_values is None
            else "as the class list says"
        )
        parts.append(f"mask values {counted}, {_ignored([str(value) for value in void], 'value')}")
    if vocabulary.mask_colors is not None:
        void_colors = [
            color_name(color) for color, label in vocabulary.mask_colors if label == IGNORED
        ]
        parts.append(f"mask colours as the class list says, {_ignored(void_colors, 'colour')}")
    return "; ".join(parts)


def _ignored(names: list[str], kind: str) -> str:
    if not names:
        return f"no {kind} is ignored"
    return (
        f"{kind}{'' if len(names) == 1 else 's'}"
        f" {', '.join(names[:5])}{', ...' if len(names) > 5 else ''} ignored"
    )
