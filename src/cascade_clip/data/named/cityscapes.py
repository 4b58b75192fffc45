"""Cityscapes, 19 classes, as its owners publish it."""

from pathlib import Path

from cascade_clip.data.layouts import DatasetSpec, Pairs, Split
from cascade_clip.errors import MissingFileError


def pairs(folder: Path, split: Split) -> Pairs:
    """Frames and their fine masks: train ids where every frame has them, else the label ids."""
    images = sorted((folder / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
    if not images:
        raise MissingFileError(f"no CITY/*_leftImg8bit.png in {folder / 'leftImg8bit' / split}")
    masks: list[Path] = []
    for kind in ("labelTrainIds", "labelIds"):
        masks = [
            folder / "gtFine" / split / image.parent.name
            / image.name.replace("leftImg8bit", f"gtFine_{kind}")
            for image in images
        ]  # fmt: skip
        if all(mask.is_file() for mask in masks):
            return list(zip(images, masks, strict=True))
    missing = [mask for mask in masks if not mask.is_file()]
    raise MissingFileError(
        f"{len(missing)} of {len(images)} Cityscapes frames have no mask, for example {missing[0]}"
    )


SPEC = DatasetSpec(
    title="Cityscapes",
    folders=("cityscapes", "."),
    sign="gtFine",
    pairs=pairs,
    classes="cityscapes",
    licence="Cityscapes: its own licence, non-commercial",
)
