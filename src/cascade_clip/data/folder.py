"""A folder of images and a folder of index or colour masks as a data set, and the order in which
training walks through one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from cascade_clip.data.augmentation import TrainTransform
from cascade_clip.errors import DataError, MissingFileError, SettingError
from cascade_clip.files import is_color_mask, load_color_mask, load_image, load_mask
from cascade_clip.vocabulary import Vocabulary, color_name

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# no JPEG: its compression changes labels
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".webp")
MASK_ENDING = "_labelTrainIds"
LISTED = 5
UNKNOWN = -2
"""Label of mask values and colours that the class list does not name."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One image with its labels."""

    image: Tensor  # (3, H, W), uint8
    labels: Tensor  # (H, W), int64, IGNORED where there is no label
    path: Path


class HasSamples(Protocol):
    """What `TrainingSet` needs of a data set."""

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """One image with its labels."""
        ...


@dataclass(frozen=True)
class RawMask:
    """What the pixels of a mask file hold."""

    values: Tensor  # (H, W), int32
    colored: bool
    """Whether the values are colours, red * 65536 + green * 256 + blue."""

    def describe(self, value: int) -> str:
        """A value as people write it: a number, or #rrggbb."""
        return color_name(value) if self.colored else str(value)


class MaskReader:
    """Reads mask files, and turns their values or colours into labels as a vocabulary says.

    Colour pictures are read by colour; so are palette and 8-bit grey pictures where the vocabulary
    has a colour table and no table of values. Everything else is an index image.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.by_color = vocabulary.mask_colors is not None and vocabulary.raw_values is None
        # (65536,), unused where masks are read by colour
        self._labels = torch.empty(0) if self.by_color else _value_labels(vocabulary)
        self._codes, self._color_labels = vocabulary.color_table()  # (K,), (K,)

    def read(self, path: Path) -> RawMask:
        """The raw values of a file, named or not; errors as `load_mask` and `load_color_mask`."""
        if self.by_color or is_color_mask(path):
            return RawMask(load_color_mask(path), colored=True)
        return RawMask(load_mask(path), colored=False)

    def labels(self, raw: RawMask) -> Tensor:
        """int64 labels of shape (H, W): IGNORED where they do not count, UNKNOWN where the
        vocabulary does not name the value."""
        if not raw.colored:
            return self._labels[raw.values.long()]
        if not len(self._codes):
            return torch.full(raw.values.shape, UNKNOWN)
        values = raw.values.numpy()
        place = np.searchsorted(self._codes, values).clip(max=len(self._codes) - 1)
        return torch.from_numpy(
            np.where(self._codes[place] == values, self._color_labels[place], UNKNOWN)
        )

    def refuse(self, raw: RawMask, path: Path) -> None:
        """Raise the error that names the values without a meaning, how many pixels have them, and
        what to write."""
        values, counts = raw.values[self.labels(raw) == UNKNOWN].unique(return_counts=True)
        order = (
            counts.argsort(descending=True, stable=True)
            if raw.colored
            else torch.arange(len(values))
        )
        named = [
            f"{raw.describe(int(values[index]))} ({int(counts[index])} pixels)"
            for index in order[:LISTED]
        ]
        more = f" and {len(values) - LISTED} more" if len(values) > LISTED else ""
        found, kind = ", ".join(named) + more, "colours" if raw.colored else "values"
        if raw.colored and self.vocabulary.mask_colors is None:
            raise DataError(
                f"mask {path} is a colour picture, but the class list gives no colours; write it as"
                " one `R G B NAME` or `#rrggbb NAME` a line (name `ignore` for colours to leave"
                f" out), or give index masks; the colours here: {found}"
            )
        form = "`R G B NAME`" if raw.colored else "`VALUE NAME`"
        other = "" if raw.colored else f", or set the ignore value, now {self.vocabulary.ignore}"
        raise DataError(
            f"mask {path} holds {kind} that name no class: {found}; write the class list with one"
            f" {form} a line (name `ignore` for {kind} to leave out){other}"
        )


def _value_labels(vocabulary: Vocabulary) -> Tensor:
    """Label of every value 0..65535, int64: IGNORED where it does not count, UNKNOWN where it is
    not named."""
    table = vocabulary.label_table()
    table[vocabulary.unknown_values(range(len(table)))] = UNKNOWN
    return torch.from_numpy(table)


class LabelledFiles(Dataset[Sample]):
    """Pairs of image file and mask file, read when they are asked for."""

    def __init__(
        self, pairs: Sequence[tuple[Path, Path]], vocabulary: Vocabulary, limit: int = 0
    ) -> None:
        """Read masks as `vocabulary` says what their values mean; `limit` keeps the first pairs, 0
        all."""
        self.total = len(pairs)  # without the limit
        self.pairs = list(pairs[: limit or None])
        self.vocabulary = vocabulary
        self._reader = MaskReader(vocabulary)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """The same as `sample`."""
        return self.sample(index)

    def sample(self, index: int) -> Sample:
        """Read one image and its labels.

        Raises:
            ValueError: image and mask differ in size, the mask holds values or colours that the
                vocabulary does not know, or a file is damaged.
        """
        image_path, mask_path = self.pairs[index]
        image, raw = load_image(image_path), self._reader.read(mask_path)
        labels = self._reader.labels(raw)  # (H, W)
        if image.shape[1:] != labels.shape:
            raise DataError(
                f"image {image_path} has {image.shape[2]} x {image.shape[1]} pixels (width x"
                f" height, turned as its EXIF says) but mask {mask_path} has {labels.shape[1]} x"
                f" {labels.shape[0]}; they must be the same"
            )
        if bool((labels == UNKNOWN).any()):
            self._reader.refuse(raw, mask_path)
        return Sample(image, labels, image_path)


class SegmentationFolder(LabelledFiles):
    """Images and masks of two folders, paired by their path below the folder without suffix, in
    sorted order.

    The mask of `a/b.jpg` is `a/b_labelTrainIds.png` if there is one, else `a/b.png` (or .bmp, .tif,
    .gif, .webp). Folders are searched to any depth. Masks without an image are logged.
    """

    def __init__(
        self, images: str | Path, masks: str | Path, vocabulary: Vocabulary, limit: int = 0
    ) -> None:
        """Find and check the files; `limit` keeps the first of them, 0 all.

        Raises:
            FileNotFoundError: a folder does not exist, or there are no images.
            ValueError: images have no mask, or two images have one name.
        """
        if limit < 0:
            raise SettingError(f"limit must be 0 (all) or more, got {limit}")
        super().__init__(list_pairs(images, masks), vocabulary, limit)


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


def list_pairs(images: str | Path, masks: str | Path) -> list[tuple[Path, Path]]:
    """Every image of a folder with its mask in another, in sorted order; errors as
    `SegmentationFolder`."""
    found = find_files(images, masks)
    for first, second in found.clashes:
        raise DataError(
            f"{first} and {second} have one name, so that masks and images cannot be paired; remove"
            " or rename one"
        )
    if found.masks_alone:
        _logger.warning(
            "%d masks have no image and are not used: %s",
            len(found.masks_alone),
            listed(found.masks_alone),
        )
    if found.images_alone:
        raise DataError(
            f"{len(found.images_alone)} of {found.images} images in {images} have no mask in"
            f" {masks}: {listed(found.images_alone)}; a mask has the image's name and one of the"
            f" suffixes {', '.join(MASK_SUFFIXES)}"
        )
    return found.pairs


def find_files(images: str | Path, masks: str | Path) -> FoundFiles:
    """Pair two folders and say what does not pair up.

    Raises:
        FileNotFoundError: a folder does not exist, or there are no images.
    """
    image_folder, mask_folder = _folder(images, "image"), _folder(masks, "mask")
    image_files, image_clashes = _list_files(image_folder, IMAGE_SUFFIXES, mask_folder)
    mask_files, mask_clashes = _list_files(mask_folder, MASK_SUFFIXES, image_folder)
    if not image_files:
        raise MissingFileError(
            f"no images in {image_folder}: looked for {', '.join(IMAGE_SUFFIXES)}, also in folders"
            " below it"
        )
    masked = [
        (image_files[key], mask_files.get(key + MASK_ENDING, mask_files.get(key)))
        for key in sorted(image_files)
    ]
    spare = [
        path
        for key, path in mask_files.items()
        if key not in image_files and key.removesuffix(MASK_ENDING) not in image_files
    ]
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
            if key in found:
                clashes.append((found[key], path))
            else:
                found[key] = path
    return found, clashes


def listed(paths: list[Path]) -> str:
    """The names of the first files, for messages."""
    return ", ".join(path.name for path in paths[:LISTED]) + (
        ", ..." if len(paths) > LISTED else ""
    )


class TrainingSet(Dataset[tuple[Tensor, Tensor]]):
    """Augmented crops of a data set, asked for by (position in the run, index).

    The randomness of a crop depends on the seed, the position and the index only: not on workers,
    ranks or what came before.
    """

    def __init__(self, dataset: HasSamples, transform: TrainTransform, seed: int = 0) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Image float32 (3, crop, crop) and labels int64 (crop, crop) of one (position, index)."""
        position, index = place
        sample = self.dataset.sample(index)
        return self.transform(sample.image, sample.labels, _generator(self.seed, position, index))


