"""Class lists, splits and prompt templates by name, from files and from text.

Splits are stored by name and checked against the class list, so they hold whatever the order of a
list.
"""

import dataclasses
import difflib
import functools
import importlib.resources
import json
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from cascade_clip.errors import CascadeClipError, MissingFileError, SettingError
from cascade_clip.vocabulary.classes import IGNORED, Color, Vocabulary, build_palette, clean_name

VOID_NAMES = ("null", "ignore", "void", "unlabelled", "unlabeled")
"""Names that mark a value or colour as ignored in a class list with mask values or colours."""
NONE_UNSEEN = "none"
"""In place of unseen names: every class counts as seen."""

_logger = logging.getLogger(__name__)

_COLOR = re.compile(r"(?:#([0-9a-fA-F]{6})|(\d+)[\s,]+(\d+)[\s,]+(\d+))")
_COLOR_LINE = re.compile(_COLOR.pattern + r"[\s,:]+(\S.*)$")
_VALUE_LINE = re.compile(r"(\d+)[\s,:]+(\S.*)$")
# may be a colour, where other lines beginning with # are comments
_HEX_START = re.compile(r"#[0-9a-fA-F]{3,8}[\s,:]")


def parse_classes(text: str) -> Vocabulary:
    """A vocabulary from "cat, grass, sofa = couch; settee"."""
    return _build(text.split(","))


def load_words(text: str) -> Vocabulary:
    """Load class names for your images: a packaged list, a file, or names separated by commas.

    Raises:
        FileNotFoundError: what looks like a file and is none.
    """
    path = Path(text).expanduser()
    marked = path.suffix in (".txt", ".json", ".csv") or "/" in text or "\\" in text
    looks_like_a_file = marked and "," not in text
    if text in list_vocabularies() or _is_file(path) or looks_like_a_file:
        return load_vocabulary(text)
    word = text.strip().casefold()
    close = difflib.get_close_matches(word, list_vocabularies(), n=1, cutoff=0.66)
    if close and close[0][0] == word[0]:
        message = "%r is taken as a name of its own; did you mean the class list %s?"
        _logger.warning(message, text.strip(), close[0])
    return parse_classes(text)


def default_templates(source: str) -> str:
    """Name of the prompt templates of a class list: the paper's if packaged, else `single`."""
    packaged = _packaged(f"{source}.json") if source in list_vocabularies() else {}
    return str(packaged.get("templates", "single"))


def load_vocabulary(source: str, unseen: str = "") -> Vocabulary:
    """A class list by name, from a file, or from names separated by commas.

    Args:
        source: a packaged list (see `list_vocabularies`); a text file of `NAME`, `NAME = SYNONYM;
            SYNONYM` or, in every line, `VALUE NAME` (names such as `null` mark values to ignore)
            or, for masks that are colour pictures, `R G B NAME` or `#rrggbb NAME` (a name may have
            several colours); a .json file in the packaged form; or names separated by commas.
        unseen: names separated by commas, a text file with one a line, the name of a packaged list
            whose split to take, or `none`: every class counts as seen. Empty: the split of the
            list, if it brings one.

    Raises:
        ValueError, FileNotFoundError: no such list or file, empty or duplicate names, unseen names
            that are not in the list.
    """
    path = Path(source).expanduser()
    if source in list_vocabularies():
        vocabulary = _from_json(_packaged(f"{source}.json"), source)
    elif _is_file(path):
        vocabulary = _read_json(path) if path.suffix == ".json" else _read_text(path)
    elif "," in source:
        vocabulary = _plain_list(source.split(","), "the class list")
    else:
        known = ", ".join(list_vocabularies())
        raise MissingFileError(
            f"no class list {source!r}: no such file, and the packaged lists are {known}; names are"
            " separated by commas"
        )
    return split_classes(vocabulary, unseen)


def split_classes(vocabulary: Vocabulary, unseen: str) -> Vocabulary:
    """The same classes with the split `unseen` (see `load_vocabulary`); empty text keeps it.

    Raises:
        ValueError: a name that is not in the class list.
    """
    if not unseen:
        return vocabulary
    if unseen.strip().casefold() == NONE_UNSEEN:
        return dataclasses.replace(vocabulary, unseen=(), inherits_split=False)
    return vocabulary.with_unseen(_load_unseen(unseen))


@functools.cache
def list_vocabularies() -> tuple[str, ...]:
    """Names of the packaged class lists."""
    files = (importlib.resources.files("cascade_clip.vocabulary") / "vocabularies").iterdir()
    return tuple(sorted({Path(file.name).stem for file in files} - {"templates"}))


