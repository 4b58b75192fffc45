"""Strings that name a module or an attribute of this package still name something."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from observe import PACKAGE, ROOT

PATTERN = re.compile(r"cascade_clip(?:\.\w+)+(?::\w+(?:\.\w+)*)?")
NO_MODULES = {
    "cascade_clip.said",  # a logger: what commands say to people
    "cascade_clip.slot",  # a key that the service puts into the scope of a request
    "cascade_clip.decoders",  # a group of entry points
    "cascade_clip.a",  # a made-up module in the tests of the mutation tool
}


def strings(folder: Path) -> Iterator[tuple[str, str]]:
    """File and value of every string constant that looks like a dotted path into the package."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and PATTERN.fullmatch(node.value)
            ):
                yield path.relative_to(folder).as_posix(), node.value


def resolve(text: str) -> object:
    """Import the module and follow the attributes; without a colon, the longest prefix that is a
    module is imported."""
    module, colon, attributes = text.partition(":")
    rest = attributes.split(".") if colon else []
    while True:
        try:
            found: object = importlib.import_module(module)
            break
        except ModuleNotFoundError as error:
            if colon or not str(error.name).startswith("cascade_clip."):
                raise
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
    for name in rest:
        found = getattr(found, name)
    return found


FOUND = sorted(
    (text, where)
    for folder in (PACKAGE, ROOT / "tests")
    for where, text in set(strings(folder))
    if text not in NO_MODULES and not where.startswith("frozen/")
)


@pytest.mark.parametrize("text, where", FOUND)
def test_string_names_something(text: str, where: str) -> None:
    resolve(text)


def test_strings_are_found() -> None:
    assert len(FOUND) > 25


@pytest.mark.parametrize(
    "text",
    ["cascade_clip.never", "cascade_clip.__main__:never", "cascade_clip.__main__.main.never"],
)
def test_a_wrong_path_is_an_error(text: str) -> None:
    with pytest.raises((ImportError, AttributeError)):
        resolve(text)
