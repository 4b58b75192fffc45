"""Finding and pairing the files of a folder of images and a folder of masks; list files."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from cascade_clip.errors import DataError, MissingFileError
from cascade_clip.files import IMAGE_SUFFIXES, MASK_SUFFIXES

MASK_ENDING = "_labelTrainIds"
LISTED = 5
"""Names that a message lists at most."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundFiles:
    """What two folders hold, whether it fits together or not."""

    pairs: list[tuple[Path, Path]]
    images: int
    masks: int
    images_alone: list[Path]
    """Images without a mask."""
    masks_alone: list[Path]
    """Masks without an image."""
    clashes: list[tuple[Path, Path]]
    """Two images or two masks of one name, of which the first is taken."""

    def check(self) -> list[tuple[Path, Path]]:
        """The pairs, if every image has one; masks without an image are logged.

        Raises:
            DataError: images have no mask, or two images or masks have one name.
        """
        for first, second in self.clashes:
            raise DataError(f"{first} and {second} have one name; remove or rename one of them")
        if self.masks_alone:
            count, names = len(self.masks_alone), listed(self.masks_alone)
            _logger.warning("%d masks have no image and are not used: %s", count, names)
        if self.images_alone:
            raise DataError(self.describe_images_alone())
        return self.pairs

    def describe_images_alone(self) -> str:
        """Say which images have no mask, and how masks are named."""
        alone, suffixes = self.images_alone, ", ".join(MASK_SUFFIXES)
        return (
            f"{len(alone)} of {self.images} images in {alone[0].parent} have no mask:"
            f" {listed(alone)}; a mask has the image's name and one of the suffixes {suffixes}"
        )


def list_pairs(images: str | Path, masks: str | Path) -> list[tuple[Path, Path]]:
    """Every image of a folder with its mask in another, sorted; errors as `SegmentationFolder`."""
    return find_files(images, masks).check()


def find_files(images: str | Path, masks: str | Path) -> FoundFiles:
    """Pair two folders and say what does not pair up.

    Raises:
        FileNotFoundError: a folder does not exist, or there are no images.
    """
    image_folder, mask_folder = _folder(images, "image"), _folder(masks, "mask")
    image_files, image_clashes = _list_files(image_folder, IMAGE_SUFFIXES, mask_folder)
    mask_files, mask_clashes = _list_files(mask_folder, MASK_SUFFIXES, image_folder)
    if not image_files:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise MissingFileError(f"no images in {image_folder} or below it: looked for {suffixes}")
    masked = [
        (image_files[key], mask_files.get(key + MASK_ENDING, mask_files.get(key)))
        for key in sorted(image_files)
    ]
    known = {*image_files, *(key + MASK_ENDING for key in image_files)}
    spare = [path for key, path in mask_files.items() if key not in known]
    return FoundFiles(
        pairs=[(image, mask) for image, mask in masked if mask is not None],
        images=len(image_files),
        masks=len(mask_files),
        images_alone=[image for image, mask in masked if mask is None],
        masks_alone=sorted(spare),
        clashes=image_clashes + mask_clashes,
    )


def _folder(path: str | Path, kind: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise MissingFileError(f"the {kind} folder {folder} {state}; give a folder of {kind}s")
    return folder


def _list_files(
    folder: Path, suffixes: tuple[str, ...], other: Path
) -> tuple[dict[str, Path], list[tuple[Path, Path]]]:
    """Files below a folder by their path without suffix, and pairs of files that share one.

    Links are followed; `other`, the partner folder, is left out if it lies below.
    """
    found: dict[str, Path] = {}
    clashes: list[tuple[Path, Path]] = []
    visited: set[Path] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        here = Path(root).resolve()
        if here in visited or (here == other.resolve() and Path(root) != folder):
            folders.clear()
            continue
        visited.add(here)
        for name in sorted(names):
            path = Path(root, name)
            if name.startswith(".") or path.suffix.lower() not in suffixes:
                continue
            key = path.relative_to(folder).with_suffix("").as_posix()
            first = found.setdefault(key, path)
            if first is not path:
                clashes.append((first, path))
    return found, clashes


def listed(paths: list[Path]) -> str:
    """The names of the first files, for messages."""
    return ", ".join([path.name for path in paths[:LISTED]] + ["..."] * (len(paths) > LISTED))


def read_list(path: Path) -> list[str]:
    """First word of every line of a list file."""
    if not path.is_file():
        raise MissingFileError(f"the list {path} is missing; `cascade-clip data prepare` writes it")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.split()[0] for line in lines if line.strip()]
