"""Class names: lists, synonyms, seen and unseen splits, templates, colours, and what raw mask values mean.

Splits are stored by name and checked against the class list, so they hold whatever the order of a list.
"""

from __future__ import annotations

import colorsys
import dataclasses
import importlib.resources
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

IGNORED = -1
"""Label of pixels that do not count, in arrays and tensors; files have an ignore value of their own, mostly 255."""

LONGEST_NAME = 200
"""Characters of a class name at most; CLIP reads 77 tokens."""

VOID_NAMES = ("null", "ignore", "void", "unlabelled", "unlabeled")
"""Names that mark a mask value as ignored in a list of `VALUE NAME` lines."""

Color = tuple[int, int, int]

_FIRST_COLORS = (
    "4477aa ee6677 228833 ccbb44 66ccee aa3377 ee7733 009988 cc3311 33bbee "
    "ee3377 997700 6699cc 994455 88cc44 775588 ddaa33 44bb99 bb5566 55aa55"
)


@dataclass(frozen=True)
class Vocabulary:
    """Class names in label order, with the words that stand for them, their colours and their split."""

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    """Words of each class, the name first; their embeddings are averaged."""
    colors: tuple[Color, ...]
    unseen: tuple[str, ...] = ()
    raw_values: tuple[tuple[int, int], ...] | None = None
    """Pairs of raw mask value and label (IGNORED for values without a class); None: the raw value is the label."""
    ignore: int = 255
    """Raw mask value of pixels that do not count."""

    def __post_init__(self) -> None:
        """Check names, split and colours."""
        _check_names(self.names)
        if not len(self.names) == len(self.synonyms) == len(self.colors):
            raise ValueError(f"{len(self.names)} names need as many synonyms and colours, got {len(self.synonyms)} and {len(self.colors)}")
        unknown = [name for name in self.unseen if name not in self.names]
        if unknown:
            raise ValueError(f"unseen names {unknown} are not in the class list of {len(self.names)}: {', '.join(self.names[:12])}, ...")
        if any(not 0 <= raw <= 65535 for raw, _ in self.raw_values or ()):
            raise ValueError("raw mask values must lie in 0..65535")
        if not 0 <= self.ignore <= 65535:
            raise ValueError(f"the ignore value must lie in 0..65535, got {self.ignore}")
        if any(not 0 <= part <= 255 for color in self.colors for part in color):
            raise ValueError("colours must be (red, green, blue) in 0..255")
        for words in self.synonyms:
            _check_names(words)

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.names)

    @property
    def seen(self) -> tuple[str, ...]:
        """Names that may be learned from masks, in label order."""
        return tuple(name for name in self.names if name not in self.unseen)

    @property
    def seen_mask(self) -> tuple[bool, ...]:
        """Whether each class is seen."""
        return tuple(name not in self.unseen for name in self.names)

    def with_unseen(self, unseen: Iterable[str]) -> Vocabulary:
        """The same classes with another split."""
        wanted = [_clean(name) for name in unseen]
        return dataclasses.replace(self, unseen=tuple(dict.fromkeys(wanted)))

    def label_table(self) -> NDArray[np.int64]:
        """Label of every raw mask value 0..65535; IGNORED for values that name no class.

        Raises:
            ValueError: the ignore value is also the value of a class.
        """
        pairs = self.raw_values if self.raw_values is not None else [(index, index) for index in range(len(self.names))]
        clash = [label for raw, label in pairs if raw == self.ignore and label != IGNORED]
        if clash:
            raise ValueError(
                f"mask value {self.ignore} means both `ignored` and class {self.names[clash[0]]!r} of {len(self.names)}; "
                "set the ignore value (data.ignore) to one that no class has, such as 65535"
            )
        table = np.full(65536, IGNORED, dtype=np.int64)
        for raw, label in pairs:
            table[raw] = label
        return table

    def unknown_values(self, values: Iterable[int]) -> list[int]:
        """Those raw mask values that neither name a class nor are known to be ignored."""
        known = {raw for raw, _ in self.raw_values} if self.raw_values is not None else set(range(len(self.names)))
        return sorted({int(value) for value in values} - known - {self.ignore})


