"""The house: rooms are imported through their doors, and light commands stay light.

The order of the rooms is a contract of import-linter in `pyproject.toml` (`make check`).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cascade_clip.cli.main import COMMANDS
from paths import SOURCES

HEAVY = ("torch", "lightning", "open_clip", "matplotlib", "scipy", "gradio", "fastapi")
FILES = sorted(SOURCES.rglob("*.py"))


def is_room(module: str) -> bool:
    return (SOURCES / module.replace(".", "/")).is_dir()


def room_of(module: str) -> str:
    """The outermost package that a module below `cascade_clip` is in; itself at the top."""
    return module.partition(".")[0]


def imported(source: str) -> Iterator[str]:
    """Modules below `cascade_clip` that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports give the full path"
            names = [node.module or ""]
        else:
            continue
        yield from (name.partition(".")[2] for name in names if name.startswith("cascade_clip."))


def past_the_door(source: str, room: str) -> list[str]:
    """Modules inside other rooms that a file of `room` imports instead of the room itself."""
    return [
        name
        for name in imported(source)
        if room_of(name) != room and "." in name and not is_room(name)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCES)))
def test_rooms_are_imported_through_their_packages(path: object) -> None:
    assert isinstance(path, type(SOURCES))
    room = path.relative_to(SOURCES).with_suffix("").parts[0]
    if room != "__init__":  # the public names of the whole package
        assert past_the_door(path.read_text(encoding="utf-8"), room) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from cascade_clip.training import fit", []),
        ("from cascade_clip.data.prepare import prepare_dataset", []),  # a room in a room
        ("from cascade_clip.evaluation.metrics import Metrics", []),  # its own room
        ("from cascade_clip.errors import DataError", []),  # a module that is in no room
        ("from cascade_clip.training.fit import fit", ["training.fit"]),
        ("def f():\n    import cascade_clip.training.fit", ["training.fit"]),
    ],
)
def test_the_scanner_sees_every_spelling(source: str, found: list[str]) -> None:
    assert past_the_door(source, "evaluation") == found


def test_at_most_six_modules_lie_beside_the_rooms() -> None:
    assert len(list(SOURCES.glob("*.py"))) <= 6


LIGHT = """
import contextlib, io, sys
from cascade_clip.cli.main import main
for command in {commands}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main([*command.split(), "--help"])
print(*[name for name in {heavy} if name in sys.modules])
"""


@pytest.mark.parametrize(
    "script",
    [
        LIGHT.format(commands=list(COMMANDS), heavy=HEAVY),
        "import sys, cascade_clip.config, cascade_clip.vocabulary, cascade_clip.results,"
        f" cascade_clip.files; print(*[name for name in {HEAVY} if name in sys.modules])",
    ],
    ids=["help", "lowest rooms"],
)
def test_nothing_heavy_is_imported(script: str) -> None:
    words = [sys.executable, "-c", script]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
