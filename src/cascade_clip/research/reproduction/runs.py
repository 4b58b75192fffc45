"""Runs and their results: where a run is stored, and what came out of it.

A run is one training: settings and a seed. Its folder is OUT/runs/NAME-HASH/seed-N, where HASH
stands for the settings that decide the training, so that rows and tables with the same training
share it. Beside the checkpoint there are, for every way of inference that a row asks for, the
counts of every image (`tallies-HASH.npz`) and the scores (`scores-HASH.json`, written last), and a
chosen calibration (`calibration-HASH.json`). Letters: N images, C classes.
"""

import io
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade_clip.config import Config, config_to_dict
from cascade_clip.errors import SettingError
from cascade_clip.evaluation import Tallies, figures, mean_iou
from cascade_clip.files import write_json, write_whole
from cascade_clip.research.reproduction.entries import Entry, EntryRow
from cascade_clip.research.reproduction.keys import Choice, Inference, training_key
from cascade_clip.research.reproduction.settings import ReproductionSettings
from cascade_clip.results import PAIRED_METRICS
from cascade_clip.training import read_metrics

_DAMAGED = (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile)


@dataclass(frozen=True, eq=False)
class Result:
    """What one row brought with one seed."""

    seed: int  # of the training
    scores: dict[str, float]
    """S, U, hIoU, mIoU and pixel accuracy, in 0..1; NaN where one cannot be computed."""
    tallies: Tallies  # pixel counts of every image
    seen: NDArray[np.bool_]  # (C,): which classes are seen
    seconds: float  # training time
    checkpoint: Path  # checkpoint folder
    calibration: float | None = None
    """What was subtracted from the scores of seen classes; None where it was not kept."""


@dataclass(frozen=True)
class Reproduction:
    """Entries on one dataset with some seeds, in one output folder."""

    settings: ReproductionSettings  # the dataset
    out: Path  # folder for runs, plots and pages
    seeds: Mapping[str, Sequence[int]]  # key of an entry to its seeds

    def run_folder(self, row: EntryRow, config: Config) -> Path:
        """Return the folder with the seeds of a training, made under whatever row's name first."""
        found = self._folders_of(config)
        return found[0] if found else self.out / "runs" / f"{slug(row.name)}-{training_key(config)}"

    def seed_folder(self, row: EntryRow, config: Config) -> Path:
        """Return the run folder of a training with its seed; of several, the furthest one."""
        name = f"seed-{config.train.seed}"
        found = [path / name for path in self._folders_of(config) if (path / name).is_dir()]
        return max(found, key=_progress) if found else self.run_folder(row, config) / name

    def results(self, entry: Entry, row: EntryRow) -> list[Result]:
        """Read the results of a row that exist already, in the order of the seeds.

        Raises:
            ValueError: the row is not one of the entry.
        """
        if row not in entry.rows:
            raise SettingError(f"{row.name!r} is no row of {entry.key}")
        return list(self._existing(entry, row))

    def _existing(self, entry: Entry, row: EntryRow) -> Iterator[Result]:
        settings = self.settings
        inference, choice = settings.inference(row), settings.choice(row)
        for seed in self.seeds[entry.key]:
            if choice is not None:
                hidden = self.seed_folder(row, settings.hidden_config(row, seed))
                chosen = read_choice(hidden, choice)
                if chosen is None:
                    continue
                inference = inference.calibrated(chosen)
            folder = self.seed_folder(row, settings.training_config(row, seed))
            found = read_result(folder, inference, seed)
            if found is not None:
                yield found

    def _folders_of(self, config: Config) -> list[Path]:
        return sorted((self.out / "runs").glob(f"*-{training_key(config)}"))


def _progress(folder: Path) -> tuple[bool, int]:
    """Tell how far a run got: whether it is trained, and how many scores and choices it holds."""
    files = [*folder.glob("scores-*.json"), *folder.glob("calibration-*.json")]
    return is_trained(folder), len(files)


def slug(name: str) -> str:
    """Write a name as part of a folder's name: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.casefold()).strip("-")


def is_trained(folder: Path) -> bool:
    """Tell whether a run's training has ended; its checkpoint appears complete or not at all."""
    return (folder / "model" / "checkpoint.json").is_file()


def training_seconds(folder: Path) -> float:
    """Sum up the training seconds of a run, over its starts and both halves of a transductive."""
    parts = [read_metrics(part / "metrics.csv") for part in (folder, folder / "stage1")]
    # a kill may have cut the last row off
    return sum(max((row.get("seconds", 0.0) for row in rows), default=0.0) for rows in parts)


def write_result(
    folder: Path, inference: Inference, tallies: Tallies, seen: NDArray[np.bool_]
) -> None:
    """Keep what came out of a run, completely or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, intersection=tallies.intersection, union=tallies.union, seen=seen)
    write_whole(folder / f"tallies-{inference.key}.npz", buffer.getvalue())
    scores = score(tallies, seen)
    values = {
        "scores": {name: None if np.isnan(value) else value for name, value in scores.items()},
        "images": len(tallies.union),
        "seconds": training_seconds(folder),
        "calibration": inference.calibration,
        "inference": config_to_dict(inference.settings),
        "evaluation": config_to_dict(inference.data),
    }
    write_json(folder / f"scores-{inference.key}.json", values)


def read_result(folder: Path, inference: Inference, seed: int) -> Result | None:
    """Read what came out of a run; None where it is missing or damaged."""
    try:
        values = _read_json(folder / f"scores-{inference.key}.json")
        with np.load(folder / f"tallies-{inference.key}.npz") as arrays:
            tallies = Tallies(arrays["intersection"], arrays["union"])
            seen = arrays["seen"].astype(bool)
        kept = values["scores"].items()
        scores = {name: math.nan if value is None else float(value) for name, value in kept}
        seconds, calibration = float(values["seconds"]), float(values["calibration"])
        return Result(seed, scores, tallies, seen, seconds, folder / "model", calibration)
    except _DAMAGED:
        return None


def write_choice(folder: Path, choice: Choice, sweep: Mapping[str, Any]) -> None:
    """Keep a choice (`CalibrationSweep.to_json`), completely or not at all."""
    write_json(folder / f"calibration-{choice.key}.json", sweep)


def read_choice(folder: Path, choice: Choice) -> float | None:
    """Read the calibration that was chosen; None where it is missing or damaged."""
    try:
        return float(_read_json(folder / f"calibration-{choice.key}.json")["chosen"])
    except _DAMAGED:
        return None


def score(tallies: Tallies, seen: NDArray[np.bool_]) -> dict[str, float]:
    """Compute S, U, hIoU, mIoU and pixel accuracy (0..1) where each labelled pixel has a class."""
    counts = (tallies.intersection, tallies.union)
    intersection, union = (one.sum(axis=0).astype(np.float64) for one in counts)  # (C,)
    present = union > 0
    # a wrong pixel is in two unions, a right one in one
    pixels = (union.sum() + intersection.sum()) / 2
    return {
        **dict(zip(PAIRED_METRICS, map(float, figures(intersection, union, seen)), strict=True)),
        "mIoU": float(mean_iou(intersection[present], union[present])),
        "pixel accuracy": float(intersection.sum() / pixels) if pixels else math.nan,
    }


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
