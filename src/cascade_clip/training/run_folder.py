"""A run: its settings and the folder that it writes and resumes from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import yaml

from cascade_clip.checkpoints import load_config, read_record
from cascade_clip.config import Config, Resume, config_to_dict, differing_settings
from cascade_clip.errors import CascadeClipError, CheckpointError, MissingFileError, SettingError
from cascade_clip.files import write_whole
from cascade_clip.training.launch import is_first_process
from cascade_clip.training.resume import list_states

FIRST_HALF = "stage1"
"""Folder of the inductive half of a transductive run, inside the run folder."""
SETTINGS_FILE = "config.yaml"


@dataclass(frozen=True)
class Run:
    """The settings of one training and the folder that it writes."""

    config: Config
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """Folder of the finished model."""
        return self.folder / "model"

    @property
    def states(self) -> Path:
        """Folder of the training states."""
        return self.folder / "state"

    def claim(self, resume: Resume) -> None:
        """Write the settings into the folder, or check that they are those of the run it holds.

        The first process does it for all. A run that was refused before its first step leaves the
        folder free.

        Raises:
            ValueError: the folder holds a run and `resume` is `never`, or its settings differ.
            FileNotFoundError: there is nothing to resume, and `resume` is `always`.
        """
        if not is_first_process():
            return
        settings = self.folder / SETTINGS_FILE
        resumable = any(
            list_states(folder / "state") or (folder / "model").exists()
            for folder in (self.folder, self.folder / FIRST_HALF)
        )
        started = settings.is_file() and (resumable or self._has_steps())
        if started and resume == "never":
            fix = "continue it with --resume auto, or choose another --out"
            raise SettingError(f"{self.folder} holds a run already; {fix}")
        if started:
            self._check_settings(settings)
        if resume == "always" and not resumable:
            fix = "start with --resume auto or without --resume"
            raise MissingFileError(f"{self.folder} holds no state to go on from; {fix}")
        if not started:
            write_whole(settings, yaml.safe_dump(config_to_dict(self.config), sort_keys=False))

    def _has_steps(self) -> bool:
        metrics = self.folder / "metrics.csv"
        return metrics.is_file() and len(metrics.read_text(encoding="utf-8").splitlines()) > 1

    def _check_settings(self, settings: Path) -> None:
        before, now = config_to_dict(load_config(settings)), config_to_dict(self.config)
        # another device resumes the same run
        changed = [name for name in differing_settings(before, now) if name != "train.device"]
        if changed:
            raise SettingError(
                f"{self.folder} holds a run with other settings ({', '.join(changed)}); choose"
                f" another --out, or use {settings}"
            )

    def has_ended(self) -> bool:
        """Return whether the folder holds the checkpoint of all steps.

        Raises:
            ValueError: there is a checkpoint, and it is incomplete.
        """
        if not self.checkpoint.exists():
            return False
        try:
            return int(read_record(self.checkpoint).get("steps", 0)) >= self.config.train.steps
        except CascadeClipError as error:
            fix = f"remove {self.checkpoint} and go on with --resume auto"
            raise CheckpointError(f"{error}; {fix}") from error

    def first_half(self) -> Run:
        """Return the inductive half of a transductive run, which has a folder of its own."""
        train = self.config.train.inductive_half()
        return Run(dataclasses.replace(self.config, train=train), self.folder / FIRST_HALF)

    def second_half(self) -> Run:
        """Return the self-training half, which starts from the checkpoint of the first."""
        start = str(self.first_half().checkpoint)
        train = dataclasses.replace(self.config.train, init_from=start, first_batch_size=0)
        return Run(dataclasses.replace(self.config, train=train), self.folder)
