"""What a training, its scores and a chosen calibration depend on, as hashes in the names of files.

Settings at their defaults and those that change no result play no part, so that rows and entries
share what they have in common, and results of earlier versions are found again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cascade_clip.config import Config, DataConfig, InferenceConfig, config_to_dict

_TRAINING = ("model", "data", "train")
_CHANGES_NOTHING = frozenset(
    f"{room}.{name}"
    for room, names in {
        "data": "root workers",
        "evaluation": "root workers",
        # the seed is part of the folder
        "train": "seed device devices num_nodes micro_batch log_every preview_every save_every",
        "train.loss": "class_chunk",
        "inference": "class_chunk max_memory window_batch",
    }.items()
    for name in names.split()
)
"""Settings on which no result depends."""


@dataclass(frozen=True)
class Choice:
    """How a model from whose training some seen classes are hidden chooses the calibration."""

    settings: InferenceConfig  # windows and the like
    data: DataConfig  # images to choose on; labels of the unseen classes play no part
    held_out: tuple[str, ...]  # the hidden seen classes
    values: tuple[float, ...]  # calibrations to choose from

    @property
    def key(self) -> str:
        """Hash of what the choice depends on."""
        found = _changed_inference(self.settings, self.data)
        return hash_settings({**found, "held_out": self.held_out, "values": self.values})


@dataclass(frozen=True)
class Inference:
    """One way to use a trained model, and the dataset that it is scored on."""

    settings: InferenceConfig  # windows, calibration and the like
    data: DataConfig  # the evaluation set
    protocol: str  # protocol of the training

    @property
    def calibration(self) -> float:
        """Subtracted from the scores of seen classes; 0 after training with the unseen names."""
        return self.settings.calibration if self.protocol == "inductive" else 0.0

    def calibrated(self, value: float) -> Inference:
        """Return the same with another calibration."""
        return replace(self, settings=replace(self.settings, calibration=value))

    @property
    def key(self) -> str:
        """Hash of what the scores depend on."""
        found = _changed_inference(self.settings, self.data)
        return hash_settings({**found, "calibration": self.calibration})


def training_key(config: Config) -> str:
    """Hash the settings that decide a training, without the seed."""
    values = config_to_dict(config)
    training = {name: values[name] for name in _TRAINING}
    return hash_settings(_changed(training, config_to_dict(Config())))


def hash_settings(values: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits for plain nested values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _changed_inference(settings: InferenceConfig, data: DataConfig) -> dict[str, Any]:
    values = {"inference": config_to_dict(settings), "evaluation": config_to_dict(data)}
    plain = config_to_dict(InferenceConfig()), config_to_dict(DataConfig())
    return _changed(values, dict(zip(values, plain, strict=True)))


def _changed(
    values: Mapping[str, Any], defaults: Mapping[str, Any], where: str = ""
) -> dict[str, Any]:
    """Select the values on which results depend and that are not the defaults."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        default = defaults.get(name)  # options of a decoder have none
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            value, default = _changed(value, default, f"{where}{name}."), {}
        if value != default and f"{where}{name}" not in _CHANGES_NOTHING:
            found[name] = value
    return found
