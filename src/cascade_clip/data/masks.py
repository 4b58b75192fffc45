"""Mask files: their values or colours, and the labels that these stand for."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cascade_clip.data.folder import LISTED
from cascade_clip.errors import DataError
from cascade_clip.files import is_color_mask, load_color_mask, load_mask
from cascade_clip.vocabulary import Vocabulary, color_name

UNKNOWN = -2
"""Label of mask values and colours that the class list does not name."""


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

    Colour images are read by colour; so are palette and 8-bit grey images where the vocabulary
    has a colour table and no table of values. Everything else is an index image.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.by_color = vocabulary.mask_colors is not None and vocabulary.raw_values is None
        table = np.empty(0, dtype=np.int64) if self.by_color else vocabulary.label_table()
        table[vocabulary.unknown_values(range(len(table)))] = UNKNOWN
        self._labels = torch.from_numpy(table)  # (65536,), empty where masks are read by colour
        self._codes, self._color_labels = vocabulary.color_table()  # (K,), (K,)

    def read(self, path: Path) -> RawMask:
        """The raw values of a file, named or not; errors as `load_mask` and `load_color_mask`."""
        if self.by_color or is_color_mask(path):
            return RawMask(load_color_mask(path), colored=True)
        return RawMask(load_mask(path), colored=False)

    def labels(self, raw: RawMask) -> Tensor:
        """int64 labels (H, W): IGNORED where they do not count, UNKNOWN where no class is named."""
        if not raw.colored:
            return self._labels[raw.values.long()]
        if not len(self._codes):
            return torch.full(raw.values.shape, UNKNOWN)
        values = raw.values.numpy()
        place = np.searchsorted(self._codes, values).clip(max=len(self._codes) - 1)
        known = self._codes[place] == values  # (H, W)
        return torch.from_numpy(np.where(known, self._color_labels[place], UNKNOWN))

    def refuse(self, raw: RawMask, path: Path) -> None:
        """Raise the error that names the values without a class, their pixels, and the fix."""
        values, counts = raw.values[self.labels(raw) == UNKNOWN].unique(return_counts=True)
        order = (counts if raw.colored else -values).argsort(descending=True, stable=True)
        pairs = [(int(values[place]), int(counts[place])) for place in order[:LISTED]]
        named = [f"{raw.describe(value)} ({count} pixels)" for value, count in pairs]
        more = f" and {len(values) - LISTED} more" if len(values) > LISTED else ""
        found, kind = ", ".join(named) + more, "colours" if raw.colored else "values"
        if raw.colored and self.vocabulary.mask_colors is None:
            raise DataError(
                f"mask {path} is a colour image, but the class list gives no colours; write it as"
                f" `R G B NAME` or `#rrggbb NAME` lines, or give index masks; colours here: {found}"
            )
        form = "`R G B NAME`" if raw.colored else "`VALUE NAME`"
        other = "" if raw.colored else f", or set the ignore value, now {self.vocabulary.ignore}"
        raise DataError(
            f"mask {path} holds {kind} that name no class: {found}; write the class list with one"
            f" {form} a line (name `ignore` for {kind} to leave out){other}"
        )
