"""The processes of one run: which is the first, how many a launcher started, which we started."""

import os
import threading
import time

import lightning.pytorch as lightning
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from cascade_clip.config import TrainConfig
from cascade_clip.errors import SettingError

_RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
_PARENT = "CASCADE_CLIP_PARENT"


def is_first_process() -> bool:
    """Return whether this process writes the run's files; known before the engine starts."""
    return all(os.environ.get(name, "0") in ("", "0") for name in _RANKS)


def check_launch(train: TrainConfig) -> None:
    """Check that a launcher started as many processes as share a batch by the settings.

    Raises:
        ValueError: torchrun or srun started another number; each would train alone into the same
            folder.
    """
    if TorchElasticEnvironment.detect():
        launcher, started = "torchrun", int(os.environ["WORLD_SIZE"])
    elif SLURMEnvironment.detect():
        launcher, started = "srun", int(os.environ.get("SLURM_NTASKS", "1"))
    else:
        return
    if started != train.processes:
        raise SettingError(
            f"{launcher} started {started} processes, but the settings share a batch among"
            f" {train.num_nodes} nodes x {train.devices} devices = {train.processes}; set --devices"
            f" and --num-nodes to what {launcher} starts"
        )


def launched_by_us() -> bool:
    """Return whether the first process of a run on several devices started this one."""
    return os.environ.get("LOCAL_RANK", "0") != "0" and _PARENT in os.environ


def end_with_parent(trainer: lightning.Trainer) -> None:
    """Let the processes that Lightning starts end with their starter, even when it is killed."""
    if launched_by_us():
        watch_parent(int(os.environ[_PARENT]))
        return
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is not None and not environment.creates_processes_externally:
        os.environ[_PARENT] = str(os.getpid())


def watch_parent(parent: int) -> None:
    """End this process when its parent process has ended, even if that was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
