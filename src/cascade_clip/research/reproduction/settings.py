"""Base settings of each dataset and what replaces the paper's values; YAML files in `settings/`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cascade_clip.config import Config, config_from_dict, read_yaml
from cascade_clip.errors import SettingError
from cascade_clip.research.reproduction.entries import EntryRow
from cascade_clip.research.reproduction.keys import Choice, Inference

FOLDER = Path(__file__).parent / "settings"


@dataclass(frozen=True)
class HeldOut:
    """Seen classes hidden from a second model, as unseen ones by which to choose a calibration."""

    names: tuple[str, ...]
    unseen: str
    """All classes that this training hides, separated by commas: the unseen ones and these."""
    data: dict[str, Any]
    """How the images of the choice differ from the evaluation set. On the sandbox no model was
    trained on them; elsewhere they are from the training split, as no third split has labels."""


@dataclass(frozen=True)
class ReproductionSettings:
    """A dataset with the settings of the cascade on it."""

    name: str  # `sandbox`, `voc`, `coco-stuff` or `context`
    base: dict[str, Any]  # settings of the cascade, nested as in YAML
    replace: dict[str, dict[Any, Any]]
    """Dotted setting to the paper's values (of COCO-Stuff) and the values that replace them."""
    held_out: HeldOut = HeldOut((), "", {})
    """How a calibration is chosen without labels of unseen classes."""
    small: bool = False
    """Whether runs are so small that each gets one core, and entries have several seeds."""

    def config(self, row: EntryRow, seed: int = 0) -> Config:
        """Return the settings of a row on this dataset.

        Raises:
            ValueError: they do not fit.
        """
        settings = row.settings_on.get(self.name)
        change = self._replaced(row.settings) if settings is None else settings
        config = config_from_dict(Config, merge(self.base, change), f"{row.name} on {self.name}")
        return replace(config, train=replace(config.train, seed=seed))

    def training_config(self, row: EntryRow, seed: int) -> Config:
        """Return the training settings of a row, without those of its inference and evaluation."""
        base = self.config(EntryRow(row.name, {}, {}), seed)
        return replace(self.config(row, seed), inference=base.inference, evaluation=None)

    def hidden_config(self, row: EntryRow, seed: int) -> Config:
        """Return the settings of the second training, by which a row's calibration is chosen."""
        config = self.training_config(row, seed)
        return replace(config, data=replace(config.data, unseen=self.held_out.unseen))

    def inference(self, row: EntryRow) -> Inference:
        """Return how a row's model is used and scored.

        Raises:
            ValueError: there is no evaluation set.
        """
        config = self.config(row)
        if config.evaluation is None:
            raise SettingError(f"the settings {self.name} name no evaluation data")
        return Inference(config.inference, config.evaluation, config.train.protocol)

    def choice(self, row: EntryRow) -> Choice | None:
        """Return how a row's calibration is chosen; None where its settings fix it."""
        if not row.choices:
            return None
        inference = self.inference(row)
        data = replace(inference.data, **self.held_out.data)
        return Choice(inference.settings, data, self.held_out.names, row.choices)

    def _replaced(self, values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            name = f"{where}{key}"
            if isinstance(value, Mapping):
                found[key] = self._replaced(value, f"{name}.")
            else:
                found[key] = self.replace[name].get(value, value) if name in self.replace else value
        return found


def list_settings() -> tuple[str, ...]:
    """Name the datasets that have settings, the built-in one first."""
    names = (path.stem for path in FOLDER.glob("*.yaml"))
    return tuple(sorted(names, key=lambda name: (name != "sandbox", name)))


def load_settings(name: str, root: str = "") -> ReproductionSettings:
    """Load the settings of a dataset by its name, its files below the folder `root`.

    Raises:
        ValueError: no such settings.
    """
    known = list_settings()
    if name not in known:
        raise SettingError(f"unknown world {name!r}; choose one of {', '.join(known)}")
    values = read_yaml(FOLDER / f"{name}.yaml")
    base = merge(values.pop("base"), {"data": {"root": root}} if root else {})
    hidden = values.pop("held_out")
    held_out = HeldOut(tuple(hidden["names"]), hidden["unseen"], hidden["data"])
    return ReproductionSettings(name=name, base=base, held_out=held_out, **values)


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Put the values of `change` over those of `base`, mapping by mapping."""
    both = {
        key: merge(base[key], change[key])
        for key in base.keys() & change.keys()
        if isinstance(base[key], Mapping)
    }
    return {**base, **change, **both}
