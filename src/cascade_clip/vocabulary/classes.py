"""Class names in label order, their synonyms, colours, split, and the meaning of mask values."""

from __future__ import annotations

import colorsys
import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from cascade_clip.errors import SettingError

IGNORED = -1
"""Label of ignored pixels in arrays and tensors; files use another ignore value, mostly 255."""

LONGEST_NAME = 200
"""Characters of a class name at most; CLIP reads 77 tokens."""

Color = tuple[int, int, int]

_FIRST_COLORS = (
    "4477aa ee6677 228833 ccbb44 66ccee aa3377 ee7733 009988 cc3311 33bbee "
    "ee3377 997700 6699cc 994455 88cc44 775588 ddaa33 44bb99 bb5566 55aa55"
)


@dataclass(frozen=True)
class Vocabulary:
    """Class names in label order, with their synonyms, colours and split."""

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    """Words of each class, the name first; their embeddings are averaged."""
    colors: tuple[Color, ...]
    unseen: tuple[str, ...] = ()
    raw_values: tuple[tuple[int, int], ...] | None = None
    """Pairs of raw mask value and label (IGNORED: no class); None: the raw value is the label."""
    ignore: int = 255
    """Raw mask value of pixels that do not count."""
    mask_colors: tuple[tuple[Color, int], ...] | None = None
    """Pairs of mask colour and label (IGNORED: no class) of masks that hold colours, else None."""
    inherits_split: bool = True
    """Whether a model's split applies where `unseen` is empty; False: every class is seen."""

    def __post_init__(self) -> None:
        check_names(self.names)
        if not len(self.names) == len(self.synonyms) == len(self.colors):
            counts = f"{len(self.synonyms)} and {len(self.colors)}"
            raise SettingError(
                f"{len(self.names)} names need as many synonyms and colours, got {counts}"
            )
        unknown = [name for name in self.unseen if name not in self.names]
        if unknown:
            known = f"{len(self.names)}: {', '.join(self.names[:12])}, ..."
            raise SettingError(f"unseen names {unknown} are not in the class list of {known}")
        if any(not 0 <= raw <= 65535 for raw, _ in self.raw_values or ()):
            raise SettingError("raw mask values must lie in 0..65535")
        if not 0 <= self.ignore <= 65535:
            raise SettingError(f"the ignore value must lie in 0..65535, got {self.ignore}")
        keys = [color for color, _ in self.mask_colors or ()]
        wrong = [c for c in (*self.colors, *keys) if len(c) != 3 or min(c) < 0 or max(c) > 255]
        if wrong:
            raise SettingError("colours must be (red, green, blue) in 0..255")
        if len(set(keys)) < len(keys):
            twice = sorted({color_name(color) for color in keys if keys.count(color) > 1})[:5]
            raise SettingError(
                f"mask colours are given twice: {', '.join(twice)}; each means one class"
            )
        for words in self.synonyms:
            check_names(words)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def seen(self) -> tuple[str, ...]:
        """Names that may be learned from masks, in label order."""
        return tuple(name for name in self.names if name not in self.unseen)

    @property
    def seen_mask(self) -> tuple[bool, ...]:
        """Whether each class is seen."""
        return tuple(name not in self.unseen for name in self.names)

    @property
    def value_labels(self) -> tuple[tuple[int, int], ...]:
        """Pairs of raw mask value and label of index masks: `raw_values`, or every label itself."""
        if self.raw_values is not None:
            return self.raw_values
        return tuple((label, label) for label in range(len(self.names)))

    def with_unseen(self, unseen: Iterable[str]) -> Vocabulary:
        """The same classes with another split."""
        return dataclasses.replace(self, unseen=tuple(dict.fromkeys(map(clean_name, unseen))))

    def take(self, labels: Sequence[int]) -> Vocabulary:
        """Some of the classes, without a split and without mask values."""
        return Vocabulary(
            tuple(self.names[label] for label in labels),
            tuple(self.synonyms[label] for label in labels),
            tuple(self.colors[label] for label in labels),
        )

    def label_table(self) -> NDArray[np.int64]:
        """Label of every raw mask value 0..65535; IGNORED for values that name no class.

        Raises:
            ValueError: the ignore value is also the value of a class.
        """
        labels = [label for value, label in self.value_labels if value == self.ignore]
        clash = [label for label in labels if label != IGNORED]
        if clash:
            raise SettingError(
                f"mask value {self.ignore} means both `ignored` and class {self.names[clash[0]]!r}"
                f" of {len(self.names)}; set data.ignore to a value that no class has, as 65535"
            )
        table = np.full(65536, IGNORED, dtype=np.int64)
        for raw, label in self.value_labels:
            table[raw] = label
        return table

    def color_table(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Sorted codes of the mask colours (see `color_code`), and their labels, (K,) each."""
        pairs = sorted((color_code(color), label) for color, label in self.mask_colors or ())
        codes, labels = [code for code, _ in pairs], [label for _, label in pairs]
        return np.array(codes, dtype=np.int32), np.array(labels, dtype=np.int64)

    def unknown_values(self, values: Iterable[int]) -> list[int]:
        """Those raw mask values that neither name a class nor are known to be ignored."""
        known = {raw for raw, _ in self.value_labels}
        return sorted({int(value) for value in values} - known - {self.ignore})


def color_code(color: Color) -> int:
    """One number for a colour: red * 65536 + green * 256 + blue."""
    return color[0] << 16 | color[1] << 8 | color[2]


def color_name(color: Color | int) -> str:
    """A colour, or its code, as #rrggbb."""
    return f"#{color if isinstance(color, int) else color_code(color):06x}"


def build_palette(count: int) -> tuple[Color, ...]:
    """Distinct colours for `count` classes: a fixed set, then hues a golden ratio apart."""
    fixed = [cast(Color, tuple(bytes.fromhex(code))) for code in _FIRST_COLORS.split()]
    for index in range(count - len(fixed)):
        hue, light = (0.11 + index * 0.618034) % 1, (0.42, 0.56, 0.7)[index % 3]
        red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, light, 0.55))
        fixed.append((red, green, blue))
    return tuple(fixed[:count])


def clean_name(name: str) -> str:
    """A name in one Unicode form, without blanks around it."""
    return unicodedata.normalize("NFC", name).strip()


def check_names(names: Sequence[str]) -> None:
    """Refuse names that are empty, too long, given twice or no text."""
    if not names:
        raise SettingError("no class names given; name at least one")
    for name in names:
        if not name.strip():
            raise SettingError(f"a class name is empty in {list(names)[:12]}")
        if len(name) > LONGEST_NAME:
            found = f"{name[:40]!r}... has {len(name)} characters"
            raise SettingError(f"class name {found}; at most {LONGEST_NAME} are allowed")
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            raise SettingError(
                f"remove control characters and halves of characters from the class name {name!r}"
            )
    counts = Counter(name.casefold() for name in names)
    twice = sorted({name for name in names if counts[name.casefold()] > 1})
    if twice:
        raise SettingError(f"class names are given twice: {twice[:8]}; all names must differ")
