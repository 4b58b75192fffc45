"""Flags from signatures: a typed function becomes a parser, by jsonargparse.

Parameters before `*` are positional words (a list takes one or more), parameters after it are
flags. A parameter of type `Config` takes a YAML file as the first word and every setting as a
dotted flag, which overrides the file; any other dataclass is a group of flags.
"""

import dataclasses
import inspect
import itertools
import logging
import re
import types
import typing
from argparse import Action
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import docstring_parser
import jsonargparse
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from cascade_clip.config import RENAMED, Config, config_from_dict, read_yaml, rename_settings
from cascade_clip.errors import SettingError

set_parsing_settings(docstring_parse_attribute_docstrings=True)
_logger = logging.getLogger(__name__)

_PLAIN: dict[Any, str] = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    Path: "path",
    dict: "mapping",
    type(None): "null",
}
"""Types in words."""
_MISFIT = re.compile(r'Parser key "(?P<key>[^"]+)":.*(?:Got|Given) value:\s*(?P<value>.*)')
"""What jsonargparse says of a value of the wrong type."""


class ArgumentError(SettingError):
    """Words of a command line that do not fit; the message is one line and a hint."""


def call_with_arguments(handler: Callable[..., Any], program: str, words: Sequence[str]) -> Any:
    """Parse `words` by the signature of `handler` and call it.

    Raises:
        ArgumentError: a flag that does not exist, a value of the wrong type, a missing word.
        ValueError, FileNotFoundError: a settings file that is missing or does not fit.
    """
    parser, words = build_parser(handler, program), list(words)
    hints = typing.get_type_hints(handler)
    configured = next((name for name, hint in hints.items() if hint is Config), None)
    if configured and words and not words[0].startswith("-"):
        words.insert(0, "--settings")
    renamed = _rename_flags(words) if configured else []
    try:
        given = parser.parse_args(words, defaults=False)
    except (jsonargparse.ArgumentError, TypeError) as error:
        reason = _explain(parser, " ".join(str(error).split()), words)[:500]
        raise ArgumentError(f"{reason}\n({program} --help says what it takes)") from error
    values: dict[str, Any] = {}
    for name, hint in hints.items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint is not Config:
            fields = [item.name for item in dataclasses.fields(hint) if item.name in given]
            values[name] = hint(**{field: given.pop(field) for field in fields})
    names = inspect.signature(handler).parameters.keys() - values.keys()
    values |= {name: given.pop(name) for name in names if name in given}
    if configured:
        for note in renamed:
            _logger.info("%s", note)
        file = given.pop("settings", "")
        settings = rename_settings(read_yaml(Path(file)), file) if file else {}
        values[configured] = config_from_dict(Config, _merge(settings, _plain(given)), "settings")
    return handler(**values)


def _rename_flags(words: list[str]) -> list[str]:
    """Replace the old flags of renamed settings among the words; returns a note for each."""
    notes = []
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if new := RENAMED.get(flag.removeprefix("--")) if flag.startswith("--") else None:
            words[place] = f"--{new}{equals}{value}"
            notes.append(f"flag {flag} is now called --{new}")
    return notes


def describe_type(hint: Any) -> str:
    """What a value may be, in words: `whole number`, `fp32 | bf16`, `[number, number]`."""
    parts = typing.get_args(hint)
    match typing.get_origin(hint):
        case typing.Literal:
            return " | ".join(str(part) or "''" for part in parts)
        case typing.Union | types.UnionType:
            return " | ".join(map(describe_type, parts))
        case builtin if builtin in (list, tuple):
            parts = parts if builtin is tuple else (*parts, ...)
            return f"[{', '.join('...' if part is ... else describe_type(part) for part in parts)}]"
    found = typing.get_origin(hint) or hint
    return _PLAIN.get(found) or str(getattr(found, "__name__", found))


class _Formatter(DefaultHelpFormatter):
    """Help that names types in words, for which jsonargparse has no public place."""

    def _get_type_str(self, action: Action) -> str | None:
        hint = _type_of(action)
        return None if hint is None else describe_type(hint)


