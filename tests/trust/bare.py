"""Run commands in one process with something taken away, and say what became of them.

    python bare.py no-extras,offline '[["env"], ["segment", "photo.jpg"]]'

no-extras: nothing that only an extra brings can be imported; offline: no connection leaves the
process; no-home: a user without a home folder, as in containers that run under any number; no-cuda:
no graphics card. Prints one JSON object.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, DistributionFinder
from types import ModuleType

EXTRAS = {
    "av",
    "gradio",
    "gradio_client",
    "wandb",
    "ray",
    "pyarrow",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "prometheus_client",
} | {
    "fastapi",
    "starlette",
    "uvicorn",
    "multipart",
    "python_multipart",
}
"""Modules that the core does not bring."""
_ANYTHING = DistributionFinder.Context()
STANDALONE = ("cascade_clip.export.runner",)
"""Copied beside an exported model: it need not name the extra itself."""


class WithoutExtras(PathFinder):
    """Finds what is installed, except the extras."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Nothing for an extra, as where it is not installed."""
        return (
            None if name.partition(".")[0] in EXTRAS else PathFinder.find_spec(name, path, target)
        )

    @staticmethod
    def find_distributions(
        context: DistributionFinder.Context = _ANYTHING,
    ) -> Iterable[Distribution]:
        """Leave the extras out of the installed distributions too."""
        found = PathFinder.find_distributions(context)
        return [
            one
            for one in found
            if (one.metadata["Name"] or "").lower().replace("-", "_") not in EXTRAS
        ]


def take_away(conditions: Sequence[str]) -> list[str]:
    """Bring the conditions about; the list that is returned fills with refused connections."""
    refused: list[str] = []

    def watch(event: str, arguments: tuple) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
            refused.append(
                f"{event} {arguments[-1] if event == 'socket.connect' else arguments[0]}"
            )
            raise OSError("Network is unreachable")

    if "no-extras" in conditions:
        sys.meta_path[:] = [
            WithoutExtras if finder is PathFinder else finder for finder in sys.meta_path
        ]
    if "offline" in conditions:
        sys.addaudithook(watch)
    if "no-cuda" in conditions:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if "no-home" in conditions:
        import pwd

        def unknown(user: object) -> None:
            raise KeyError(f"uid not found: {user}")

        os.environ.pop("HOME", None)
        for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
            os.environ.pop(name, None)
        pwd.getpwuid = pwd.getpwnam = unknown
    return refused


def import_all() -> dict[str, str]:
    """Import every module of the package: what went wrong, by module."""
    import cascade_clip

    wrong = {}
    names = [found.name for found in pkgutil.walk_packages(cascade_clip.__path__, "cascade_clip.")]
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            wrong[name] = f"{type(error).__name__}: {error}"
    return {"": str(len(names)), **wrong}


def run(words: list[str]) -> dict[str, object]:
    """Exit code and output of a command."""
    from cascade_clip.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return {"words": words, "code": code, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    refused = take_away(sys.argv[1].split(","))
    modules = import_all() if "import" in sys.argv[1].split(",") else {}
    answers = [run(words) for words in json.loads(sys.argv[2])]
    print(json.dumps({"modules": modules, "answers": answers, "refused": refused}))
