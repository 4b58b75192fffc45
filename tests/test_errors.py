"""The types of errors: what each of them also is, and which exceptions are defects."""

from __future__ import annotations

import re

import pytest

from cascade_clip import errors
from cascade_clip.errors import CascadeClipError, explain_error
from paths import ROOT


def test_every_type_is_on_the_page_with_the_built_in_that_it_also_is() -> None:
    types = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type)
        and issubclass(value, Exception)  # `Interrupted` is no error
        and value is not CascadeClipError
    }
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", page, re.M))
    assert rows.keys() == types.keys()
    for name, built_in in rows.items():
        assert issubclass(types[name], CascadeClipError), name
        assert issubclass(types[name], getattr(__import__("builtins"), built_in)), name


@pytest.mark.parametrize(
    "error",
    [
        ValueError("of a library"),
        OSError("without a number of the system"),  # Pillow's, for one
        ImportError("no such name"),
        KeyError("a"),
        RuntimeError("shape mismatch"),
        FloatingPointError("a division"),
    ],
)
def test_defects(error: Exception) -> None:
    assert explain_error(error) == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (errors.SettingError("steps must be positive"), "steps must be positive"),
        (errors.StorageError(), "StorageError"),
        (FileNotFoundError(2, "No such file or directory", "a"), "a: No such file or directory"),
        (RuntimeError("[enforce fail] can't allocate memory: 9 bytes"), "not enough memory ([enf"),
    ],
)
def test_what_users_can_mend(error: Exception, line: str) -> None:
    assert explain_error(error).startswith(line)
