"""The command that measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from rich.table import Table

from cascade_clip.terminal import console, say, warn

Case = Literal["data"]


def benchmark(case: Case, *, seconds: float = 8.0, workers: int = 0, out: Path | None = None) -> int:
    """Measure this machine and print the figures.

    Args:
        case: data: augmented 512 px crops per second from 640 x 480 JPEG photos (no GPU should wait for them).
        seconds: how long each setting runs.
        workers: loading processes; 0 takes the number of cores.
        out: write the figures as JSON to this file.
    """
    from cascade_clip.benchmark import describe_machine, measure_data

    if seconds <= 0:
        raise ValueError(f"--seconds must be positive, got {seconds}")
    if workers < 0:
        raise ValueError(f"--workers must be 0 or more, got {workers}")
    machine = describe_machine()
    found = measure_data(seconds, workers, lambda text: warn(f"measuring: {text}"))
    table = Table(title=f"benchmark {case}")
    for heading in ("what", "figure", "unit", "note"):
        table.add_column(heading, justify="right" if heading == "figure" else "left")
    for row in found:
        table.add_row(row.name, f"{row.value:.1f}", row.unit, row.note)
    console.print(table)
    say(", ".join(f"{name} {value}" for name, value in machine.items() if value is not None))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        values = {"case": case, "machine": machine, "figures": [row.to_json() for row in found]}
        out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        say(f"wrote {out}")
    return 0
