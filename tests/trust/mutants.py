"""Mutants of a module: where one can be made, what it is, and a process that runs tests against one
after another.

A mutant is the source with one operator, constant, condition or statement changed. `python
mutants.py FOLDER [LIBRARY ...]` is the process: it imports the slow libraries once, then reads jobs
from its standard input, one JSON object a line, and forks for each.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
LIBRARIES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "PIL.Image",
    "open_clip",
    "pytest",
    "hypothesis",
    "yaml",
    "torchmetrics.classification",
)
LIMIT = 120
"""Processor seconds after which tests are ended, which counts as noticed."""


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    module: str
    line: int
    where: str
    """Name of the function or class that holds it, such as `ConfusionMatrix.update`."""
    before: str
    after: str
    index: int
    """Which of the places of the module it is."""

    @property
    def name(self) -> str:
        """What an allow-list calls it; it stays when lines move."""
        return f"{self.module}.{self.where}: {self.before} -> {self.after}"


def list_mutants(module: str, source: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its source; defaults of a function come after its
    body."""
    found = []
    for index, (node, parent, where) in enumerate(_sites(ast.parse(source))):
        shown = (
            parent
            if isinstance(node, ast.Constant)
            and not isinstance(parent, (ast.FunctionDef, ast.ClassDef))
            else node
        )
        changed = copy.deepcopy(shown)
        place = [id(child) for child in ast.iter_child_nodes(shown)]
        site = (
            changed if shown is node else list(ast.iter_child_nodes(changed))[place.index(id(node))]
        )
        _change(site)()
        found.append(Mutant(module, node.lineno, where, _text(shown), _text(changed), index))
    return found


def mutate(source: str, mutant: Mutant) -> str:
    """The module with this one change."""
    tree = ast.parse(source)
    site, _, _ = next(islice(_sites(tree), mutant.index, None))
    _change(site)()
    return ast.unparse(ast.fix_missing_locations(tree))


Site = tuple[ast.AST, ast.AST, str]


def _sites(tree: ast.Module) -> Iterator[Site]:
    """Nodes that can be changed, each with its parent and the name of what holds them; no
    docstrings, annotations, overloads."""

    def walk(node: ast.AST, where: str) -> Iterator[Site]:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if any(
                isinstance(decorator, ast.Name) and decorator.id == "overload"
                for decorator in node.decorator_list
            ):
                return
            where = f"{where}.{node.name}".lstrip(".")
            children = [
                *node.body,
                *(
                    node.args.defaults + node.args.kw_defaults
                    if isinstance(node, ast.FunctionDef)
                    else ()
                ),
            ]
        elif isinstance(node, ast.AnnAssign):
            children = [node.value]
        else:
            children = list(ast.iter_child_nodes(node))
        for child in children:
            if child is None or isinstance(child, (ast.Import, ast.ImportFrom)) or _is_text(child):
                continue
            if _change(child):
                yield child, node, where or "module"
            yield from walk(child, where)

    yield from walk(tree, "")


def _is_text(node: ast.AST) -> bool:
    """A docstring or an f-string: what a message says is not a matter of behaviour."""
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


def _change(node: ast.AST) -> Callable[[], object] | None:
    """A function that changes the node in place; None where there is nothing to change."""
    return _change_operator(node) or _change_value(node) or _change_statement(node)


def _change_operator(node: ast.AST) -> Callable[[], object] | None:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPS:
        return lambda: node.ops.__setitem__(0, SWAPS[type(node.ops[0])]())
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in SWAPS:
        return lambda: setattr(node, "op", SWAPS[type(node.op)]())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        return lambda: _become(node, node.operand)
    return None


def _change_value(node: ast.AST) -> Callable[[], object] | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return lambda: setattr(node, "value", not node.value)
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return lambda: setattr(node, "value", node.value + 1)
    return None


def _change_statement(node: ast.AST) -> Callable[[], object] | None:
    if isinstance(node, (ast.If, ast.IfExp)) and not isinstance(
        node.test, (ast.Compare, ast.BoolOp, ast.UnaryOp)
    ):
        return lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test))
    if (
        isinstance(node, ast.Return)
        and node.value is not None
        and not isinstance(node.value, ast.Constant)
    ):
        return lambda: setattr(node, "value", ast.Constant(None))
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return lambda: _become(node, ast.Pass())
    return None


def _become(node: ast.AST, other: ast.AST) -> None:
    node.__class__ = type(other)
    node.__dict__.update(other.__dict__)


def _text(node: ast.AST) -> str:
    """The changed part in one short line: a statement's condition alone where it has one."""
    shown = node.test if isinstance(node, ast.If) else node
    text = " ".join(ast.unparse(ast.fix_missing_locations(shown)).split())
    return text if len(text) <= 110 else f"{text[:107]}..."


def serve(folder: Path, libraries: Sequence[str] = LIBRARIES) -> None:
    """Answer jobs {module, source, tests} with {code}: pytest's, or that of the signal that ended
    tests without end."""
    answers = os.fdopen(os.dup(1), "w")
    quiet = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    for library in libraries:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        job = json.loads(line)
        answers.write(json.dumps({"code": _run(folder, job)}) + "\n")
        answers.flush()


def _run(folder: Path, job: dict) -> int:
    path = folder / "src" / "cascade_clip" / f"{job['module'].replace('.', '/')}.py"
    original = path.read_bytes()
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()  # its time stamp has whole seconds only
    path.write_text(job["source"])
    child = os.fork()
    if child == 0:
        _run_tests(folder, job["tests"])
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        path.write_bytes(original)


def _run_tests(folder: Path, tests: list[str]) -> None:
    """In the child: pytest on the changed package; never returns."""
    code = 99
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
        signal.alarm(10 * LIMIT)
        os.chdir(folder)
        sys.path[:0] = [str(folder / "src"), str(folder / "tests")]
        os.environ["PYTHONPATH"] = str(folder / "src")
        sys.dont_write_bytecode = False
        import pytest

        temporary = f"--basetemp={folder / 'temporary'}"
        code = int(
            pytest.main(
                [
                    "-x",
                    "-q",
                    "--no-header",
                    "--tb=line",
                    "-p",
                    "no:cacheprovider",
                    temporary,
                    *tests,
                ]
            )
        )
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2:] or LIBRARIES)
