"""Runs and their results: which training belongs to which row, where it lies, and what came out.

A run is one training: settings and a seed. Its folder is OUT/runs/NAME-HASH/seed-N, where HASH
stands for the settings that decide the training, so that rows and tables with the same training
share it. Beside the checkpoint lie, for every way of inference that a row asks for, the counts of
every image (`tallies-HASH.npz`) and the scores (`scores-HASH.json`, written last), and a chosen
calibration (`calibration-HASH.json`). Letters: N images, C classes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade_clip.config import Config, DataConfig, InferenceConfig, config_to_dict
from cascade_clip.errors import SettingError
from cascade_clip.evaluation import Tallies, figures, mean_iou
from cascade_clip.research.reproduction.entries import Entry, Row
from cascade_clip.research.reproduction.settings import World
from cascade_clip.results import PAIRED_METRICS
from cascade_clip.training import read_metrics

PARENT = "CASCADE_CLIP_REPRODUCE_PARENT"
"""Environment variable with the process that a run must not outlive."""
_TRAINING = ("model", "data", "train")
_CHANGES_NOTHING = {
    *("data.root", "data.workers", "evaluation.root", "evaluation.workers"),
    *(
        "train.seed",
        "train.device",
        "train.devices",
        "train.num_nodes",
        "train.micro_batch",
        "train.loss.class_chunk",
    ),
    *("train.log_every", "train.sheet_every", "train.save_every"),
    *("inference.class_chunk", "inference.max_memory", "inference.window_batch"),
}
"""Settings on which no result depends; the seed is part of the folder."""


@dataclass(frozen=True, eq=False)
class Result:
    """What one row brought with one seed."""

    seed: int
    """Of the training."""
    scores: dict[str, float]
    """S, U, hIoU, mIoU and pixel accuracy, in 0..1; NaN where one cannot be computed."""
    tallies: Tallies
    """Pixel counts of every image."""
    seen: NDArray[np.bool_]
    """(C,): which classes are seen."""
    seconds: float
    """Training time."""
    checkpoint: Path
    """Checkpoint folder."""
    calibration: float | None = None
    """What was subtracted from the scores of seen classes; None where it was not kept."""


@dataclass(frozen=True)
class Choice:
    """How a model from whose training some seen classes are hidden chooses the calibration."""

    settings: InferenceConfig
    """Windows and the like."""
    data: DataConfig
    """Images to choose on; labels of the unseen classes play no part."""
    held_out: tuple[str, ...]
    """The hidden seen classes."""
    values: tuple[float, ...]
    """Calibrations to choose from."""

    @property
    def key(self) -> str:
        """Hash of what the choice depends on."""
        values, defaults = (
            {name: config_to_dict(one) for name, one in pair}
            for pair in (
                (("inference", self.settings), ("evaluation", self.data)),
                (("inference", InferenceConfig()), ("evaluation", DataConfig())),
            )
        )
        return hash_settings(
            {**_changed(values, defaults), "held_out": self.held_out, "values": self.values}
        )


@dataclass(frozen=True)
class Inference:
    """One way to use a trained model, and the data that its scores rest on."""

    settings: InferenceConfig
    """Windows, calibration and the like."""
    data: DataConfig
    """The evaluation set."""
    protocol: str
    """Protocol of the training."""

    @property
    def calibration(self) -> float:
        """What is subtracted from the scores of seen classes: nothing after training that knew the
        unseen names."""
        return self.settings.calibration if self.protocol == "inductive" else 0.0

    def calibrated(self, value: float) -> Inference:
        """The same with another calibration."""
        return replace(self, settings=replace(self.settings, calibration=value))

    @property
    def key(self) -> str:
        """Hash of what the scores depend on."""
        values = {
            "inference": config_to_dict(self.settings),
            "evaluation": config_to_dict(self.data),
        }
        defaults = {
            "inference": config_to_dict(InferenceConfig()),
            "evaluation": config_to_dict(DataConfig()),
        }
        return hash_settings({**_changed(values, defaults), "calibration": self.calibration})


def training_config(world: World, row: Row, seed: int) -> Config:
    """The settings of a row's training: those of its inference and evaluation play no part, so that
    rows can share it."""
    base = world.config(Row(row.name, {}, {}), seed)
    return replace(world.config(row, seed), inference=base.inference, evaluation=None)


def inference_of(world: World, row: Row) -> Inference:
    """How a row's model is used and scored.

    Raises:
        ValueError: the world has no evaluation set.
    """
    config = world.config(row)
    if config.evaluation is None:
        raise SettingError(f"the world {world.name} names no evaluation data")
    return Inference(config.inference, config.evaluation, config.train.protocol)


def choice_of(world: World, row: Row) -> Choice | None:
    """How a row's calibration is chosen; None where its settings say it."""
    if not row.choices:
        return None
    inference = inference_of(world, row)
    return Choice(
        inference.settings,
        replace(inference.data, **world.held_out.data),
        world.held_out.names,
        row.choices,
    )


def hidden_config(world: World, row: Row, seed: int) -> Config:
    """The settings of the second training, by which a row's calibration is chosen."""
    config = training_config(world, row, seed)
    return replace(config, data=replace(config.data, unseen=world.held_out.unseen))


def training_key(config: Config) -> str:
    """Hash of the settings that decide a training, the seed left out; settings at their defaults
    play no part."""
    values, defaults = config_to_dict(config), config_to_dict(Config())
    return hash_settings(_changed({name: values[name] for name in _TRAINING}, defaults))