def _type_of(action: Action) -> Any:
    return getattr(action, "_typehint", None) or action.type


def _explain(parser: ArgumentParser, message: str, words: Sequence[str]) -> str:
    """Say in the command line's own terms that a value has the wrong type, else `message`."""
    found = _MISFIT.match(message)
    action = next((one for one in parser._actions if found and one.dest == found["key"]), None)
    if found is None or action is None or _type_of(action) is None:
        return message
    flags = action.option_strings
    name = flags[-1] if flags else str(action.metavar or action.dest)
    given = [following for word, following in itertools.pairwise(words) if word in flags]
    pairs = [word.partition("=") for word in words]
    given += [value for flag, equals, value in pairs if equals and flag in flags]
    # jsonargparse names the part of a list that does not fit
    value = given[0] if len(given) == 1 else found["value"]
    return f"{name} expects {describe_type(_type_of(action))}, got {value or repr(value)}"


def build_parser(handler: Callable[..., Any], program: str) -> ArgumentParser:
    """Build the parser of a handler; help comes from its docstring and from the docs of fields."""
    documentation = docstring_parser.parse(inspect.getdoc(handler) or "")
    helps = {parameter.arg_name: parameter.description or "" for parameter in documentation.params}
    parts = (documentation.short_description, documentation.long_description)
    text = " ".join(" ".join(filter(None, parts)).split())
    parser = ArgumentParser(
        prog=program, description=text, exit_on_error=False, formatter_class=_Formatter
    )
    hints = typing.get_type_hints(handler)
    for name, parameter in inspect.signature(handler).parameters.items():
        _add_parameter(parser, parameter, hints[name], helps.get(name, ""))
    return parser


def _add_parameter(
    parser: ArgumentParser, parameter: inspect.Parameter, hint: Any, text: str
) -> None:
    name = parameter.name
    if hint is Config:
        about = "YAML file of settings; may be the first word"
        parser.add_argument("--settings", metavar="FILE.yaml", type=str, default="", help=about)
        parser.add_class_arguments(Config)
    elif dataclasses.is_dataclass(hint):
        documented = docstring_parser.parse_from_object(hint).params
        helps = {item.arg_name: item.description or "" for item in documented}
        hints = typing.get_type_hints(hint)
        for item in dataclasses.fields(hint):
            default = None if item.default is dataclasses.MISSING else [item.default]
            _add_flag(parser, item.name, hints[item.name], default, helps[item.name])
    elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
        default = None if parameter.default is inspect.Parameter.empty else [parameter.default]
        _add_flag(parser, name, hint, default, text)
    elif typing.get_origin(hint) is list:
        kind = typing.get_args(hint)[0]
        parser.add_argument(name, metavar=name.upper(), nargs="+", type=kind, help=text)
    else:
        parser.add_argument(name, metavar=name.upper(), type=hint, help=text)


def _add_flag(
    parser: ArgumentParser, name: str, hint: Any, default: list[Any] | None, text: str
) -> None:
    """A flag; `default` is None where it is required, else a list of the one default."""
    extra: dict[str, Any] = {"required": True} if default is None else {"default": default[0]}
    if hint is bool:
        extra = {"action": "store_true"}
    elif typing.get_origin(hint) is list:  # may be given several times
        extra |= {"type": typing.get_args(hint)[0], "action": "append"}
    else:
        extra["type"] = hint
    flag = "--" + name.replace("_", "-")
    parser.add_argument(flag, dest=name, help=" ".join(text.split()), **extra)


def _plain(given: Namespace) -> dict[str, Any]:
    return {
        name: _plain(value) if isinstance(value, Namespace) else value
        for name, value in vars(given).items()
    }


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `change` put over it, mapping by mapping."""
    merged = dict(base)
    for name, value in change.items():
        old = merged.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = _merge(old, value)
        merged[name] = value
    return merged
