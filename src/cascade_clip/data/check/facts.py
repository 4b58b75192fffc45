"""What a data check reads: both files of every pair, and how often each mask value occurs."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from cascade_clip.data.masks import UNKNOWN, MaskReader, RawMask
from cascade_clip.errors import CascadeClipError
from cascade_clip.files import load_image
from cascade_clip.vocabulary import IGNORED, Vocabulary

Step = Callable[[int, int], None]
KEPT = 1000
"""Raw values that are remembered of one mask; a smoothed colour mask may have many thousands."""


@dataclass(frozen=True)
class PairFacts:
    """What was found in one image and its mask."""

    image: Path
    mask: Path
    image_problem: str = ""
    """Why the image cannot be read, in one line; empty if it can."""
    mask_problem: str = ""
    image_size: tuple[int, int] | None = None
    """Width and height, turned as EXIF says; None where the image cannot be read."""
    mask_size: tuple[int, int] | None = None
    colored: bool = False
    """Whether the mask was read by colour."""
    labels: dict[int, int] = field(default_factory=dict)
    """Pixels of every label, IGNORED and UNKNOWN among them."""
    values: dict[int, int] = field(default_factory=dict)
    """Pixels of the raw values, the KEPT most frequent ones."""

    @property
    def fits(self) -> bool:
        """Whether both files can be read and have one size."""
        return self.image_size is not None and self.image_size == self.mask_size

    @property
    def differs(self) -> bool:
        """Whether both files can be read and have different sizes."""
        return bool(self.image_size and self.mask_size) and not self.fits

    def share(self, label: int) -> float:
        """Share of a label in the pixels of the mask."""
        return self.labels.get(label, 0) / max(1, sum(self.labels.values()))


class _Facts(Dataset[PairFacts]):
    def __init__(self, pairs: Sequence[tuple[Path, Path]], vocabulary: Vocabulary) -> None:
        self.pairs, self.reader = list(pairs), MaskReader(vocabulary)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> PairFacts:
        image, mask = self.pairs[index]
        image_size, image_problem = None, ""
        try:
            height, width = load_image(image).shape[1:]
            image_size = (width, height)
        except (CascadeClipError, OSError) as error:
            image_problem = str(error)
        try:
            raw = self.reader.read(mask)
        except (CascadeClipError, OSError) as error:
            return PairFacts(image, mask, image_problem, str(error), image_size)
        size = (raw.values.shape[1], raw.values.shape[0])
        values, labels = _count(raw, self.reader)
        return PairFacts(
            image, mask, image_problem, "", image_size, size, raw.colored, labels, values
        )


def _count(raw: RawMask, reader: MaskReader) -> tuple[dict[int, int], dict[int, int]]:
    """Pixels of the raw values, and of every label."""
    found, counts = raw.values.unique(return_counts=True)
    labels: dict[int, int] = {}
    meant = reader.labels(RawMask(found[None], raw.colored))[0].tolist()
    for label, count in zip(meant, counts.tolist(), strict=True):
        labels[label] = labels.get(label, 0) + count
    kept = counts.argsort(descending=True, stable=True)[:KEPT].sort().values
    return dict(zip(found[kept].tolist(), counts[kept].tolist(), strict=True)), labels


def read_facts(
    pairs: Sequence[tuple[Path, Path]],
    vocabulary: Vocabulary,
    workers: int = 0,
    step: Step | None = None,
) -> list[PairFacts]:
    """Read every pair in order, in `workers` processes (0: this one); `step` gets (done, total)."""
    workers = min(workers, len(pairs))
    loader = DataLoader(_Facts(pairs, vocabulary), batch_size=None, num_workers=workers)
    facts: list[PairFacts] = []
    for item in loader:
        facts.append(item)
        if step is not None:
            step(len(facts), len(pairs))
    return facts


@dataclass(frozen=True)
class Count:
    """How often something occurs in masks."""

    text: str
    """Class name, or raw value as people write it."""
    pixels: int
    images: int


@dataclass(frozen=True)
class Tally:
    """The histogram of all masks that can be read."""

    masks: int
    pixels: int
    classes: tuple[Count, ...]
    """In label order, absent ones too."""
    ignored: Count
    unknown: tuple[Count, ...]
    """Raw values and colours that name no class, most pixels first."""
    values: dict[int, int]
    """Pixels of every raw value of the index masks, without colours."""

    def share(self, count: Count) -> float:
        """Share of all pixels."""
        return count.pixels / max(1, self.pixels)


def tally_facts(facts: Sequence[PairFacts], vocabulary: Vocabulary) -> Tally:
    """Add up what the masks hold."""
    pixels, images, values = Counter[int](), Counter[int](), Counter[int]()
    unknown, unknown_images = Counter[str](), Counter[str]()
    reader = MaskReader(vocabulary)
    for item in facts:
        pixels.update(item.labels)
        images.update(item.labels.keys())
        values.update({} if item.colored else item.values)
        strange = _unknown_values(item, reader)
        unknown.update(strange)
        unknown_images.update(strange.keys())
    names = enumerate(vocabulary.names)
    rows = [Count(text, count, unknown_images[text]) for text, count in unknown.items()]
    return Tally(
        masks=sum(bool(item.values) for item in facts),
        pixels=pixels.total(),
        classes=tuple(Count(name, pixels[label], images[label]) for label, name in names),
        ignored=Count("ignored", pixels[IGNORED], images[IGNORED]),
        unknown=tuple(sorted(rows, key=lambda row: (-row.pixels, row.text))),
        values=dict(sorted(values.items())),
    )


def _unknown_values(item: PairFacts, reader: MaskReader) -> dict[str, int]:
    """Pixels of the values of one mask that name no class, by the value as people write it."""
    if UNKNOWN not in item.labels:
        return {}
    raw = RawMask(torch.tensor([list(item.values)], dtype=torch.int32), item.colored)  # (1, V)
    labels = zip(item.values, reader.labels(raw)[0].tolist(), strict=True)
    return {raw.describe(value): item.values[value] for value, label in labels if label == UNKNOWN}