def load_templates(source: str) -> tuple[str, ...]:
    """Prompt templates by name or from a text file with one a line; `{}` stands for the class name.

    Args:
        source: `single`, `paper15` (both of the paper), `imagenet80` (CLIP's own for ImageNet, from
            open_clip), or a file.

    Raises:
        FileNotFoundError, ValueError: no such set or file, or a line without exactly one `{}`.
    """
    packaged = _packaged("templates.json")
    if source in packaged:
        return tuple(packaged[source])
    if source == "imagenet80":
        import open_clip

        return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    path = Path(source).expanduser()
    if not _is_file(path):
        known = ", ".join(sorted([*packaged, "imagenet80"]))
        raise MissingFileError(
            f"no prompt templates {source!r}: choose one of {known}, or give a text file"
        )
    templates = tuple(_read_lines(path))
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise SettingError(
            f"{path}: every template must hold {{}} exactly once, got {wrong[:1] or 'no line'}"
        )
    return templates


def _build(entries: Sequence[str]) -> Vocabulary:
    """A vocabulary from `NAME` or `NAME = SYNONYM; SYNONYM` entries."""
    groups = []
    for entry in entries:
        name, _, rest = entry.partition("=")
        words = [name, *(rest.split(";") if rest.strip() else [])]
        groups.append(tuple(dict.fromkeys(map(clean_name, words))))
    names = tuple(group[0] for group in groups)
    return Vocabulary(names, tuple(groups), build_palette(len(groups)))


def _read_text(path: Path) -> Vocabulary:
    lines = _read_lines(path, keep=_HEX_START)
    colored = [bool(_COLOR_LINE.match(line)) for line in lines]
    if 2 * sum(colored) > len(lines):
        return _from_color_lines(lines, path)
    lines = [line for line in lines if not line.startswith("#")]
    numbered = [_VALUE_LINE.match(line) for line in lines]
    if 2 * sum(map(bool, numbered)) <= len(lines):
        return _plain_list(lines, str(path))
    odd = next((line for line, match in zip(lines, numbered, strict=True) if match is None), None)
    if odd is not None:
        advice = "give every line a mask value, or none"
        raise SettingError(f"{path}: {odd!r} is not `VALUE NAME` as most lines are; {advice}")
    pairs = [(int(match[1]), match[2]) for match in numbered if match]
    raw = [value for value, _ in pairs]
    if len(set(raw)) != len(raw) or max(raw) > 65535:
        raise SettingError(f"{path}: mask values must differ and lie in 0..65535")
    kept = [(value, entry) for value, entry in pairs if entry.strip().casefold() not in VOID_NAMES]
    vocabulary = _build_from([entry for _, entry in kept], str(path))
    labels = {value: label for label, (value, _) in enumerate(kept)}
    return dataclasses.replace(
        vocabulary, raw_values=tuple((value, labels.get(value, IGNORED)) for value in raw)
    )


def _from_color_lines(lines: Sequence[str], path: Path) -> Vocabulary:
    """A vocabulary from `R G B NAME` or `#rrggbb NAME` lines; names may have several colours."""
    entries: dict[str, str] = {}
    colors: list[tuple[Color, str | None]] = []
    for line in lines:
        match = _COLOR_LINE.match(line)
        if match is None:
            raise SettingError(
                f"{path}: {line!r} is not `R G B NAME` or `#rrggbb NAME` as most lines are (a"
                " comment begins with `# `)"
            )
        name = clean_name(match[5].partition("=")[0])
        void = name.casefold() in VOID_NAMES
        if not void and ("=" in match[5] or name not in entries):
            entries[name] = match[5]
        colors.append((_parse_color(line), None if void else name))
    return _with_mask_colors(_build_from(list(entries.values()), str(path)), colors, str(path))


def _parse_color(text: str) -> Color:
    """The colour that a text begins with: `#rrggbb` or three numbers."""
    match = _COLOR.match(text)
    if match is None:
        raise SettingError(f"{text!r} is no colour; write #rrggbb or three numbers in 0..255")
    red, green, blue = bytes.fromhex(match[1]) if match[1] else map(int, match.group(2, 3, 4))
    return red, green, blue


def _with_mask_colors(
    vocabulary: Vocabulary, pairs: Sequence[tuple[Color, str | None]], where: str
) -> Vocabulary:
    """Read masks by colour, which is also how classes are shown; the name None is ignored."""
    names = [name for _, name in pairs]
    labels = _labels_of(names, vocabulary, f"{where}: mask_colors")
    table = tuple((color, label) for (color, _), label in zip(pairs, labels, strict=True))
    first = {label: color for color, label in reversed(table)}
    shown = tuple(first.get(label, color) for label, color in enumerate(vocabulary.colors))
    try:
        return dataclasses.replace(vocabulary, colors=shown, mask_colors=table)
    except CascadeClipError as error:
        raise SettingError(f"{where}: {error}") from error


