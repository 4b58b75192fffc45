"""Training states, which `--resume` continues from.

A state is written under a temporary name, flushed to the disk and renamed, and the newest two are
kept: neither a kill nor a full disk nor one damaged file loses a run. Reading one never executes
anything.
"""

import io
import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from cascade_clip.errors import CheckpointError, StorageError, WeightsError
from cascade_clip.files import read_pickle, write_whole

KEPT = 2
"""States that are kept: the newest, and the one before it in case the newest is damaged."""

_NAME = re.compile(r"step-(\d+)\.ckpt")
_logger = logging.getLogger(__name__)


def state_path(folder: Path, step: int) -> Path:
    """Return the file of the state after `step` optimiser steps."""
    return folder / f"step-{step:08d}.ckpt"


def list_states(folder: Path) -> list[Path]:
    """Return the states in a folder, newest first."""
    found = [path for path in folder.glob("*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=saved_step, reverse=True)


def saved_step(state: Path) -> int:
    """Return the number of optimiser steps of a state, from its name."""
    match = _NAME.fullmatch(state.name)
    if match is None:
        raise CheckpointError(f"{state} is no state of a run; its name must be step-NUMBER.ckpt")
    return int(match[1])


def newest_state(folder: Path) -> Path | None:
    """Return the newest intact state file, or None if there is none at all. Damaged files are
    skipped with a warning.

    Raises:
        ValueError: there are states, and every one is damaged.
    """
    states = list_states(folder)
    for state in states:
        damage = find_damage(state)
        if damage is None:
            return state
        _logger.warning("%s is damaged (%s) and is passed over", state, damage)
    if states:
        raise CheckpointError(f"every state in {folder} is damaged; remove it to start again")
    return None


def find_damage(state: Path) -> str | None:
    """Return what is wrong with a state file by its checksums; None if it is intact."""
    try:
        with zipfile.ZipFile(state) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        return str(error)
    return f"its part {broken} has a wrong checksum" if broken else None


class StateFiles(TorchCheckpointIO):
    """Writes and reads training states for Lightning."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a state whole or not at all, then remove those that are older than the last two.

        Raises:
            OSError: the disk is full or the folder cannot be written; states that were there are
                still there.
        """
        final = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            write_whole(final, buffer.getvalue(), flush=True)
        except OSError as error:
            states = list_states(final.parent)
            kept = f"{states[0]} is kept" if states else "there is none before it"
            raise StorageError(
                f"the state of the run could not be written to {final} ({error.strerror or error});"
                f" {kept}: make room and go on with --resume auto"
            ) from error
        for old in list_states(final.parent)[KEPT:]:
            old.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | os.PathLike[str], *options: Any, **more: Any) -> Any:
        """Read a state; only tensors and plain values are accepted, whatever the options say.

        Raises:
            ValueError: damaged, or objects that would have to be executed.
        """
        try:
            loaded = read_pickle(Path(path))
        except WeightsError as error:
            raise CheckpointError(f"{path} is no state of this program: {error}") from error
        if not isinstance(loaded, dict):
            kind = type(loaded).__name__
            raise CheckpointError(f"{path} is no state of this program: it holds a {kind}")
        return loaded