def _generator(*parts: int) -> torch.Generator:
    """A generator that is a function of some whole numbers, and of how many they are."""
    mixed = np.random.SeedSequence([len(parts), *(part % 2**64 for part in parts)]).generate_state(
        1, np.uint64
    )
    return torch.Generator().manual_seed(int(mixed[0]) >> 1)  # torch wants it below 2**63


class StepSampler(Sampler[tuple[int, int]]):
    """Pairs (position in the run, index) for `TrainingSet`, each epoch in a new random order.

    Positions count images from the start of the run; position p belongs to step p // batch_size.
    Rank r takes the r-th contiguous slice of every global batch, so that a step sees the same pairs
    whatever the number of ranks.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        steps: int = 0,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Set up the order.

        Args:
            length: images in the data set.
            batch_size: images of one step over all ranks.
            seed: seed of the order.
            steps: steps of the whole run; 0 means without end.
            start: images that the run has used already, over all ranks; whole batches. May be set
                later, too.
            rank: number of this rank.
            world: number of ranks.
        """
        if length < 1:
            raise DataError(f"the data set must hold at least 1 image, got {length}")
        if batch_size < 1 or world < 1 or batch_size % world:
            raise SettingError(
                f"a batch of {batch_size} images cannot be shared by {world} ranks; make it a"
                " multiple of them"
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank must lie in 0..{world - 1}, got {rank}")
        if steps < 0:
            raise SettingError(f"steps must be 0 (without end) or more, got {steps}")
        self.length, self.batch_size, self.seed, self.steps = length, batch_size, seed, steps
        self.rank, self.world = rank, world
        self.start = start

    @property
    def start(self) -> int:
        """Images that the run has used already, over all ranks."""
        return self._start

    @start.setter
    def start(self, value: int) -> None:
        if value < 0 or value % self.batch_size:
            raise ValueError(
                f"start must be a multiple of the batch size {self.batch_size}, got {value}; runs"
                " resume between two steps"
            )
        self._start = value

    def __len__(self) -> int:
        if self.steps == 0:
            raise TypeError("a sampler without end has no length; set steps")
        return max(0, self.steps * self.batch_size - self.start) // self.world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Pairs from `start` on."""
        share = self.batch_size // self.world
        step = self.start // self.batch_size
        epoch, order = -1, np.empty(0, dtype=np.int64)
        while self.steps == 0 or step < self.steps:
            first = step * self.batch_size + self.rank * share
            for position in range(first, first + share):
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = self._order(epoch)
                yield position, int(order[position % self.length])
            step += 1

    def _order(self, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return torch.randperm(self.length, generator=_generator(self.seed, epoch)).numpy()