def parse_classes(text: str) -> Vocabulary:
    """A vocabulary from "cat, grass, sofa = couch; settee"."""
    return _build([part for part in text.split(",")])


def load_words(text: str) -> Vocabulary:
    """Class names for one's own images: a packaged list by name, a file, or the names themselves, separated by commas.

    Raises:
        FileNotFoundError: what looks like a file and is none.
    """
    path = Path(text).expanduser()
    looks_like_a_file = "," not in text and (path.suffix in (".txt", ".json", ".csv") or "/" in text or "\\" in text)
    if text in list_vocabularies() or _is_file(path) or looks_like_a_file:
        return load_vocabulary(text)
    return parse_classes(text)


def default_templates(source: str) -> str:
    """Name of the prompt templates that go with a class list: those of the paper for a packaged list, else `single`."""
    return str(_packaged(f"{source}.json").get("templates", "single")) if source in list_vocabularies() else "single"


def load_vocabulary(source: str, unseen: str = "") -> Vocabulary:
    """A class list by name, from a file, or from names separated by commas.

    Args:
        source: a packaged list (see `list_vocabularies`); a text file of `NAME`, `NAME = SYNONYM; SYNONYM` or, in every line, `VALUE NAME`
            (names such as `null` mark values to ignore); a .json file in the packaged form; or names separated by commas.
        unseen: names separated by commas, a text file with one a line, or the name of a packaged list whose split to take.

    Raises:
        ValueError, FileNotFoundError: no such list or file, empty or duplicate names, unseen names that are not in the list.
    """
    path = Path(source).expanduser()
    if source in list_vocabularies():
        vocabulary = _from_json(_packaged(f"{source}.json"), source)
    elif _is_file(path):
        vocabulary = _read_json(path) if path.suffix == ".json" else _from_lines(_read_lines(path), path)
    elif "," in source:
        vocabulary = parse_classes(source)
    else:
        raise FileNotFoundError(
            f"no class list {source!r}: it is no file, and the packaged lists are {', '.join(list_vocabularies())}; "
            "names are separated by commas"
        )
    return vocabulary.with_unseen(_load_unseen(unseen)) if unseen else vocabulary


def list_vocabularies() -> tuple[str, ...]:
    """Names of the packaged class lists."""
    return ("voc", "coco-stuff", "context", "context-released", "ade20k", "cityscapes")


def load_templates(source: str) -> tuple[str, ...]:
    """Prompt templates by name (`single`, `paper15`) or from a text file with one a line; `{}` stands for the class name."""
    packaged = _packaged("templates.json")
    if source in packaged:
        return tuple(packaged[source])
    path = Path(source).expanduser()
    if not _is_file(path):
        raise FileNotFoundError(f"no prompt templates {source!r}: choose one of {sorted(packaged)} or give a text file")
    templates = tuple(_read_lines(path))
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise ValueError(f"{path}: every template must hold {{}} exactly once, got {wrong[:1] or 'no line'}")
    return templates


def build_palette(count: int) -> tuple[Color, ...]:
    """Distinct colours for `count` classes: a fixed friendly set first, then hues a golden ratio apart."""
    fixed = [cast(Color, tuple(bytes.fromhex(code))) for code in _FIRST_COLORS.split()]
    for index in range(count - len(fixed)):
        hue, light = (0.11 + index * 0.618034) % 1, (0.42, 0.56, 0.7)[index % 3]
        fixed.append(cast(Color, tuple(round(255 * part) for part in colorsys.hls_to_rgb(hue, light, 0.55))))
    return tuple(fixed[:count])


