"""The same run with several seeds: its figures, their mean and their standard deviation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from cascade_clip.errors import DataError, SettingError
from cascade_clip.files import write_json
from cascade_clip.results import SUMMARY_METRICS, format_percent

NAMES = tuple(metric.short for metric in SUMMARY_METRICS)
SEEDS_FILE = "seeds.json"


@dataclass(frozen=True)
class Spread:
    """One figure over the seeds, in 0..1."""

    values: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        """Mean; None where a seed has no such figure."""
        present = [value for value in self.values if value is not None]
        return statistics.fmean(present) if present and len(present) == len(self.values) else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of a sample (divided by n - 1); None for fewer than two seeds."""
        present = [value for value in self.values if value is not None]
        return (
            statistics.stdev(present)
            if len(present) > 1 and len(present) == len(self.values)
            else None
        )


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from a list such as `0,1,2`.

    Raises:
        ValueError: no whole numbers of 0 or more, or one twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise SettingError(
            f"--seeds must be whole numbers separated by commas, such as 0,1,2, got {text!r}"
        )
    seeds = tuple(int(part) for part in parts)
    if len(set(seeds)) != len(seeds):
        raise SettingError(f"--seeds names a seed twice: {text}")
    return seeds


def seed_folder(out: Path, seed: int) -> Path:
    """Where the run of one seed lies."""
    return out / f"seed-{seed}"


def read_figures(folder: Path) -> dict[str, float | None] | None:
    """The five figures of a finished run; None where it is not finished: no checkpoint, or no whole
    report."""
    if not (folder / "model" / "checkpoint.json").is_file():
        return None
    try:
        summary = json.loads((folder / "report.json").read_text(encoding="utf-8"))["summary"]
        return {metric.short: summary[metric.key] for metric in SUMMARY_METRICS}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def claim_seeds(out: Path, settings: Mapping[str, Any]) -> None:
    """Begin or go on in the folder `out`.

    Raises:
        ValueError: it holds seeds of other settings, or a run.
    """
    if (out / "config.yaml").is_file():
        raise SettingError(f"{out} holds a single run; choose another --out for --seeds")
    path = out / SEEDS_FILE
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))["config"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is damaged ({error}); remove it, or choose another --out"
            ) from error
        if known != json.loads(json.dumps(settings)):
            raise SettingError(f"{out} holds seeds of other settings; choose another --out")
        return
    write_json(path, {"config": settings, "seeds": {}})


def write_seeds(
    out: Path, settings: Mapping[str, Any], figures: Mapping[int, Mapping[str, float | None]]
) -> Path:
    """Write `seeds.json`: settings, the figures of every seed, and mean and standard deviation of
    each."""
    spreads = spread_of(figures)
    path = out / SEEDS_FILE
    write_json(
        path,
        {
            "config": settings,
            "seeds": {str(seed): dict(found) for seed, found in figures.items()},
            "mean": {name: spread.mean for name, spread in spreads.items()},
            "standard_deviation": {name: spread.deviation for name, spread in spreads.items()},
        },
    )
    return path


def spread_of(figures: Mapping[int, Mapping[str, float | None]]) -> dict[str, Spread]:
    """Every figure over the seeds."""
    return {
        metric.short: Spread(tuple(found[metric.short] for found in figures.values()))
        for metric in SUMMARY_METRICS
    }


def seeds_table(figures: Mapping[int, Mapping[str, float | None]]) -> Table:
    """One row a seed, then mean and standard deviation, in percent."""
    spreads = spread_of(figures)
    table = Table(title=f"{len(figures)} seeds, percent")
    table.add_column("seed")
    for name in NAMES:
        table.add_column(name, justify="right")
    for seed, found in figures.items():
        table.add_row(str(seed), *[format_percent(found[name]) for name in NAMES])
    table.add_section()
    table.add_row(
        "mean", *[format_percent(spread.mean) for spread in spreads.values()], style="bold"
    )
    table.add_row("std (n - 1)", *[format_percent(one.deviation) for one in spreads.values()])
    return table


def seeds_line(figures: Mapping[int, Mapping[str, float | None]]) -> str:
    """The means with their deviations, one line."""
    parts = [
        f"{name} {format_percent(spread.mean)} +- {format_percent(spread.deviation)}"
        for name, spread in spread_of(figures).items()
    ]
    return "  ".join(parts)
