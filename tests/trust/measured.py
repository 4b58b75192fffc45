"""Runs `cascade-clip` with the words after the first, and writes the most memory that it ever had,
in MiB, to the file named first.

From outside it cannot be told: what the system says of a finished child starts from the memory of
the process that started it.
"""

from __future__ import annotations

import sys
from pathlib import Path


def run() -> int:
    """The command's exit code."""
    from cascade_clip.cli.main import main

    try:
        return main(sys.argv[2:])
    finally:
        from cascade_clip.research.benchmark.work import peak_memory

        most = peak_memory()  # of the imports above, too
        Path(sys.argv[1]).write_text(str(most), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(run())
