"""Labelled images that are read from files when they are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor
from torch.utils.data import Dataset

from cascade_clip.data.folder import list_pairs
from cascade_clip.data.masks import UNKNOWN, MaskReader
from cascade_clip.errors import DataError, SettingError
from cascade_clip.files import load_image
from cascade_clip.vocabulary import Vocabulary


@dataclass(frozen=True)
class Sample:
    """One image with its labels."""

    image: Tensor  # (3, H, W), uint8
    labels: Tensor  # (H, W), int64, IGNORED where there is no label
    path: Path


class HasSamples(Protocol):
    """A dataset that training can read."""

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """One image with its labels and its file name."""
        ...


class LabelledFiles(Dataset[Sample]):
    """Pairs of image file and mask file, read when they are asked for."""

    def __init__(
        self, pairs: Sequence[tuple[Path, Path]], vocabulary: Vocabulary, limit: int = 0
    ) -> None:
        """Read masks as `vocabulary` says; `limit` keeps the first pairs, 0 all."""
        self.total = len(pairs)  # without the limit
        self.pairs = list(pairs[: limit or None])
        self.vocabulary = vocabulary
        self._reader = MaskReader(vocabulary)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
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
    """Images and masks of two folders, paired by path below the folder without suffix, sorted.

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
