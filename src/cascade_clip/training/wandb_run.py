"""The metrics of a run in Weights & Biases, if asked for (optional package)."""

import importlib
import logging
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger

from cascade_clip.config import config_to_dict
from cascade_clip.errors import MissingPackageError, StorageError

_logger = logging.getLogger(__name__)


class WandbRun(Callback):
    """Logs to Weights & Biases what TensorBoard gets.

    Without a login or a connection the run is kept in the folder `wandb` of the run folder, to be
    sent later with `wandb sync`.
    """

    def __init__(self, project: str, out: Path, *, silent: bool = False) -> None:
        """Log to `project`; `silent` keeps its own lines off the screen.

        Raises:
            ImportError: wandb is not installed.
        """
        try:
            self.wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            text = "--wandb needs Weights & Biases: pip install wandb"
            raise MissingPackageError(text) from error
        self.project, self.out, self.silent = project, out, silent

    def setup(self, trainer: Any, task: Any, stage: str) -> None:
        """Join the loggers of the run."""
        if trainer.is_global_zero:
            logger = self._open(offline=False)
            logger.log_hyperparams(config_to_dict(task.config))
            trainer.loggers = [*trainer.loggers, logger]

    def teardown(self, trainer: Any, task: Any, stage: str) -> None:
        """End the run there, so that the next one begins a new one."""
        if trainer.is_global_zero and self.wandb.run is not None:
            self.wandb.finish()

    def _open(self, *, offline: bool) -> Any:
        # the logger's own way, an environment variable, is read once a process
        mode = {"mode": "offline"} if offline else {}
        settings = self.wandb.Settings(silent=self.silent, console="off", **mode)
        logger = WandbLogger(
            project=self.project,
            name=self.out.name,
            save_dir=self.out,
            offline=offline,
            settings=settings,
        )
        try:
            _ = logger.experiment
        except self.wandb.Error as error:
            text = " ".join(str(error).split())[:200]
            if offline:
                raise StorageError(f"Weights & Biases does not start: {text}") from error
            told = "Weights & Biases is not reached (%s); the run is kept in %s"
            _logger.warning(told, text, self.out / "wandb")
            return self._open(offline=True)
        return logger
