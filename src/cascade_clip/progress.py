"""What a person sees while a model trains."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def quiet_engine() -> None:
    """Keep Lightning's own notes (devices, tips) off the screen; its warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)


METRICS = ("loss", "focal", "dice", "masks", "learning_rate")


class MetricsFile(Callback):
    """`metrics.csv`: one row every few steps; a resumed run goes on from the row before its first step."""

    def __init__(self, path: Path, every: int) -> None:
        """Write to `path` every `every` steps, and after the last one."""
        self.path = path
        self.every = every

    def on_train_start(self, trainer: Any, task: Any) -> None:
        """Write the head, keeping the rows of steps that the run does not repeat."""
        if not trainer.is_global_zero:
            return
        kept: list[str] = []
        if self.path.is_file():
            rows = self.path.read_text(encoding="utf-8").splitlines()[1:]
            kept = [row for row in rows if row.split(",")[0].isdigit() and int(row.split(",")[0]) <= trainer.global_step]
        self.path.write_text("\n".join([",".join(("step", "seconds", *METRICS)), *kept, ""]), encoding="utf-8")
        self.begin = time.monotonic()

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        """Add a row."""
        if trainer.is_global_zero and trainer.global_step % self.every == 0:
            self._write(trainer)

    def on_train_end(self, trainer: Any, task: Any) -> None:
        """Add the last step, wherever the run ended."""
        if trainer.is_global_zero and trainer.global_step % self.every and METRICS[0] in trainer.callback_metrics:
            self._write(trainer)

    def _write(self, trainer: Any) -> None:
        step = trainer.global_step
        values = [f"{float(trainer.callback_metrics[name]):.8g}" for name in METRICS]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(",".join((str(step), f"{time.monotonic() - self.begin:.1f}", *values)) + "\n")


class TrainingProgress(Callback):
    """A bar with step, loss parts, learning rate, images/s and the time that remains; a line now and then where there is no terminal."""

    def __init__(self, console: Console, lines: int = 20, minutes: float = 0.0) -> None:
        """Draw on `console`; without a terminal print about `lines` lines in all. `minutes` says that a run ends by time."""
        self.console = console
        self.lines = lines
        self.minutes = minutes
        columns = (BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console)

    def on_train_start(self, trainer: Any, task: Any) -> None:
        """Start the bar at the step that the run starts from."""
        if not trainer.is_global_zero:
            return
        self.first = trainer.global_step
        self.total = trainer.max_steps
        self.row = self.progress.add_task("", total=self.total, completed=self.first)
        if self.console.is_terminal:
            self.progress.start()

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        """Move the bar on."""
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        every = max(1, self.total // self.lines)
        if not self.console.is_terminal and step % every and step != self.total:
            return
        values = trainer.callback_metrics
        parts = " ".join(f"{name} {float(values[name]):.3g}" for name in ("loss", "focal", "dice", "learning_rate") if name in values)
        elapsed = self.progress.tasks[self.row].elapsed if self.console.is_terminal else None
        speed = (step - self.first) * task.config.train.batch_size / elapsed if elapsed else None
        text = parts + (f" {speed:.1f} images/s" if speed else "")
        if self.console.is_terminal:
            self.progress.update(self.row, completed=step, description=text)
        else:
            self.console.print(f"step {step}/{self.total} {text}", markup=False, highlight=False)

    def on_train_end(self, trainer: Any, task: Any) -> None:
        """Leave the finished bar on the screen."""
        self.progress.stop()

    def on_exception(self, trainer: Any, task: Any, exception: BaseException) -> None:
        """Give the terminal back."""
        self.progress.stop()
