"""Class names bound to a model for one call, with their text embeddings and a background policy.

Letters: C classes, R rows that compete (class names and background words), D joint width.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor

from cascade_clip.errors import SettingError
from cascade_clip.results import UNLABELLED
from cascade_clip.vocabulary import Vocabulary, build_palette, load_words, parse_classes

_logger = logging.getLogger(__name__)

BACKGROUND = "background"
BACKGROUND_COLOR = (64, 64, 64)

SCENERY_WORD = "scenery"
"""In place of background words: those of `SCENERY`."""

SCENERY = (
    "sky, cloud, wall, ceiling, floor, ground, road, sidewalk, grass, tree, bush, plant, water,"
    " sea, river, sand, snow, mountain, rock, building, house, fence, window, door, curtain,"
    " furniture, shelf, table, carpet"
)
"""Background words for images of things: what is mostly around them."""

Words = str | Sequence[str] | Vocabulary
Threshold = float | Literal["none"]
Embed = Callable[[Vocabulary], Tensor]
Value = TypeVar("Value")


@dataclass(frozen=True)
class BackgroundPolicy:
    """Which pixels are none of the class names; with an empty policy none are."""

    words: Vocabulary | None = None
    """Background words: they compete with the class names and all mean `background`."""
    threshold: float | None = None
    """Pixels with a lower best score are unlabelled, or `background` if that is a class name."""

    def __post_init__(self) -> None:
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise SettingError(f"the threshold applies to scores in 0..1, got {self.threshold}")

    @classmethod
    def parse(
        cls, words: Words | None = None, threshold: Threshold | None = None
    ) -> BackgroundPolicy:
        """Read a policy as users give it: background words as a list, as "sky, wall", a file or
        `scenery`; a threshold as a number. Nothing, or the word `none`, means that there is none.

        Raises:
            ValueError: a threshold that is neither a number in -1..1 nor `none`.
        """
        words, level = without_none(words), without_none(threshold)
        if isinstance(level, str):
            raise SettingError(f"a threshold is a number or 'none', got {level!r}")
        if not words:
            return cls(None, level)
        if not isinstance(words, str):
            return cls(as_vocabulary(words), level)
        if words == SCENERY_WORD:
            return cls(load_words(SCENERY), level)
        if difflib.get_close_matches(words.strip().casefold(), [SCENERY_WORD], cutoff=0.8):
            text = "%r is taken as a background word; did you mean %s?"
            _logger.warning(text, words.strip(), SCENERY_WORD)
        return cls(load_words(words), level)

    def words_besides(self, names: Sequence[str]) -> Vocabulary | None:
        """Return the background words that are not class names already."""
        if self.words is None:
            return None
        known = {name.casefold() for name in names if name.casefold() != BACKGROUND}
        both = [name for name in self.words.names if name.casefold() in known]
        if both and self.words.names != load_words(SCENERY).names:
            text = "given as background words, but class names already, which they stay: %s"
            _logger.warning(text, ", ".join(both))
        kept = [index for index, name in enumerate(self.words.names) if name not in both]
        return self.words.take(kept) if kept else None


NO_BACKGROUND = BackgroundPolicy()


def without_none(value: Value) -> Value | None:
    """Return what a user gave, or None for the word `none`."""
    return None if isinstance(value, str) and value.strip().casefold() == "none" else value


@dataclass(frozen=True)
class BoundClasses:
    """Class names bound to a model."""

    names: tuple[str, ...]
    """Names of the labels that come out, C of them."""
    colors: tuple[tuple[int, int, int], ...]
    text: Tensor
    """Text embeddings that compete, (R, D)."""
    seen: Tensor
    """Whether each row was seen in training, bool (R,)."""
    calibration: float = 0.0
    """Subtracted from the scores of seen rows."""
    labels: Tensor | None = None
    """Label of every row, int64 (R,); None: row r is label r."""
    threshold: float | None = None
    """Scores below it are no class."""
    below: int = UNLABELLED
    """The label that pixels below the threshold get."""
    background: str = "none"
    """The background policy in words, for reports."""

    def __post_init__(self) -> None:
        rows = len(self.names) if self.labels is None else len(self.labels)
        if not (rows == len(self.text) == len(self.seen) and len(self.names) == len(self.colors)):
            found = f"{len(self.colors)} and {len(self.text)}"
            raise ValueError(
                f"{len(self.names)} names need as many colours and {rows} rows of text, got {found}"
            )

    def on_cpu(self) -> BoundClasses:
        """Return the same classes with every tensor on the CPU."""
        labels = None if self.labels is None else self.labels.cpu()
        return replace(self, text=self.text.cpu(), seen=self.seen.cpu(), labels=labels)


def as_vocabulary(classes: Words) -> Vocabulary:
    """Class names in any of the forms that people give them."""
    if isinstance(classes, Vocabulary):
        return classes
    if isinstance(classes, str):
        return parse_classes(classes)
    names = tuple(str(name).strip() for name in classes)
    return Vocabulary(names, tuple((name,) for name in names), build_palette(len(names)))


def bind_classes(
    vocabulary: Vocabulary,
    embed: Embed,
    seen_names: Sequence[str],
    *,
    calibration: float = 0.0,
    text: Tensor | None = None,
    policy: BackgroundPolicy = NO_BACKGROUND,
) -> BoundClasses:
    """Bind class names and a background policy.

    Args:
        vocabulary: the class names, of which one may be `background`.
        embed: gives the text embeddings of a vocabulary.
        seen_names: names that were seen in training.
        calibration: subtracted from scores of seen names, unless every name is seen.
        text: embeddings (C, D) of the class names, to use instead of `embed`.
        policy: which pixels are none of the class names.

    Raises:
        ValueError: `background` is the only name under a policy; text rows that do not fit.
    """
    names, colors, threshold = vocabulary.names, vocabulary.colors, policy.threshold
    words = policy.words_besides(names)
    place = next((index for index, name in enumerate(names) if name.casefold() == BACKGROUND), None)
    if text is not None and len(text) != len(names):
        raise ValueError(f"{len(names)} class names need as many rows of text, got {len(text)}")
    labels = list(range(len(names)))
    if place is not None and (words is not None or threshold is not None):
        labels.remove(place)  # the words, or what falls below the threshold, stand for it
    if not labels:
        raise SettingError(f"{BACKGROUND!r} is the only class name; name at least one thing")
    kept = vocabulary.take(labels)
    rows, row_names = embed(kept) if text is None else text[labels], kept.names
    if words is not None:
        if place is None:
            names, colors, place = (*names, BACKGROUND), (*colors, BACKGROUND_COLOR), len(names)
        rows = torch.cat([rows, embed(words).to(rows)])  # (R, D)
        row_names += words.names
        labels += [place] * len(words.names)
    known = {name.casefold() for name in seen_names}
    seen = torch.tensor([name.casefold() in known for name in row_names])  # (R,)
    return BoundClasses(
        names,
        colors,
        rows,
        seen,
        calibration=0.0 if bool(seen.all()) else calibration,
        labels=None if labels == list(range(len(names))) else torch.tensor(labels),
        threshold=threshold,
        below=UNLABELLED if place is None or threshold is None else place,
        background=_describe(words, threshold),
    )


def _describe(words: Vocabulary | None, threshold: float | None) -> str:
    parts = []
    if words is not None:
        more = ", ..." if len(words.names) > 12 else ""
        parts.append(f"words ({', '.join(words.names[:12])}{more})")
    if threshold is not None:
        parts.append(f"threshold {threshold:g}")
    return " and ".join(parts) or "none"
