"""Imports point down the layers of the design, and files are ranked."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "src" / "cascade_clip"
LAYERS = (
    ("polygons", "rle", "picture_files", "partial_files", "export_runner", "fonts", "attention"),
    (
        "vocabulary",
        "results",
        "config",
        "plain_values",
        "serve_options",
        "serve_queue",
        "serve_docs",
    ),
    ("towers", "ssim", "bootstrap", "weight_files"),
    ("spectral",),
    (
        "clip",
        "backbone",
        "aggregation",
        "decoder",
        "sgd_decoder",
        "losses",
        "metrics",
        "transforms",
        "windows",
        "upsampling",
        "scores",
        "target",
        "terminal",
        "distributed",
    ),
    (
        "text",
        "model",
        "hub",
        "model_card",
        "objective",
        "protocols",
        "states",
        "diagnosis",
        "teacher",
        "datasets",
        "sandbox",
        "run_screen",
        "wandb_run",
    ),
    ("checkpoint", "data", "textbook"),
    ("training_free", "publishing"),
    ("predictor", "batches", "gallery", "fingerprints", "importer"),
    (
        "evaluate",
        "benchmark_work",
        "thresholds",
        "web_answers",
        "web_guard",
        "comparison",
        "report_page",
        "progress",
        "provenance",
        "serve_batch",
    ),
    ("engine", "benchmark_cases", "tallies", "calibration", "serve_work", "serve_guard"),
    (
        "train",
        "cost",
        "sheets",
        "run_report",
        "seeds",
        "batch",
        "manifest",
        "export",
        "analysis",
        "benchmark",
        "scaling",
        "report",
        "web",
    ),
    ("ray_engine", "export_check", "startup", "benchmark_gpu"),
    (
        "quickstart",
        "dry_run",
        "serve",
        "commands",
        "segment_commands",
        "benchmark_commands",
        "analyse_commands",
        "web_commands",
        "evaluate_commands",
        "hub_commands",
        "arguments",
    ),
    (
        "train_commands",
        "export_commands",
        "threshold_commands",
        "calibration_commands",
        "compare_commands",
        "serve_commands",
        "reproduction",
    ),
    ("reproduce_commands",),
    ("__init__",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def unit_of(path: Path) -> str:
    """The ranked name of a file: its own, or that of the sub-package it lies in."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else path.stem


def internal_imports(source: str, unit: str, *, nested: bool = False) -> set[str]:
    """Ranked names that a file imports, in any spelling; `TYPE_CHECKING` blocks do not count, other
    files of a sub-package neither."""
    found: set[str] = set()
    tree = ast.parse(source)
    skipped = {
        id(node) for block in ast.walk(tree) if is_type_checking(block) for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {unit for alias in node.names for unit in absolute(alias.name, ())}
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            module = node.module or ""
            if node.level == 0:
                found |= absolute(module, names)
            elif node.level == 1 and nested:  # a neighbour in the same sub-package
                continue
            else:
                found |= absolute(f"cascade_clip.{module}".rstrip("."), names)
    return found - ({unit} if nested else set())


def absolute(module: str, names: tuple[str, ...]) -> set[str]:
    parts = module.split(".")
    if parts[0] != "cascade_clip":
        return set()
    if len(parts) > 1:
        return {parts[1]}
    units = {name for name in names if name in RANK}
    return units if units and units == set(names) else units | {"__init__"}


def is_type_checking(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def test_there_are_sources() -> None:
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    unit = unit_of(path)
    assert unit in RANK, f"give {path.name} a place in LAYERS"
    nested = path.parent != PACKAGE
    too_high = {
        name
        for name in internal_imports(path.read_text(), unit, nested=nested)
        if RANK[name] >= RANK[unit]
    }
    assert not too_high, f"{unit} must not import {sorted(too_high)}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import cascade_clip.train", {"train"}),
        ("import cascade_clip.sandbox.scenes as scenes", {"sandbox"}),
        ("from cascade_clip.train import fit", {"train"}),
        ("from cascade_clip import train", {"train"}),
        ("from cascade_clip import load", {"__init__"}),  # a public name of the package root
        ("import cascade_clip", {"__init__"}),
        ("from . import train", {"train"}),
        ("from .train import fit", {"train"}),
        ("def f():\n    from cascade_clip.web import page", {"web"}),  # inside a function
        # for the type checker alone
        ("if TYPE_CHECKING:\n    from cascade_clip.train import fit", set()),
        ("import torch\nfrom lightning import train", set()),
        ("TABLE = 'cascade_clip.train:fit'", set()),  # the command table imports nothing
    ],
)
def test_the_scanner_sees_every_spelling(source: str, expected: set[str]) -> None:
    assert internal_imports(source, "text") == expected


def test_neighbours_in_a_sub_package_are_no_layer() -> None:
    assert (
        internal_imports(
            "from .scenes import x\nfrom cascade_clip.sandbox.shapes import y",
            "sandbox",
            nested=True,
        )
        == set()
    )


def test_the_lowest_layer_needs_no_torch() -> None:
    script = (
        "import sys, cascade_clip.config, cascade_clip.vocabulary, cascade_clip.results;"
        " print('torch' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "False"
    )
