"""What a person, a program and a plotting tool see while a model trains."""

import csv
import io
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.pytorch.callbacks import Callback
from rich import progress
from rich.console import Console

from cascade_clip.files import write_whole
from cascade_clip.results import format_clock
from cascade_clip.training.run_log import RunLog, RunScreen

METRICS = ("loss", "focal", "dice", "masks", "learning_rate")
COLUMNS = ("step", "seconds", *METRICS, "images_per_second", "memory_mb")
EXTRA = ("ssim", "cross_entropy", "auxiliary")
"""Terms of the loss that have a column, after the others, where they have a weight."""


def quiet_engine() -> None:
    """Keep Lightning's own notes (devices, tips) off the screen; its warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)


def used_memory(device: torch.device | str) -> int:
    """Return the most bytes that CUDA has held for this process; elsewhere those it holds now."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


@dataclass(frozen=True)
class Reading:
    """Speed and time at one step."""

    seconds: float
    """Since the run, or its resumption, began."""
    images_per_second: float
    eta: float
    """Seconds that are left at this speed."""


class Meter:
    """Measures the speed over the last `window` readings, and the time that is left."""

    def __init__(
        self, step: int, total: int, batch_size: int, *, window: int = 20, minutes: float = 0.0
    ) -> None:
        """Begin at `step` of `total`; with `minutes`, the run also ends by time."""
        self.total, self.batch_size, self.minutes = total, batch_size, minutes
        self.points = deque([(time.monotonic(), step)], maxlen=window + 1)
        self.begin = self.points[0][0]

    def read(self, step: int) -> Reading:
        """Take the time at a step that was just finished."""
        now = time.monotonic()
        self.points.append((now, step))
        speed = (step - self.points[0][1]) / max(now - self.points[0][0], 1e-9)  # steps a second
        left = max(self.total - step, 0) / max(speed, 1e-9)
        if self.minutes:
            left = min(left, max(60 * self.minutes - (now - self.begin), 0.0))
        return Reading(now - self.begin, speed * self.batch_size, left)


class MetricsFile(Callback):
    """Write `metrics.csv`, a row every few steps and after the last; a resumed run adds to it."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def on_train_start(self, trainer: Any, task: Any) -> None:
        """Write the head, keeping the rows of steps that the run does not repeat."""
        if not trainer.is_global_zero:
            return
        self.extra = tuple(name for name in EXTRA if getattr(task.config.train.loss, name))
        kept = [row for row in read_metrics(self.path) if row["step"] <= trainer.global_step]
        write_whole(self.path, _csv_text(kept, self.extra, head=True))
        self.before = kept[-1].get("seconds", 0.0) if kept else 0.0
        size = task.config.train.batch_size
        self.meter = Meter(trainer.global_step, trainer.max_steps, size, window=1)

    def on_train_batch_end(self, trainer: Any, task: Any, *batch: Any) -> None:
        """Add a row."""
        if trainer.is_global_zero and trainer.global_step % self.every == 0:
            self._write(trainer, task)

    def on_train_end(self, trainer: Any, task: Any) -> None:
        """Add the last step, wherever the run ended."""
        written = not trainer.global_step % self.every
        if trainer.is_global_zero and not written and METRICS[0] in trainer.callback_metrics:
            self._write(trainer, task)

    def _write(self, trainer: Any, task: Any) -> None:
        step = trainer.global_step
        now, memory = self.meter.read(step), used_memory(task.device) / 1e6
        speed = {"images_per_second": now.images_per_second, "memory_mb": memory}
        row: dict[str, Any] = {"step": step, "seconds": f"{self.before + now.seconds:.1f}"}
        row |= {name: float(trainer.callback_metrics[name]) for name in (*METRICS, *self.extra)}
        row |= {name: f"{value:.5g}" for name, value in speed.items()}
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(_csv_text([row], self.extra))
        for logger in trainer.loggers:
            logger.log_metrics(speed, step)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of a metrics file without one that a kill cut off; none without a file."""
    if not path.is_file():
        return []
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                rows.append({name: float(value) for name, value in row.items() if value != ""})
            except (TypeError, ValueError):  # cut off
                continue
    return [row for row in rows if "step" in row]