def _labels_of(names: Iterable[str | None], vocabulary: Vocabulary, where: str) -> list[int]:
    """Labels of names in the vocabulary; IGNORED for None."""
    labels: dict[str | None, int] = {None: IGNORED}
    labels.update((name, label) for label, name in enumerate(vocabulary.names))
    unknown = [name for name in names if name not in labels]
    if unknown:
        raise SettingError(f"{where} name {unknown[:5]}, which are not in names")
    return [labels[name] for name in names]


def _plain_list(entries: Sequence[str], where: str) -> Vocabulary:
    """A vocabulary whose labels are places in the list, so that no entry can be left out."""
    void = [name for name in map(str.strip, entries) if name.casefold() in VOID_NAMES]
    if void:
        raise SettingError(
            f"{where}: {void[0]!r} marks pixels that do not count, but a list of names alone gives"
            f" every name a class; write a file of `VALUE NAME` lines (such as `0 {void[0]}`, `1"
            " sky`), or leave it out and set the ignore value"
        )
    return _build_from(entries, where)


def _build_from(entries: Sequence[str], where: str) -> Vocabulary:
    try:
        return _build(entries)
    except CascadeClipError as error:
        raise SettingError(f"{where}: {error}") from error


def _load_unseen(source: str) -> list[str]:
    if source in list_vocabularies():
        return list(_packaged(f"{source}.json")["unseen"])
    path = Path(source).expanduser()
    if _is_file(path):
        return _read_lines(path)
    return [name for name in source.split(",") if name.strip()]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # names that no file can have
        return False


def _read_lines(path: Path, keep: re.Pattern[str] | None = None) -> list[str]:
    """Lines without blank ones and comments, which begin with # and do not match `keep`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SettingError(f"{path} is not a text file in UTF-8") from error
    stripped = [line.strip() for line in lines if line.strip()]
    return [line for line in stripped if line[0] != "#" or (keep and keep.match(line))]


def _packaged(name: str) -> dict[str, Any]:
    file = importlib.resources.files("cascade_clip.vocabulary") / "vocabularies" / name
    return cast(dict[str, Any], json.loads(file.read_text(encoding="utf-8")))


def _read_json(path: Path) -> Vocabulary:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SettingError(f"{path} is not JSON: {error}") from error
    return _from_json(values, str(path))


def _from_json(values: Any, where: str) -> Vocabulary:
    try:
        return _vocabulary_from(values, where)
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        text = str(error)
        named = text if text.startswith(where) else f"{where} is not a class list: {text}"
        raise SettingError(named) from error


def _vocabulary_from(values: Any, where: str) -> Vocabulary:
    if not isinstance(values, dict) or not isinstance(values.get("names"), list):
        raise SettingError(
            f'{where} must hold a mapping with "names", and may hold "synonyms", "palette",'
            ' "unseen", "raw_values", "mask_colors", "ignore"'
        )
    vocabulary = _build([str(name) for name in values["names"]])
    vocabulary = _with_synonyms(vocabulary, values.get("synonyms") or {}, where)
    ignore = int(values.get("ignore", 255))
    raw: tuple[tuple[int, int], ...] | None = None
    if values.get("raw_values"):
        labels = _labels_of(values["raw_values"].values(), vocabulary, f"{where}: raw_values")
        raw = tuple(zip(map(int, values["raw_values"]), labels, strict=True))
    vocabulary = dataclasses.replace(
        vocabulary, unseen=tuple(values.get("unseen", ())), raw_values=raw, ignore=ignore
    )
    if values.get("mask_colors"):
        pairs = [(_parse_color(color), name) for color, name in values["mask_colors"].items()]
        vocabulary = _with_mask_colors(vocabulary, pairs, where)
    palette = values.get("palette") or vocabulary.colors
    colors = tuple((int(red), int(green), int(blue)) for red, green, blue in palette)
    return dataclasses.replace(vocabulary, colors=colors)


def _with_synonyms(vocabulary: Vocabulary, words: Any, where: str) -> Vocabulary:
    """Add the words of `{name: [word, ...]}`."""
    unknown = [name for name in words if name not in vocabulary.names]
    if unknown:
        raise SettingError(f"{where}: synonyms name {unknown[:5]}, which are not in names")
    if any(not isinstance(group, list) for group in words.values()):
        example = '{"sofa": ["couch", "settee"]}'
        raise SettingError(f"{where}: synonyms must be lists, as in {example}")
    groups = zip(vocabulary.names, vocabulary.synonyms, strict=True)
    merged = (
        tuple(dict.fromkeys([*group, *(clean_name(str(word)) for word in words.get(name, ()))]))
        for name, group in groups
    )
    return dataclasses.replace(vocabulary, synonyms=tuple(merged))
