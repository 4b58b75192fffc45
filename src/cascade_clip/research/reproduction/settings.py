"""Where entries are reproduced: base settings of a world, and the paper's values that stand for
other values there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cascade_clip.config import Config, config_from_dict, read_yaml
from cascade_clip.errors import SettingError
from cascade_clip.research.reproduction.entries import Row

FOLDER = Path(__file__).parent / "worlds"


@dataclass(frozen=True)
class HeldOut:
    """Seen classes that are hidden from the training of a second model, to play the unseen classes
    when a calibration is chosen."""

    names: tuple[str, ...]
    """Their names."""
    unseen: str
    """Names of all classes that this training hides, separated by commas: the unseen ones and
    these."""
    data: dict[str, Any]
    """What the images of the choice differ in from the evaluation set: they must be others. On the
    sandbox no model was trained on them; elsewhere they are images of the training split, as no
    third split has labels."""


@dataclass(frozen=True)
class World:
    """A data set with the settings of the cascade on it."""

    name: str
    """`sandbox`, `voc`, `coco-stuff` or `context`."""
    base: dict[str, Any]
    """Settings of the cascade, nested as in YAML."""
    replace: dict[str, dict[Any, Any]]
    """Dotted setting to the paper's values (those of COCO-Stuff) and the values that stand for them
    here."""
    held_out: HeldOut = HeldOut((), "", {})
    """How a calibration is chosen without labels of unseen classes."""
    small: bool = False
    """Whether runs are so small that each gets one core, and entries have several seeds."""

    def config(self, row: Row, seed: int = 0) -> Config:
        """The settings of a row here.

        Raises:
            ValueError: they do not fit.
        """
        settings = row.settings_on.get(self.name)
        change = self._replaced(row.settings) if settings is None else settings
        config = config_from_dict(Config, merge(self.base, change), f"{row.name} on {self.name}")
        return replace(config, train=replace(config.train, seed=seed))

    def _replaced(self, values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """Settings of the paper with the values that stand for them here."""
        found: dict[str, Any] = {}
        for key, value in values.items():
            name = f"{where}{key}"
            if isinstance(value, Mapping):
                found[key] = self._replaced(value, f"{name}.")
            else:
                found[key] = self.replace[name].get(value, value) if name in self.replace else value
        return found


def list_worlds() -> tuple[str, ...]:
    """Names of the worlds, the built-in one first."""
    return tuple(
        sorted(
            (path.stem for path in FOLDER.glob("*.yaml")),
            key=lambda name: (name != "sandbox", name),
        )
    )


def load_world(name: str, root: str = "") -> World:
    """A world by its name, its data below the folder `root`.

    Raises:
        ValueError: no such world.
    """
    if name not in list_worlds():
        raise SettingError(f"unknown world {name!r}; choose one of {', '.join(list_worlds())}")
    values = read_yaml(FOLDER / f"{name}.yaml")
    base = merge(values.pop("base"), {"data": {"root": root}} if root else {})
    held_out = values.pop("held_out")
    return World(
        name=name,
        base=base,
        held_out=HeldOut(**{**held_out, "names": tuple(held_out["names"])}),
        **values,
    )


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `change` put over it, mapping by mapping."""
    both = {
        key: merge(base[key], change[key])
        for key in base.keys() & change.keys()
        if isinstance(base[key], Mapping)
    }
    return {**base, **change, **both}