def _csv_text(
    rows: Sequence[Mapping[str, Any]], extra: tuple[str, ...] = (), *, head: bool = False
) -> str:
    """Rows as CSV text with `extra` columns last, below the names of the columns with `head`."""
    buffer, columns = io.StringIO(), (*COLUMNS, *extra)
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    if head:
        writer.writeheader()
    for row in rows:
        numbers = {name: f"{one:.8g}" for name, one in row.items() if isinstance(one, float)}
        writer.writerow({**row, **numbers})
    return buffer.getvalue()


class TrainingProgress(Callback):
    """Draw a bar with step, loss parts, learning rate, images/s, memory and remaining time; without
    a terminal, print lines. The run's log gets the lines in any case."""

    def __init__(self, console: Console, lines: int = 20, minutes: float = 0.0) -> None:
        """Draw on `console`, else print about `lines` lines; with `minutes` a run ends by time."""
        self.console, self.lines, self.minutes = console, lines, minutes
        self.screen = RunScreen()
        self.progress = self._build_bar()
        self.drawn = console.is_terminal and not console.quiet

    def _build_bar(self) -> progress.Progress:
        text = progress.TextColumn("{task.description}")
        columns = (progress.BarColumn(20), progress.MofNCompleteColumn(), text)
        times = (progress.TimeElapsedColumn(), progress.TimeRemainingColumn())
        return progress.Progress(*columns, *times, console=self.console)

    def on_train_start(self, trainer: Any, task: Any) -> None:
        """Start the bar at the step that the run starts from."""
        if not trainer.is_global_zero:
            return
        step, train, self.total = trainer.global_step, task.config.train, trainer.max_steps
        self.meter = Meter(step, self.total, train.batch_size, minutes=self.minutes)
        self.progress = self._build_bar()  # a run of two stages has a bar for each
        self.row = self.progress.add_task("", total=self.total, completed=step)
        if self.drawn:
            self.progress.start()

    def on_train_batch_end(self, trainer: Any, task: Any, *batch: Any) -> None:
        """Move the bar on."""
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        now = self.meter.read(step)
        text = describe_step(trainer.callback_metrics, now, used_memory(task.device))
        if self.drawn:
            self.progress.update(self.row, completed=step, description=text)
        if step % max(1, self.total // self.lines) and step != self.total:
            return
        line = f"step {step}/{self.total} {text} {format_clock(now.eta)} left"
        self.screen.note(line)
        if not self.drawn:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def on_train_end(self, trainer: Any, task: Any) -> None:
        """Leave the finished bar on the screen."""
        self.progress.stop()

    def on_exception(self, trainer: Any, task: Any, exception: BaseException) -> None:
        """Give the terminal back."""
        self.progress.stop()


def describe_step(metrics: Mapping[str, Any], now: Reading, memory: int) -> str:
    """Return loss parts, learning rate, images/s and memory in one line."""
    names = ("loss", "focal", "dice", *EXTRA, "learning_rate")
    parts = [f"{name} {float(metrics[name]):.3g}" for name in names if name in metrics]
    return " ".join([*parts, f"{now.images_per_second:.1f} images/s", f"{memory / 1e9:.2f} GB"])


class StepEvents(Callback):
    """Emit the events of json mode; open the log file once the run has its folder."""

    def __init__(self, screen: RunScreen, log: RunLog) -> None:
        self.screen, self.run_log = screen, log

    def setup(self, trainer: Any, task: Any, stage: str) -> None:
        """Open the log file: settings and data are found good by now."""
        if trainer.is_global_zero:
            self.run_log.open()

    def on_train_start(self, trainer: Any, task: Any) -> None:
        """Say where the run begins."""
        if trainer.is_global_zero:
            train, step, steps = task.config.train, trainer.global_step, trainer.max_steps
            self.meter = Meter(step, steps, train.batch_size)
            self.screen.event("start", protocol=train.protocol, step=step, steps=steps)

    def on_train_batch_end(self, trainer: Any, task: Any, *batch: Any) -> None:
        """One event for every row of metrics.csv, the last step included."""
        step = trainer.global_step
        due = step % task.config.train.log_every == 0 or step == trainer.max_steps
        if not (trainer.is_global_zero and due):
            return
        now = self.meter.read(step)
        values = {name: float(trainer.callback_metrics[name]) for name in METRICS}
        self.screen.event(
            "step",
            step=step,
            steps=trainer.max_steps,
            **values,
            images_per_second=round(now.images_per_second, 3),
            memory_bytes=used_memory(task.device),
            seconds=round(now.seconds, 3),
            eta_seconds=round(now.eta, 1),
        )
