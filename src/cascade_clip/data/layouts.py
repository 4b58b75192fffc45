"""Where the files of the named data sets lie: the folder layouts that mmsegmentation users already
have.

voc         VOCdevkit/VOC2012: train = ImageSets/Segmentation/train.txt with SegmentationClass, and
aug.txt with SegmentationClassAug (SBD) context     VOCdevkit/VOC2010:
ImageSets/SegmentationContext/{train,val}.txt with SegmentationClassContext coco-stuff
coco_stuff164k: images and annotations, {train2017,val2017} ade20k      ade/ADEChallengeData2016:
images and annotations, {training,validation} cityscapes  cityscapes: leftImg8bit and gtFine,
{train,val}
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from cascade_clip.data.folder import MASK_ENDING, list_pairs
from cascade_clip.errors import DataError, MissingFileError, SettingError
from cascade_clip.vocabulary import Vocabulary, load_vocabulary

Split = Literal["train", "val"]
Pairs = list[tuple[Path, Path]]


class Layout(NamedTuple):
    """How one data set lies on disk."""

    bases: tuple[str, ...]
    """Folders below the root that may hold it, the documented one first."""
    sign: str
    """A folder that is there when it is the right one."""
    pairs: Callable[[Path, Split], Pairs]
    """Image and mask files of a split, given the base."""


def data_root(root: str) -> Path:
    """The folder in which a named data set is looked for: the given one, else the environment
    variable CASCADE_CLIP_DATA, else `data`."""
    return Path(root or os.environ.get("CASCADE_CLIP_DATA") or "data")


def list_layout(name: str, root: str | Path, split: Split) -> Pairs:
    """Image and mask files of a named data set, in the order of its lists.

    Args:
        name: one of LAYOUTS.
        root: the folder that holds it: the parent of `VOCdevkit`, `coco_stuff164k`, ..., or the
            data set's own folder.
        split: `train` or `val`.

    Raises:
        FileNotFoundError: a folder, a list or a listed file is missing; the message says how to get
            it.
        ValueError: unknown name or split.
    """
    if name not in LAYOUTS:
        raise SettingError(f"no data set {name!r}; the named ones are {', '.join(LAYOUTS)}")
    if split not in ("train", "val"):
        raise SettingError(f"no split {split!r} of {name}; choose train or val")
    layout = LAYOUTS[name]
    folder = Path(root).expanduser()
    base = next(
        (folder / part for part in layout.bases if (folder / part / layout.sign).is_dir()), None
    )
    if base is None:
        raise MissingFileError(
            f"{name} is not in {folder}: looked for {layout.bases[0]}/{layout.sign} there; "
            "`cascade-clip data prepare` makes this layout from the original archives"
        )
    return layout.pairs(base, split)


def layout_vocabulary(name: str, pairs: Pairs) -> Vocabulary:
    """Class list of a named data set for these masks: files that end in `_labelTrainIds` hold
    labels, others raw values."""
    vocabulary = load_vocabulary(name)
    converted = {mask.stem.endswith(MASK_ENDING) for _, mask in pairs}
    if len(converted) == 2:
        raise DataError(
            f"some masks of {name} end in {MASK_ENDING}.png and some do not; finish the conversion"
            " first"
        )
    return dataclasses.replace(vocabulary, raw_values=None) if converted == {True} else vocabulary


def _listed(base: Path, list_file: str, masks: str) -> Pairs:
    """The images that a list file names, with masks of the same stem."""
    path = base / list_file
    if not path.is_file():
        raise MissingFileError(f"the list {path} is missing; `cascade-clip data prepare` writes it")
    stems = [
        line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    pairs = [(base / "JPEGImages" / f"{stem}.jpg", base / masks / f"{stem}.png") for stem in stems]
    missing = [file for pair in pairs for file in pair if not file.is_file()]
    if missing:
        raise MissingFileError(
            f"{path} names {len(missing)} files that are missing:"
            f" {', '.join(str(file) for file in missing[:3])}, ..."
        )
    return pairs


def _voc(base: Path, split: Split) -> Pairs:
    own = _listed(base, f"ImageSets/Segmentation/{split}.txt", "SegmentationClass")
    return (
        own + _listed(base, "ImageSets/Segmentation/aug.txt", "SegmentationClassAug")
        if split == "train"
        else own
    )


def _context(base: Path, split: Split) -> Pairs:
    return _listed(base, f"ImageSets/SegmentationContext/{split}.txt", "SegmentationClassContext")


def _coco_stuff(base: Path, split: Split) -> Pairs:
    return list_pairs(base / "images" / f"{split}2017", base / "annotations" / f"{split}2017")


def _ade20k(base: Path, split: Split) -> Pairs:
    part = {"train": "training", "val": "validation"}[split]
    return list_pairs(base / "images" / part, base / "annotations" / part)


def _cityscapes(base: Path, split: Split) -> Pairs:
    """Frames with their fine masks: the train ids where every frame has them, else the original
    label ids."""
    images = sorted((base / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
    if not images:
        raise MissingFileError(f"no CITY/*_leftImg8bit.png in {base / 'leftImg8bit' / split}")
    found: Pairs = []
    for kind in ("labelTrainIds", "labelIds"):
        masks = [
            base
            / "gtFine"
            / split
            / image.parent.name
            / image.name.replace("leftImg8bit", f"gtFine_{kind}")
            for image in images
        ]
        found = list(zip(images, masks, strict=True))
        if all(mask.is_file() for mask in masks):
            return found
    missing = [mask for _, mask in found if not mask.is_file()]
    raise MissingFileError(
        f"{len(missing)} of {len(images)} Cityscapes frames have no mask, for example {missing[0]}"
    )


LAYOUTS: dict[str, Layout] = {
    "voc": Layout(("VOCdevkit/VOC2012", "VOC2012", "."), "SegmentationClass", _voc),
    "coco-stuff": Layout(("coco_stuff164k", "."), "annotations", _coco_stuff),
    "context": Layout(("VOCdevkit/VOC2010", "VOC2010", "."), "SegmentationClassContext", _context),
    "context-released": Layout(
        ("VOCdevkit/VOC2010", "VOC2010", "."), "SegmentationClassContext", _context
    ),
    "ade20k": Layout(
        ("ade/ADEChallengeData2016", "ADEChallengeData2016", "."), "annotations", _ade20k
    ),
    "cityscapes": Layout(("cityscapes", "."), "gtFine", _cityscapes),
}
