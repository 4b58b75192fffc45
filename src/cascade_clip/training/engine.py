"""Lightning with our settings: devices, precision, training states, and stopping from outside.

SIGTERM (a scheduler's pre-emption), SIGUSR1 (SLURM's warning before the time limit) and Ctrl-C end
a run after the step that is under way: its state is saved and the process ends with exit code 75,
"try again later". `--resume` then continues it, bit for bit as if it had not been stopped. A second
Ctrl-C ends it at once.
"""

import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cascade_clip.config import TrainConfig
from cascade_clip.errors import CascadeClipError, Interrupted, SettingError, StorageError
from cascade_clip.ops import find_device
from cascade_clip.training.launch import end_with_parent, launched_by_us
from cascade_clip.training.progress import MetricsFile
from cascade_clip.training.resume import StateFiles, state_path
from cascade_clip.training.run_folder import Run

STOPPED = 75
"""Exit code of a run that was stopped from outside (EX_TEMPFAIL: try again later)."""

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def stopping_at_once() -> Iterator[None]:
    """While no training runs, let a signal to stop end the process with code `STOPPED`."""

    def stop(number: int, frame: FrameType | None) -> None:
        _logger.warning("stopped, as asked; go on with --resume auto")
        raise Interrupted(STOPPED, number)

    with _handling(stop):
        yield


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals to stop, and give them back afterwards; only a main thread can."""
    before = _take_signals(handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _take_signals(handler: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, Any]:
    """Set the handler, and return those that were set before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    names = ("SIGINT", "SIGTERM", "SIGUSR1")  # Windows does not know the last
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return {number: signal.signal(number, handler) for number in numbers}


class StateSaver(Checkpoint):
    """Save a training state every few steps, and once more when the run is asked to stop."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.asked = 0
        """The signal that asked the run to stop."""
        self.stopped = False

    def listening(self) -> contextlib.AbstractContextManager[None]:
        """Take these signals as the wish to stop while the context is open."""
        return _handling(self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number

    def on_train_start(self, trainer: Any, task: Any) -> None:
        """Take the signals back from the engine, whose handler would disturb a step under way."""
        _take_signals(self._note)

    def on_train_batch_end(self, trainer: Any, task: Any, *batch: Any) -> None:
        """Save where it is time to; all processes agree on whether to stop."""
        step, decide = trainer.global_step, trainer.strategy.reduce_boolean_decision
        stop = step < trainer.max_steps and bool(decide(bool(self.asked), all=False))
        if stop or step % self.every == 0:
            trainer.save_checkpoint(state_path(self.folder, step))
        if stop:
            self.stopped = trainer.should_stop = True


def build_trainer(run: Run, callbacks: list[Callback]) -> tuple[lightning.Trainer, StateSaver]:
    """Return Lightning's engine with a run's settings, and the callback that saves its states."""
    train, out = run.config.train, run.folder
    device = find_device(train.device)
    saver = StateSaver(run.states, train.save_every)
    plugins: list[Any] = [StateFiles(), build_precision(train, device.type)]
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        # it would save in the middle of a step
        plugins.append(SLURMEnvironment(auto_requeue=False))
    backend = "gloo" if device.type == "cpu" else None
    # buffers are constants, which need no exchange
    shared = DDPStrategy(process_group_backend=backend, broadcast_buffers=False)
    try:
        trainer = lightning.Trainer(
            accelerator={"cpu": "cpu", "cuda": "gpu", "mps": "mps"}[device.type],
            devices=train.devices,
            num_nodes=train.num_nodes,
            strategy=shared if train.processes > 1 else "auto",
            plugins=plugins,
            max_steps=train.steps,
            max_epochs=-1,
            logger=TensorBoardLogger(out, name="", version="tensorboard"),
            log_every_n_steps=train.log_every,
            callbacks=[saver, MetricsFile(out / "metrics.csv", train.log_every), *callbacks],
            default_root_dir=out,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
        )
    except MisconfigurationException as error:  # more devices than there are
        raise SettingError(" ".join(str(error).split())) from error
    return trainer, saver


def build_precision(train: TrainConfig, device: str) -> Precision:
    """Return the number format of matrix products; weights and optimiser state stay float32.

    With fp16 a scaler keeps small gradients from vanishing; it skips steps whose gradients overflow
    and halves its factor. It starts lower than torch's 65536, because what goes backward is the sum
    over masks, which is divided by their number afterwards.
    """
    if train.precision == "fp32":
        return Precision()
    if train.precision == "bf16":
        return MixedPrecision("bf16-mixed", device)
    return MixedPrecision("16-mixed", device, torch.amp.GradScaler(device, init_scale=2.0**10))


def run_engine(
    trainer: lightning.Trainer,
    saver: StateSaver,
    task: lightning.LightningModule,
    batches: lightning.LightningDataModule,
    start: Path | None,
) -> None:
    """Train to the end, or to the step after which a scheduler wants the run to stop.

    Lightning's warnings that do not concern us are left out; errors of loading processes become
    their own last line.

    Raises:
        Interrupted: the run was asked to stop, and its state is saved.
    """
    end_with_parent(trainer)
    with warnings.catch_warnings(), saver.listening():
        known = "have many workers|isinstance.treespec, LeafSpec|broadcast_buffers"
        warnings.filterwarnings("ignore", f".*({known})")
        try:
            trainer.fit(task, datamodule=batches, ckpt_path=None if start is None else str(start))
        except (CascadeClipError, OSError) as error:
            if "in DataLoader worker process" not in str(error):
                raise
            last = [line for line in str(error).splitlines() if line.strip()][-1]
            kind = type(error) if isinstance(error, CascadeClipError) else StorageError
            raise kind(last.partition("Error: ")[2] or last) from error
        except SIGTERMException as error:
            # asked between two hooks; the state of the last step is saved all the same
            if not saver.stopped:
                raise Interrupted(STOPPED, saver.asked) from error
        except SystemExit as error:  # Lightning's answer to a second Ctrl-C
            raise KeyboardInterrupt from error
    if saver.stopped:
        if trainer.is_global_zero:
            text = "stopped after step %d, as asked; its state is saved: go on with --resume auto"
            _logger.warning(text, trainer.global_step)
        raise Interrupted(0 if launched_by_us() else STOPPED, saver.asked)