def _clean(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise ValueError("no class names given; name at least one")
    for name in names:
        if not name.strip():
            raise ValueError(f"a class name is empty in {list(names)[:12]}")
        if len(name) > LONGEST_NAME:
            raise ValueError(f"the class name {name[:40]!r}... has {len(name)} characters, {LONGEST_NAME} at most are allowed")
        if any(unicodedata.category(letter) == "Cc" for letter in name):
            raise ValueError(f"the class name {name!r} holds control characters; remove them")
    folded = [name.casefold() for name in names]
    twice = sorted({name for name in names if folded.count(name.casefold()) > 1})
    if twice:
        raise ValueError(f"class names are given twice: {twice[:8]}; every name must be different")


def _build(entries: Sequence[str]) -> Vocabulary:
    """A vocabulary from `NAME` or `NAME = SYNONYM; SYNONYM` entries."""
    groups = []
    for entry in entries:
        name, _, rest = entry.partition("=")
        groups.append(tuple(dict.fromkeys(_clean(word) for word in [name, *(rest.split(";") if rest.strip() else [])])))
    return Vocabulary(tuple(group[0] for group in groups), tuple(groups), build_palette(len(groups)))


def _from_lines(lines: Sequence[str], path: Path) -> Vocabulary:
    numbered = [re.match(r"(\d+)[\s:]+(\S.*)$", line) for line in lines]
    if not lines or not all(numbered):
        return _build_from(lines, path)
    pairs = [(int(match[1]), match[2]) for match in numbered if match]
    raw = [value for value, _ in pairs]
    if len(set(raw)) != len(raw) or max(raw) > 65535:
        raise ValueError(f"{path}: mask values must differ and lie in 0..65535")
    kept = [(value, entry) for value, entry in pairs if entry.strip().casefold() not in VOID_NAMES]
    vocabulary = _build_from([entry for _, entry in kept], path)
    labels = {value: label for label, (value, _) in enumerate(kept)}
    return dataclasses.replace(vocabulary, raw_values=tuple((value, labels.get(value, IGNORED)) for value in raw))


def _build_from(entries: Sequence[str], path: Path) -> Vocabulary:
    try:
        return _build(entries)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _load_unseen(source: str) -> list[str]:
    if source in list_vocabularies():
        return list(_packaged(f"{source}.json")["unseen"])
    path = Path(source).expanduser()
    return _read_lines(path) if _is_file(path) else [name for name in source.split(",") if name.strip()]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # names that no file can have
        return False


def _read_lines(path: Path) -> list[str]:
    """Lines that are neither blank nor comments."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _packaged(name: str) -> dict[str, Any]:
    file = importlib.resources.files("cascade_clip") / "vocabularies" / name
    return cast(dict[str, Any], json.loads(file.read_text(encoding="utf-8")))


def _read_json(path: Path) -> Vocabulary:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    return _from_json(values, str(path))


def _from_json(values: Any, where: str) -> Vocabulary:
    try:
        return _vocabulary_from(values, where)
    except (TypeError, AttributeError, ValueError) as error:
        text = str(error)
        raise ValueError(text if text.startswith(where) else f"{where} is not a class list: {text}") from error


def _vocabulary_from(values: Any, where: str) -> Vocabulary:
    if not isinstance(values, dict) or not isinstance(values.get("names"), list):
        raise ValueError(f'{where} must hold a mapping with "names", and may hold "palette", "unseen", "raw_values", "ignore"')
    vocabulary = _build([str(name) for name in values["names"]])
    ignore = int(values.get("ignore", 255))
    raw: tuple[tuple[int, int], ...] | None = None
    if values.get("raw_values"):
        labels = {name: label for label, name in enumerate(vocabulary.names)}
        unknown = [name for name in values["raw_values"].values() if name is not None and name not in labels]
        if unknown:
            raise ValueError(f"{where}: raw_values name {unknown[:5]}, which are not in names")
        raw = tuple((int(value), IGNORED if name is None else labels[name]) for value, name in values["raw_values"].items())
    colors = tuple((int(red), int(green), int(blue)) for red, green, blue in values.get("palette") or vocabulary.colors)
    return dataclasses.replace(vocabulary, colors=colors, unseen=tuple(values.get("unseen", ())), raw_values=raw, ignore=ignore)
