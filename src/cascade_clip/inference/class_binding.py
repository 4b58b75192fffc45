"""What the pixels of one call are compared with: class names, their text embeddings, and what
counts as none of them.

Background policies: `none` (every pixel gets a class name), `words` (background words compete with
the class names and all mean `background`), `threshold` (a pixel whose best score lies below is
`background` if the class names hold that name, else unlabelled). The word `none` in place of
background words or of a threshold says that there are none, whatever the settings of a checkpoint
say. Letters: C classes, R rows that compete (class names and background words), D joint width.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cascade_clip.errors import SettingError
from cascade_clip.results import UNLABELLED
from cascade_clip.vocabulary import Vocabulary, build_palette, load_words, parse_classes

_logger = logging.getLogger(__name__)

BACKGROUND = "background"
BACKGROUND_COLOR = (64, 64, 64)
NONE = "none"
"""In place of background words or of a threshold: no such policy."""

SCENERY_WORD = "scenery"
"""In place of background words: those of `SCENERY`."""

SCENERY = (
    "sky, cloud, wall, ceiling, floor, ground, road, sidewalk, grass, tree, bush, plant, water,"
    " sea, river, sand, snow, mountain, rock, building, house, fence, window, door, curtain,"
    " furniture, shelf, table, carpet"
)
"""Background words for pictures of things: what is mostly around them."""

Words = str | Sequence[str] | Vocabulary
Threshold = float | Literal["none"]
Embed = Callable[[Vocabulary], Tensor]


@dataclass(frozen=True)
class Target:
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
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise SettingError(
                f"the threshold is compared with scores in 0..1, got {self.threshold}"
            )
        rows = len(self.names) if self.labels is None else len(self.labels)
        if not (rows == len(self.text) == len(self.seen) and len(self.names) == len(self.colors)):
            raise ValueError(
                f"{len(self.names)} names need as many colours and {rows} rows of text, got"
                f" {len(self.colors)} and {len(self.text)}"
            )


def as_vocabulary(classes: Words) -> Vocabulary:
    """Class names in any of the forms that people give them."""
    if isinstance(classes, Vocabulary):
        return classes
    if isinstance(classes, str):
        return parse_classes(classes)
    names = tuple(str(name).strip() for name in classes)
    return Vocabulary(names, tuple((name,) for name in names), build_palette(len(names)))


def background_words(words: Words | None, names: Sequence[str]) -> Vocabulary | None:
    """Background words that are not class names already; None where there are none, or the word
    `none` says so."""
    if not words or (isinstance(words, str) and words.strip().casefold() == NONE):
        return None
    if (
        isinstance(words, str)
        and words != SCENERY_WORD
        and difflib.get_close_matches(words.strip().casefold(), [SCENERY_WORD], cutoff=0.8)
    ):
        _logger.warning(
            "%r is taken as a background word; did you mean %s?", words.strip(), SCENERY_WORD
        )
    found = (
        load_words(SCENERY if words == SCENERY_WORD else words)
        if isinstance(words, str)
        else as_vocabulary(words)
    )
    known = {name.casefold() for name in names if name.casefold() != BACKGROUND}
    kept = [index for index, name in enumerate(found.names) if name.casefold() not in known]
    both = [name for name in found.names if name.casefold() in known]
    if both and words != SCENERY_WORD:
        _logger.warning(
            "given as background words, but class names already, which they stay: %s",
            ", ".join(both),
        )
    return _take(found, kept) if kept else None


def build_target(
    vocabulary: Vocabulary,
    embed: Embed,
    seen_names: Sequence[str],
    *,
    calibration: float = 0.0,
    text: Tensor | None = None,
    background: Words | None = None,
    threshold: Threshold | None = None,
) -> Target:
    """Bind class names and a background policy.

    Args:
        vocabulary: the class names, of which one may be `background`.
        embed: gives the text embeddings of a vocabulary.
        seen_names: names that were seen in training.
        calibration: subtracted from scores of seen names, unless every name is seen.
        text: embeddings (C, D) of the class names, to use instead of `embed`.
        background: background words, as a list, as "sky, wall", a file, `scenery`, or `none`.
        threshold: pixels whose best score lies below get no class name; `none`: there is no
            threshold.

    Raises:
        ValueError: `background` is the only name under a threshold; text rows that do not fit; a
            threshold in other words than `none`.
    """
    threshold = _as_level(threshold)
    names, colors = vocabulary.names, vocabulary.colors
    words = background_words(background, names)
    place = next((index for index, name in enumerate(names) if name.casefold() == BACKGROUND), None)
    if text is not None and len(text) != len(names):
        raise ValueError(f"{len(names)} class names need as many rows of text, got {len(text)}")
    own = list(range(len(names)))
    if place is not None and (words is not None or threshold is not None):
        own.remove(place)  # the words, or what falls below the threshold, stand for it
    if not own:
        raise SettingError(f"{BACKGROUND!r} is the only class name; name at least one thing")
    kept = _take(vocabulary, own)
    rows, row_names, labels = (
        (embed(kept) if text is None else text[own]),
        list(kept.names),
        list(own),
    )
    if words is not None:
        if place is None:
            names, colors, place = (*names, BACKGROUND), (*colors, BACKGROUND_COLOR), len(names)
        rows = torch.cat([rows, embed(words).to(rows)])  # (R, D)
        row_names += words.names
        labels += [place] * len(words.names)
    known = {name.casefold() for name in seen_names}
    seen = torch.tensor([name.casefold() in known for name in row_names])  # (R,)
    index = None if labels == list(range(len(names))) else torch.tensor(labels)
    below = UNLABELLED if place is None or threshold is None else place
    shift = 0.0 if bool(seen.all()) else calibration
    return Target(
        names, colors, rows, seen, shift, index, threshold, below, _describe(words, threshold)
    )


def _as_level(threshold: Threshold | None) -> float | None:
    if not isinstance(threshold, str):
        return threshold
    if threshold != NONE:
        raise SettingError(f"a threshold is a number or {NONE!r}, got {threshold!r}")
    return None


def _take(vocabulary: Vocabulary, rows: Sequence[int]) -> Vocabulary:
    """Some classes of a vocabulary, for their words alone."""
    return Vocabulary(
        tuple(vocabulary.names[row] for row in rows),
        tuple(vocabulary.synonyms[row] for row in rows),
        tuple(vocabulary.colors[row] for row in rows),
    )


def _describe(words: Vocabulary | None, threshold: float | None) -> str:
    parts = []
    if words is not None:
        parts.append(
            f"words ({', '.join(words.names[:12])}{', ...' if len(words.names) > 12 else ''})"
        )
    if threshold is not None:
        parts.append(f"threshold {threshold:g}")
    return " and ".join(parts) or "none"