def hash_settings(values: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for plain nested values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _changed(
    values: Mapping[str, Any], defaults: Mapping[str, Any], where: str = ""
) -> dict[str, Any]:
    """The values on which results depend and that are not the defaults."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        default = defaults[name]
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            value, default = _changed(value, default, f"{where}{name}."), {}
        if value != default and f"{where}{name}" not in _CHANGES_NOTHING:
            found[name] = value
    return found


def run_folder(out: Path, row: Row, config: Config) -> Path:
    """Where the seeds of a training lie, under whatever row's name it was made first."""
    key = training_key(config)
    there = _folders_of(out, key)
    return there[0] if there else out / "runs" / f"{slug(row.name)}-{key}"


def seed_folder(out: Path, row: Row, config: Config) -> Path:
    """Where the run of a training with its seed lies; of several, made under different names, the
    one that got furthest."""
    name = f"seed-{config.train.seed}"
    there = [
        folder / name
        for folder in _folders_of(out, training_key(config))
        if (folder / name).is_dir()
    ]
    return max(there, key=_progress) if there else run_folder(out, row, config) / name


def _folders_of(out: Path, key: str) -> list[Path]:
    """Every folder of a training, under any name, in alphabetical order."""
    return sorted((out / "runs").glob(f"*-{key}"))


def _progress(folder: Path) -> tuple[bool, int]:
    """How far a run got: whether it is trained, and how many scores and choices it holds."""
    return is_trained(folder), sum(
        1 for kind in ("scores", "calibration") for _ in folder.glob(f"{kind}-*.json")
    )


def slug(name: str) -> str:
    """A name as part of a folder's name: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.casefold()).strip("-")


def is_trained(folder: Path) -> bool:
    """Whether a run's training has come to its end; its checkpoint appears whole or not at all."""
    return (folder / "model" / "checkpoint.json").is_file()


def training_seconds(folder: Path) -> float:
    """How long a run has trained, over all its starts and both halves of a transductive one."""
    parts = [read_metrics(part / "metrics.csv") for part in (folder, folder / "stage1")]
    # a kill may have cut the last row off
    return sum(max((row.get("seconds", 0.0) for row in rows), default=0.0) for rows in parts)


def write_result(
    folder: Path, inference: Inference, tallies: Tallies, seen: NDArray[np.bool_]
) -> None:
    """Keep what came out of a run, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, intersection=tallies.intersection, union=tallies.union, seen=seen)
    _replace(folder / f"tallies-{inference.key}.npz", buffer.getvalue())
    values = {
        "scores": {
            name: None if np.isnan(value) else value for name, value in score(tallies, seen).items()
        },
        "images": len(tallies.union),
        "seconds": training_seconds(folder),
        "calibration": inference.calibration,
        "inference": config_to_dict(inference.settings),
        "evaluation": config_to_dict(inference.data),
    }
    _replace(
        folder / f"scores-{inference.key}.json", (json.dumps(values, indent=1) + "\n").encode()
    )


def read_result(folder: Path, inference: Inference, seed: int) -> Result | None:
    """What came out of a run; None where it is not there, or damaged."""
    try:
        values = json.loads((folder / f"scores-{inference.key}.json").read_text(encoding="utf-8"))
        with np.load(folder / f"tallies-{inference.key}.npz") as arrays:
            tallies, seen = (
                Tallies(arrays["intersection"], arrays["union"]),
                arrays["seen"].astype(bool),
            )
        scores = {
            name: float("nan") if value is None else float(value)
            for name, value in values["scores"].items()
        }
        return Result(
            seed,
            scores,
            tallies,
            seen,
            float(values["seconds"]),
            folder / "model",
            float(values["calibration"]),
        )
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def write_choice(folder: Path, choice: Choice, sweep: Mapping[str, Any]) -> None:
    """Keep a choice (`CalibrationSweep.to_json`), whole or not at all."""
    _replace(
        folder / f"calibration-{choice.key}.json", (json.dumps(sweep, indent=1) + "\n").encode()
    )


def read_choice(folder: Path, choice: Choice) -> float | None:
    """The calibration that was chosen; None where it is not there, or damaged."""
    try:
        return float(
            json.loads((folder / f"calibration-{choice.key}.json").read_text(encoding="utf-8"))[
                "chosen"
            ]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def score(tallies: Tallies, seen: NDArray[np.bool_]) -> dict[str, float]:
    """S, U, hIoU, mIoU and pixel accuracy over all images, in 0..1, where every labelled pixel was
    given a class."""
    # (C,)
    intersection, union = (
        counts.sum(axis=0).astype(np.float64) for counts in (tallies.intersection, tallies.union)
    )
    present = union > 0
    # a wrong pixel is in two unions, a right one in one
    pixels = (union.sum() + intersection.sum()) / 2
    return {
        **dict(zip(PAIRED_METRICS, map(float, figures(intersection, union, seen)), strict=True)),
        "mIoU": float(mean_iou(intersection[present], union[present])),
        "pixel accuracy": float(intersection.sum() / pixels) if pixels else float("nan"),
    }


def collect_results(
    entry: Entry, row: Row, world: World, seeds: Sequence[int], out: Path
) -> list[Result]:
    """The results of a row that exist already, in the order of the seeds; nothing is trained."""
    if row not in entry.rows:
        raise SettingError(f"{row.name!r} is no row of {entry.key}")
    return list(_existing(row, world, seeds, out))


def _existing(row: Row, world: World, seeds: Sequence[int], out: Path) -> Iterator[Result]:
    inference, choice = inference_of(world, row), choice_of(world, row)
    for seed in seeds:
        if choice is not None:
            chosen = read_choice(seed_folder(out, row, hidden_config(world, row, seed)), choice)
            if chosen is None:
                continue
            inference = inference.calibrated(chosen)
        found = read_result(
            seed_folder(out, row, training_config(world, row, seed)), inference, seed
        )
        if found is not None:
            yield found


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_bytes(content)
    os.replace(temporary, path)
