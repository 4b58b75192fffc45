"""Settings from and to plain nested values, as in YAML and JSON; a misspelt key is an error."""

import dataclasses
import logging
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import yaml

from cascade_clip.config.run import Config
from cascade_clip.config.values import check
from cascade_clip.errors import MissingFileError, SettingError

_logger = logging.getLogger(__name__)

Settings = TypeVar("Settings")

LARGEST_FILE = 1 << 20
"""Bytes of a settings file at most."""
LARGEST_TREE = 100_000
"""Values in a settings file at most, each counted as often as the file refers to it."""

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 3, 120, 120
_short.maxlist = _short.maxtuple = _short.maxdict = 20


RENAMED = {"train.sheet_every": "train.preview_every"}
"""Renamed settings: old dotted key to new; the old ones are accepted in files and as flags."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, which is never executed.

    Raises:
        FileNotFoundError, ValueError: no such file, not YAML, or not a mapping.
    """
    if not path.is_file():
        raise MissingFileError(f"no settings file {path}")
    size = path.stat().st_size
    check(size <= LARGEST_FILE, f"{path} is no settings file: it has {size:,} bytes")
    content = path.read_bytes()
    try:
        values = yaml.safe_load(content.decode("utf-8")) or {}
    except Exception as error:  # damaged text and odd tags raise many kinds
        raise SettingError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from error
    kind = type(values).__name__
    check(isinstance(values, dict), f"{path} must hold a mapping of settings, got {kind}")
    _check_tree(values, path)
    return cast(dict[str, Any], values)


def _check_tree(values: Any, path: Path) -> None:
    """Refuse values that refer to each other so often that walking through them would never end."""
    waiting, count = [values], 0
    while waiting:
        item = waiting.pop()
        if isinstance(item, (dict, list, tuple, set)):
            waiting += item.values() if isinstance(item, dict) else item
        count += 1
        check(
            count + len(waiting) <= LARGEST_TREE,
            f"{path} is no settings file: it stands for more than {LARGEST_TREE:,} values",
        )


def rename_settings(values: Mapping[str, Any], file: str = "") -> dict[str, Any]:
    """Return nested values of a whole `Config` with the old keys of `RENAMED` replaced by the new.

    With the name of the user's `file`, every replacement is logged.

    Raises:
        ValueError: an old key and its new one are both there.
    """
    found = dict(values)
    for old, new in RENAMED.items():
        *sections, name = old.split(".")
        section: Any = values
        for key in sections:
            section = section.get(key) if isinstance(section, Mapping) else None
        if not isinstance(section, Mapping) or name not in section:
            continue
        value = _section(found, sections).pop(name)
        *sections, name = new.split(".")
        section = _section(found, sections)
        check(name not in section, f"{old} is the old name of {new}; leave one out")
        section[name] = value
        if file:
            _logger.info("%s: setting %s is now called %s", file, old, new)
    return found


def _section(values: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """Return the section at a path as a copy that may be changed, put in place of the old one."""
    for key in path:
        values[key] = dict(values.get(key) or {})
        values = values[key]
    return values


def differing_settings(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Return the dotted names of differing settings with both values; a missing one is None."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys((*old, *new)):
        one, other = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found |= differing_settings(one, other, f"{prefix}{key}.")
        elif one != other:
            found[f"{prefix}{key}"] = (one, other)
    return found


def config_from_dict(
    kind: type[Settings], values: Mapping[str, Any], where: str = "config"
) -> Settings:
    """Build the dataclass `kind` from nested plain values, refusing unknown keys by name.

    Old keys of a whole `Config` are accepted (`RENAMED`).

    Raises:
        ValueError: an unknown key or a value of the wrong type; the message says where and what is
            allowed.
    """
    given = type(values).__name__
    check(isinstance(values, Mapping), f"{where} must be a mapping of settings, got {given}")
    if kind is Config:
        values = rename_settings(values)
    hints = typing.get_type_hints(kind)
    names = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in values:
        unknown = f"unknown setting {where}.{str(key)[:80]}"
        check(key in names, f"{unknown}; choose one of {sorted(names)}")
    return kind(**{key: _convert(hints[key], values[key], f"{where}.{key}") for key in values})


def config_to_dict(settings: Any) -> dict[str, Any]:
    """Plain nested values of a settings dataclass, ready for YAML or JSON (tuples become lists)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    result = plain(settings)
    assert isinstance(result, dict)
    return result


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check a plain value against a type hint and give it the hint's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            check(type(None) in arguments, f"{where} must not be null")
            return None
        return _convert(next(item for item in arguments if item is not type(None)), value, where)
    if origin is Literal:
        got = _short.repr(value)
        check(value in arguments, f"{where} must be one of {list(arguments)}, got {got}")
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else config_from_dict(hint, value, where)
    return _convert_scalar(dict if origin is dict else hint, value, where)


def _convert_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    listed, got = isinstance(value, Sequence) and not isinstance(value, str), _short.repr(value)
    check(listed, f"{where} must be a list, got {got}")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    count = len(arguments)
    check(len(value) == count, f"{where} must have {count} entries, got {got}")
    return tuple(
        _convert(hint, item, f"{where}[{index}]")
        for index, (hint, item) in enumerate(zip(arguments, value, strict=True))
    )


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if hint is float and isinstance(value, str):  # YAML reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            raise SettingError(f"{where} must be a number, got {_short.repr(value)}") from None
    matches = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    check(matches, f"{where} must be {hint.__name__}, got {_short.repr(value)}")
    return value
