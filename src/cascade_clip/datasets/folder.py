"""A folder of images and a folder of index masks as a data set, and the order in which training walks through one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from cascade_clip.transforms import TrainTransform, load_image, load_mask
from cascade_clip.vocabulary import Vocabulary

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".webp")  # no JPEG: its compression changes labels
MASK_ENDING = "_labelTrainIds"
LISTED = 5

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One image with its labels."""

    image: Tensor  # (3, H, W), uint8
    labels: Tensor  # (H, W), int64, IGNORED where there is no label
    path: Path


class HasSamples(Protocol):
    """What `TrainingSet` needs of a data set."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def sample(self, index: int) -> Sample:
        """One image with its labels."""
        ...


class LabelledFiles(Dataset[Sample]):
    """Pairs of image file and mask file, read when they are asked for."""

    def __init__(self, pairs: Sequence[tuple[Path, Path]], vocabulary: Vocabulary) -> None:
        """Read masks as `vocabulary` says what their values mean."""
        self.pairs = list(pairs)
        self.vocabulary = vocabulary
        self._labels = torch.from_numpy(vocabulary.label_table())  # (65536,)
        self._known = torch.ones(len(self._labels), dtype=torch.bool)
        self._known[vocabulary.unknown_values(range(len(self._labels)))] = False

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """The same as `sample`."""
        return self.sample(index)

    def sample(self, index: int) -> Sample:
        """Read one image and its labels.

        Raises:
            ValueError: image and mask differ in size, the mask holds values that the vocabulary does not know, or a file is damaged.
        """
        image_path, mask_path = self.pairs[index]
        image, raw = load_image(image_path), load_mask(mask_path).long()  # (3, H, W), (H, W)
        if image.shape[1:] != raw.shape:
            raise ValueError(
                f"image {image_path} has {image.shape[2]} x {image.shape[1]} pixels (width x height, turned as its EXIF says) but mask "
                f"{mask_path} has {raw.shape[1]} x {raw.shape[0]}; they must be the same"
            )
        if not bool(self._known[raw].all()):
            self._refuse_values(raw, mask_path)
        return Sample(image, self._labels[raw], image_path)

    def _refuse_values(self, raw: Tensor, path: Path) -> None:
        values = raw[~self._known[raw]].unique().tolist()
        more = ", ..." if len(values) > LISTED else ""
        raise ValueError(
            f"mask {path} holds values that name no class: {', '.join(map(str, values[:LISTED]))}{more}; write the class list with one "
            f"`VALUE NAME` a line (name `ignore` for values to leave out), or set the ignore value, now {self.vocabulary.ignore}"
        )


class SegmentationFolder(LabelledFiles):
    """Images and masks of two folders, paired by their path below the folder without suffix, in sorted order.

    The mask of `a/b.jpg` is `a/b_labelTrainIds.png` if there is one, else `a/b.png` (or .bmp, .tif, .gif, .webp). Folders are
    searched to any depth. Masks without an image are logged.
    """

    def __init__(self, images: str | Path, masks: str | Path, vocabulary: Vocabulary, limit: int = 0) -> None:
        """Find and check the files; `limit` keeps the first of them, 0 all.

        Raises:
            FileNotFoundError: a folder does not exist, or there are no images.
            ValueError: images have no mask, or two images have one name.
        """
        if limit < 0:
            raise ValueError(f"limit must be 0 (all) or more, got {limit}")
        super().__init__(list_pairs(images, masks)[: limit or None], vocabulary)


def list_pairs(images: str | Path, masks: str | Path) -> list[tuple[Path, Path]]:
    """Every image of a folder with its mask in another, in sorted order; errors as `SegmentationFolder`."""
    image_folder, mask_folder = _folder(images, "image"), _folder(masks, "mask")
    pairs = _pair(_list_files(image_folder, IMAGE_SUFFIXES, mask_folder), _list_files(mask_folder, MASK_SUFFIXES, image_folder))
    if not pairs:
        raise FileNotFoundError(f"no images in {image_folder}: looked for {', '.join(IMAGE_SUFFIXES)}, also in folders below it")
    missing = [image for image, mask in pairs if mask is None]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(pairs)} images in {image_folder} have no mask in {mask_folder}: {_listed(missing)}; "
            f"a mask has the image's name and one of the suffixes {', '.join(MASK_SUFFIXES)}"
        )
    return [(image, mask) for image, mask in pairs if mask is not None]


def _folder(path: str | Path, kind: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"the {kind} folder {folder} {state}; give a folder of {kind}s")
    return folder


def _list_files(folder: Path, suffixes: tuple[str, ...], other: Path) -> dict[str, Path]:
    """Files below a folder by their path without suffix, links followed; `other`, the partner folder, is left out if it lies below."""
    found: dict[str, Path] = {}
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
                raise ValueError(f"{found[key]} and {path} have one name, so that masks and images cannot be paired; remove or rename one")
            found[key] = path
    return found


def _pair(images: Mapping[str, Path], masks: Mapping[str, Path]) -> list[tuple[Path, Path | None]]:
    """Every image with its mask or None, in sorted order; masks without an image are logged."""
    pairs = [(images[key], masks.get(key + MASK_ENDING, masks.get(key))) for key in sorted(images)]
    spare = [path for key, path in masks.items() if key not in images and key.removesuffix(MASK_ENDING) not in images]
    if spare and images:
        _logger.warning("%d masks have no image and are not used: %s", len(spare), _listed(sorted(spare)))
    return pairs


def _listed(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths[:LISTED]) + (", ..." if len(paths) > LISTED else "")


class TrainingSet(Dataset[tuple[Tensor, Tensor]]):
    """Augmented crops of a data set, asked for by (position in the run, index).

    The randomness of a crop depends on the seed, the position and the index only: not on workers, ranks or what came before.
    """

    def __init__(self, dataset: HasSamples, transform: TrainTransform, seed: int = 0) -> None:
        """Wrap anything that has samples."""
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __len__(self) -> int:
        """Number of images of the data set."""
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Image float32 (3, crop, crop) and labels int64 (crop, crop) of one (position, index)."""
        position, index = place
        sample = self.dataset.sample(index)
        return self.transform(sample.image, sample.labels, _generator(self.seed, position, index))


def _generator(*parts: int) -> torch.Generator:
    """A generator that is a function of some whole numbers, and of how many they are."""
    mixed = np.random.SeedSequence([len(parts), *(part % 2**64 for part in parts)]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]) >> 1)  # torch wants it below 2**63


class StepSampler(Sampler[tuple[int, int]]):
    """Pairs (position in the run, index) for `TrainingSet`, each epoch in a new random order.

    Positions count images from the start of the run; position p belongs to step p // batch_size. Rank r takes the r-th contiguous
    slice of every global batch, so that a step sees the same pairs whatever the number of ranks.
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
            start: images that the run has used already, over all ranks; whole batches. May be set later, too.
            rank: number of this rank.
            world: number of ranks.
        """
        if length < 1:
            raise ValueError(f"the data set must hold at least 1 image, got {length}")
        if batch_size < 1 or world < 1 or batch_size % world:
            raise ValueError(f"a batch of {batch_size} images cannot be shared by {world} ranks; make it a multiple of them")
        if not 0 <= rank < world:
            raise ValueError(f"rank must lie in 0..{world - 1}, got {rank}")
        if steps < 0:
            raise ValueError(f"steps must be 0 (without end) or more, got {steps}")
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
            raise ValueError(f"start must be a multiple of the batch size {self.batch_size}, got {value}; runs resume between two steps")
        self._start = value

    def __len__(self) -> int:
        """Pairs that are left for this rank."""
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
