"""The same run with several seeds: its metrics, their mean and their standard deviation."""

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from cascade_clip.config import Config, config_to_dict, differing_settings, rename_settings
from cascade_clip.errors import SettingError
from cascade_clip.files import write_json
from cascade_clip.results import SUMMARY_METRICS, format_percent
from cascade_clip.training.run_folder import SETTINGS_FILE, Run

NAMES = tuple(metric.short for metric in SUMMARY_METRICS)
SEEDS_FILE = "seeds.json"


@dataclass(frozen=True)
class Spread:
    """One metric over the seeds, in 0..1."""

    values: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        """Mean; None if a seed lacks the metric."""
        return self._measure(statistics.fmean, 1)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of a sample (divided by n - 1); None for fewer than two seeds."""
        return self._measure(statistics.stdev, 2)

    def _measure(self, measure: Callable[[list[float]], float], least: int) -> float | None:
        present = [value for value in self.values if value is not None]
        return measure(present) if len(self.values) == len(present) >= least else None


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of a list such as `0,1,2`.

    Raises:
        ValueError: no whole numbers of 0 or more, or one twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        allowed = "whole numbers separated by commas, such as 0,1,2"
        raise SettingError(f"--seeds must be {allowed}, got {text!r}")
    seeds = tuple(int(part) for part in parts)
    if len(set(seeds)) != len(seeds):
        raise SettingError(f"--seeds names a seed twice: {text}")
    return seeds


@dataclass(frozen=True)
class SeedRuns:
    """Runs that differ only in their seed, side by side in one folder."""

    config: Config
    folder: Path

    def run(self, seed: int) -> Run:
        """Return the run of one seed."""
        train = dataclasses.replace(self.config.train, seed=seed)
        return Run(dataclasses.replace(self.config, train=train), self.folder / f"seed-{seed}")

    def claim(self) -> None:
        """Start or resume in the folder.

        Raises:
            ValueError: it holds seeds of other settings, or a single run.
        """
        if (self.folder / SETTINGS_FILE).is_file():
            fix = "choose another --out for --seeds"
            raise SettingError(f"{self.folder} holds a single run; {fix}")
        path = self.folder / SEEDS_FILE
        if not path.is_file():
            self._write({"seeds": {}})
            return
        try:
            known = rename_settings(json.loads(path.read_text(encoding="utf-8"))["config"])
        except (ValueError, KeyError, TypeError) as error:
            fix = "remove it, or choose another --out"
            raise SettingError(f"{path} is damaged ({error}); {fix}") from error
        if differing_settings(known, self._settings()):
            raise SettingError(f"{self.folder} holds seeds of other settings; choose another --out")

    def results(self, seed: int) -> dict[str, float | None] | None:
        """Return the five metrics of a finished run; None without a sound checkpoint and report."""
        folder = self.run(seed).folder
        if not (folder / "model" / "checkpoint.json").is_file():
            return None
        try:
            summary = json.loads((folder / "report.json").read_text(encoding="utf-8"))["summary"]
            return {metric.short: summary[metric.key] for metric in SUMMARY_METRICS}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, figures: Mapping[int, Mapping[str, float | None]]) -> Path:
        """Write `seeds.json`: settings, metrics of every seed, their means and deviations."""
        spreads = spread_of(figures).items()
        values = {
            "seeds": {str(seed): dict(found) for seed, found in figures.items()},
            "mean": {name: spread.mean for name, spread in spreads},
            "standard_deviation": {name: spread.deviation for name, spread in spreads},
        }
        return self._write(values)

    def _settings(self) -> dict[str, Any]:
        settings = config_to_dict(self.config)
        settings["train"].pop("seed")
        return settings

    def _write(self, values: Mapping[str, Any]) -> Path:
        return write_json(self.folder / SEEDS_FILE, {"config": self._settings(), **values})


def spread_of(figures: Mapping[int, Mapping[str, float | None]]) -> dict[str, Spread]:
    """Return every metric over the seeds."""
    return {
        metric.short: Spread(tuple(found[metric.short] for found in figures.values()))
        for metric in SUMMARY_METRICS
    }


def seeds_table(figures: Mapping[int, Mapping[str, float | None]]) -> Table:
    """Return a table with one row for each seed, then mean and standard deviation, in percent."""
    spreads = spread_of(figures).values()
    table = Table(title=f"{len(figures)} seeds, percent")
    table.add_column("seed")
    for name in NAMES:
        table.add_column(name, justify="right")
    for seed, found in figures.items():
        table.add_row(str(seed), *[format_percent(found[name]) for name in NAMES])
    table.add_section()
    table.add_row("mean", *[format_percent(each.mean) for each in spreads], style="bold")
    table.add_row("std (n - 1)", *[format_percent(each.deviation) for each in spreads])
    return table


def seeds_line(figures: Mapping[int, Mapping[str, float | None]]) -> str:
    """Return the means with their deviations in one line."""
    parts = [
        f"{name} {format_percent(spread.mean)} +- {format_percent(spread.deviation)}"
        for name, spread in spread_of(figures).items()
    ]
    return "  ".join(parts)
