"""What a user of the installed package sees: names, flags, settings, keys of files.

Nothing here imports an internal module by its path, because the frozen tests must outlive moves of
modules. `python tests/frozen/observe.py FOLDER` writes the small fixtures; the ones that are
committed are never written again, only added to.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

import cascade_clip
from cascade_clip.cli.main import COMMANDS, main

RENAMED = {"train.sheet_every": "train.preview_every"}
"""Settings by their frozen names, and what they are called today."""
FIXTURES = Path(__file__).parent / "fixtures"
ROOT = Path(__file__).parents[2]
PACKAGE = Path(cascade_clip.__file__).parent
CLASSES = ("Config", "Predictor", "Segmentation", "Segmenter", "Vocabulary")
FUNCTIONS = ("load", "Predictor.segment", "build_segmenter")
_OPTION = re.compile(r"^  (?:-\w, )?(--[\w.-]+)(?: \{([^}]*)\})?", re.MULTILINE)
_WORD = re.compile(r"^  ([A-Z][A-Z_0-9]*)(?=\s)", re.MULTILINE)


def present_name(key: str) -> str:
    """Return what a frozen key is called today; in JSON `config.` may precede that of a setting."""
    for old, new in RENAMED.items():
        if key == old or key.endswith(f".{old}"):
            return key.removesuffix(old) + new
    return key


def read_fixture(name: str) -> Any:
    """The content of one JSON fixture."""
    return json.loads((FIXTURES / name).read_text(encoding="utf-8"))


def call(*words: str) -> tuple[int, str, str]:
    """Run one command in this process; returns exit code, standard output and standard error."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            code = main(words)
        except SystemExit as ended:  # --help ends this way
            code = int(ended.code or 0)
    return code, out.getvalue(), errors.getvalue()


def public_names() -> dict[str, Any]:
    """`__all__`, what the public classes offer, and the parameters of the main functions."""
    return {
        "__all__": sorted(cascade_clip.__all__),
        "attributes": {name: class_names(getattr(cascade_clip, name)) for name in CLASSES},
        "parameters": {name: parameters(name) for name in FUNCTIONS},
    }


def class_names(owner: type) -> list[str]:
    """Public methods, properties and fields that this package gives to a class (not those of
    torch)."""
    ours = [base for base in owner.__mro__ if base.__module__.startswith("cascade_clip")]
    names = {
        name for base in ours for name in (*vars(base), *vars(base).get("__annotations__", {}))
    }
    source = {
        name
        for base in ours
        for name in re.findall(r"\bself\.([a-z]\w*)(?:: [^=\n]+)? = ", inspect.getsource(base))
    }
    return sorted(name for name in names | source if not name.startswith("_"))


def parameters(path: str) -> list[str]:
    """The names of a function's parameters in their order."""
    target: Any = cascade_clip
    for name in path.split("."):
        target = getattr(target, name)
    return list(inspect.signature(target).parameters)


def flags(command: str) -> list[str]:
    """Words and flags of a command, as its help lists them; `--flag=choice` for every choice that a
    flag offers."""
    code, text, errors = call(*command.split(), "--help")
    if code:
        raise ValueError(f"{command}: {errors}")
    found = set(_WORD.findall(text))
    for flag, choices in _OPTION.findall(text):
        found |= {flag, *(f"{flag}={choice}" for choice in choices.split(",") if choice)}
    return sorted(found)


def is_known(command: str, flag: str, value: str = "") -> bool:
    """Whether a command takes a flag that its help does not list; beside a flag that does not exist
    nothing is ever run."""
    for words in [[flag, value]] if value else [[flag], [flag, "1"]]:
        _, _, errors = call(*command.split(), "--no-such-flag", *words)
        refused = re.findall(r"(?<![\w.-])--[\w.-]+", errors.partition("\n")[0])
        if "--no-such-flag" in refused and flag not in refused:
            return True
    return False


def find_function(name: str) -> Callable[..., Any]:
    """The function of that name, in whichever module of the package it now lies."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
                found: Callable[..., Any] = getattr(
                    importlib.import_module(".".join(parts).removesuffix(".__init__")), name
                )
                return found
    raise LookupError(f"no function {name} in {PACKAGE}")


def dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; tuples as lists."""
    return dict(_pairs(json.loads(json.dumps(values)), ""))


def _pairs(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _pairs(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def settings_of(file: Path) -> dict[str, Any]:
    """Every setting that a YAML file resolves to, by its dotted key."""
    return dotted(dataclasses.asdict(find_function("load_config")(file)))


def changed_settings(file: Path) -> dict[str, Any]:
    """The settings of a file that are not the defaults."""
    defaults = dotted(dataclasses.asdict(cascade_clip.Config()))
    return {
        key: value
        for key, value in settings_of(file).items()
        if key not in defaults or defaults[key] != value
    }


def json_keys(value: Any, prefix: str = "") -> set[str]:
    """The dotted keys of a JSON value; the elements of a list share `[]`."""
    if isinstance(value, list):
        return {key for item in value for key in json_keys(item, f"{prefix}[]")}
    if not isinstance(value, dict):
        return set()
    start = f"{prefix}." if prefix else ""
    return {
        key
        for name, item in value.items()
        for key in (start + name, *json_keys(item, start + name))
    }


def model_shapes(name: str) -> dict[str, list[int]]:
    """Names and shapes of a model's weights."""
    return {
        key: list(value.shape)
        for key, value in cascade_clip.load(name, device="cpu").model.state_dict().items()
    }


def write_all(folder: Path) -> None:
    """Write every fixture that needs no run."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "public_names.json": public_names(),
        "commands.json": {command: flags(command) for command in COMMANDS},
        "configs.json": {
            path.name: changed_settings(path) for path in sorted((ROOT / "configs").glob("*.yaml"))
        },
        "weights.json": {name: model_shapes(name) for name in ("mini", "mini-last")},
    }
    for name, values in found.items():
        rows = ",\n".join(
            f'"{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in values.items()
        )
        (folder / name).write_text(f"{{\n{rows}\n}}\n", encoding="utf-8")
    defaults = json.loads(json.dumps(dataclasses.asdict(cascade_clip.Config())))
    (folder / "defaults.yaml").write_text(
        yaml.safe_dump(defaults, sort_keys=False), encoding="utf-8"
    )


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
