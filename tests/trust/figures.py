"""What a trust script finds, and how it says so.

Every other script in this folder offers `measure(quick)`, yields figures, and ends with `raise
SystemExit(main(measure))`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One thing that was tried."""

    tried: str
    """What was tried, such as `damaged pictures`."""
    found: str
    """What happened, with numbers: `312 files: 120 right results, 192 one-line errors, 0
    crashes`."""
    passed: bool
    """Whether it is as promised."""


def main(measure: Callable[[bool], Iterable[Figure]], arguments: list[str] | None = None) -> int:
    """Run `measure` as a command: print every figure as it comes; exit code 1 when one is not as
    promised."""
    parser = argparse.ArgumentParser(description=sys.modules[measure.__module__].__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a small sample in a few seconds, as the fast tests run it",
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    figures = []
    for figure in measure(options.quick):
        figures.append(figure)
        print(f"{'ok  ' if figure.passed else 'FAIL'} {figure.tried}: {figure.found}", flush=True)
    if options.json is not None:
        part = options.json.with_name(options.json.name + ".part")
        part.write_text(
            json.dumps([asdict(figure) for figure in figures], indent=1, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )
        os.replace(part, options.json)
    return 0 if figures and all(figure.passed for figure in figures) else 1
