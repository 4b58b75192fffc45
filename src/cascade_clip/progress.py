"""What a person sees while a model trains."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingProgress(Callback):
    """A bar with step, loss parts, learning rate, images/s and the time that remains; a line now and then where there is no terminal."""

    def __init__(self, console: Console, lines: int = 20) -> None:
        """Draw on `console`; without a terminal print about `lines` lines in all."""
        self.console = console
        self.lines = lines
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
