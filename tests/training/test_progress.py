"""What is seen of a run: speed and time left, metrics.csv, lines, events, the log file, Weights &
Biases."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from cascade_clip.config import Config, LossConfig
from cascade_clip.training import progress, wandb_run
from cascade_clip.training.progress import (
    COLUMNS,
    Meter,
    MetricsFile,
    StepEvents,
    TrainingProgress,
    read_metrics,
    used_memory,
)
from cascade_clip.training.run_log import RunScreen


class Clock:
    """A clock that the test moves."""

    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Clock]]:
    Clock.now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    monkeypatch.setattr(progress, "used_memory", lambda device: 1_500_000_000)
    yield Clock


def fake_run(
    step: int = 0, total: int = 100, batch_size: int = 4, log_every: int = 10
) -> tuple[SimpleNamespace, SimpleNamespace]:
    """What callbacks see of a trainer and of a task."""
    metrics = {"loss": 3.5, "focal": 2.5, "dice": 1.0, "masks": 7.0, "learning_rate": 0.002}
    trainer = SimpleNamespace(
        is_global_zero=True,
        global_step=step,
        max_steps=total,
        callback_metrics={name: torch.tensor(value) for name, value in metrics.items()},
        loggers=[],
    )
    config = SimpleNamespace(
        train=SimpleNamespace(
            batch_size=batch_size, log_every=log_every, protocol="inductive", loss=LossConfig()
        )
    )
    return trainer, SimpleNamespace(config=config, device=torch.device("cpu"))


def move(
    callback: Any, trainer: Any, task: Any, clock: type[Clock], steps: int, seconds_a_step: float
) -> None:
    for _ in range(steps):
        trainer.global_step += 1
        clock.now += seconds_a_step
        callback.on_train_batch_end(trainer, task, None, None, 0)


def test_speed_and_time_left(clock: type[Clock]) -> None:
    meter = Meter(10, 110, 4)
    clock.now += 5
    # 2 steps a second of 4 images, 90 steps left
    assert meter.read(20) == progress.Reading(5, 8, 45)
    clock.now += 10
    # 20 steps in 15 s
    assert meter.read(30) == progress.Reading(15, pytest.approx(16 / 3), pytest.approx(60))
    short = Meter(10, 110, 4, window=1)
    clock.now += 5
    short.read(20)
    clock.now += 10
    assert short.read(30) == progress.Reading(15, 4, 80)  # the last ten steps alone


def test_other_loss_terms_have_a_column_where_they_have_a_weight(
    clock: type[Clock], tmp_path: Path
) -> None:
    trainer, task = fake_run()
    task.config.train.loss = LossConfig(ssim=1.0)
    trainer.callback_metrics["ssim"] = torch.tensor(0.25)
    metrics = MetricsFile(tmp_path / "metrics.csv", 10)
    metrics.on_train_start(trainer, task)
    move(metrics, trainer, task, clock, 10, 1.0)
    (row,) = read_metrics(tmp_path / "metrics.csv")
    assert tuple(row) == (*COLUMNS, "ssim") and row["ssim"] == 0.25
    line = progress.describe_step(trainer.callback_metrics, progress.Reading(1.0, 4.0, 0.0), 0)
    assert line.startswith("loss 3.5 focal 2.5 dice 1 ssim 0.25 learning_rate")


def test_a_run_that_ends_by_time_has_no_more_left_than_that(clock: type[Clock]) -> None:
    meter = Meter(0, 1000, 1, minutes=1)
    clock.now += 20
    assert meter.read(10).eta == 40
    clock.now += 100
    assert meter.read(20).eta == 0


def test_memory_is_that_of_the_process() -> None:
    assert 10e6 < used_memory("cpu") < 1e12


def test_metrics_have_speed_and_memory(clock: type[Clock], tmp_path: Path) -> None:
    trainer, task = fake_run()
    logged: list[tuple[dict[str, float], int]] = []
    trainer.loggers = [
        SimpleNamespace(log_metrics=lambda values, step: logged.append((values, step)))
    ]
    metrics = MetricsFile(tmp_path / "metrics.csv", 10)
    metrics.on_train_start(trainer, task)
    move(metrics, trainer, task, clock, 10, 1.0)
    move(metrics, trainer, task, clock, 13, 0.5)
    metrics.on_train_end(trainer, task)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert tuple(rows[0]) == COLUMNS
    assert [(row["step"], row["seconds"], row["images_per_second"]) for row in rows] == [
        (10, 10, 4),
        (20, 15, 8),
        (23, 16.5, 8),
    ]
    assert {row["memory_mb"] for row in rows} == {1500}
    assert rows[0]["loss"] == 3.5
    assert logged[1] == ({"images_per_second": 8.0, "memory_mb": 1500.0}, 20)


def test_metrics_of_a_resumed_run_go_on(clock: type[Clock], tmp_path: Path) -> None:
    """Rows after the state are dropped, a row that a kill cut off too; seconds go on; columns of an
    older version are found by name."""
    path = tmp_path / "metrics.csv"
    path.write_text(
        "step,seconds,loss,focal,dice,masks,learning_rate\n10,7.0,9,8,1,3,0.1\n20,14.0,9,8,1,3,0.1\n30,21.0,9,8"
    )
    trainer, task = fake_run(step=10)
    metrics = MetricsFile(path, 10)
    metrics.on_train_start(trainer, task)
    move(metrics, trainer, task, clock, 10, 1.0)
    rows = read_metrics(path)
    assert [(row["step"], row["seconds"], row["loss"]) for row in rows] == [
        (10, 7, 9),
        (20, 17, 3.5),
    ]
    assert "images_per_second" not in rows[0]
    assert rows[1]["images_per_second"] == 4
    # no temporary file is left
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


def test_lines_without_a_terminal(clock: type[Clock], caplog: pytest.LogCaptureFixture) -> None:
    text = io.StringIO()
    trainer, task = fake_run()
    bar = TrainingProgress(Console(file=text, width=40), lines=2)
    logging.getLogger("cascade_clip.said").addHandler(caplog.handler)
    try:
        bar.on_train_start(trainer, task)
        move(bar, trainer, task, clock, 100, 1.0)
    finally:
        logging.getLogger("cascade_clip.said").removeHandler(caplog.handler)
    line = "step {}/100 loss 3.5 focal 2.5 dice 1 learning_rate 0.002 4.0 images/s 1.50 GB {} left"
    expected = [line.format(50, "0:50"), line.format(100, "0:00")]
    assert text.getvalue().splitlines() == expected
    assert [record.getMessage() for record in caplog.records] == expected  # and in the log


def test_a_second_stage_has_a_bar_of_its_own(clock: type[Clock]) -> None:
    text = io.StringIO()
    trainer, task = fake_run(total=3)
    bar = TrainingProgress(Console(file=text, width=150, force_terminal=True))
    for _ in range(2):
        trainer.global_step = 0
        bar.on_train_start(trainer, task)
        assert len(bar.progress.tasks) == 1
        move(bar, trainer, task, clock, 3, 1.0)
        bar.on_train_end(trainer, task)
    assert "3/3" in text.getvalue()
    assert "4.0 images/s 1.50 GB" in text.getvalue()


def test_quiet_shows_no_lines(clock: type[Clock], capsys: pytest.CaptureFixture[str]) -> None:
    trainer, task = fake_run()
    bar = TrainingProgress(RunScreen("quiet").console)
    bar.on_train_start(trainer, task)
    move(bar, trainer, task, clock, 100, 1.0)
    bar.on_train_end(trainer, task)
    assert capsys.readouterr() == ("", "")


def test_events_are_objects_one_a_line(
    clock: type[Clock], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, task = fake_run(total=13)
    trainer.callback_metrics["dice"] = torch.tensor(float("nan"))
    screen = RunScreen("json")
    with screen.logging_to(tmp_path / "log.txt") as log:
        events = StepEvents(screen, log)
        events.on_train_start(trainer, task)
        move(events, trainer, task, clock, 13, 0.5)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(event["event"], event["step"]) for event in found] == [
        ("start", 0),
        ("step", 10),
        ("step", 13),
    ]
    assert found[1] == {
        "event": "step", "step": 10, "steps": 13, "loss": 3.5, "focal": 2.5, "dice": None,
        "masks": 7.0,
        "learning_rate": pytest.approx(0.002), "images_per_second": 8.0,
        "memory_bytes": 1_500_000_000, "seconds": 5.0, "eta_seconds": 1.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("normal", ["on the way", "at last"]),
        ("quiet", ["at last"]),
        ("json", ['{"event": "thing", "value": null}']),
    ],
)
def test_modes(
    mode: Any, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = RunScreen(mode)
    with screen.logging_to(tmp_path / "log.txt") as log:
        log.open()
        screen.say("on the way")
        screen.event("thing", value=float("inf"))
        screen.conclude("at last")
    assert capsys.readouterr().out.splitlines() == expected
    said = [line.partition(" INFO ")[2] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert said == ["on the way", "at last"]  # whatever the mode


def test_quiet_keeps_warnings_alone_on_standard_error(tmp_path: Path) -> None:
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    root, logger = logging.getLogger(), logging.getLogger("cascade_clip.training.task")
    before = logging.getLogger("cascade_clip").level
    root.addHandler(handler)
    logging.getLogger("cascade_clip").setLevel(logging.INFO)
    try:
        with RunScreen("quiet").logging_to(tmp_path / "log.txt") as log:
            logger.info("detail")
            logger.warning("trouble")
            log.open()
        logger.info("afterwards")
    finally:
        root.removeHandler(handler)
        logging.getLogger("cascade_clip").setLevel(before)
    assert text.getvalue().splitlines() == ["trouble", "afterwards"]
    assert [line.split(" ", 2)[2] for line in (tmp_path / "log.txt").read_text().splitlines()] == [
        "INFO detail",
        "WARNING trouble",
    ]


def test_the_log_waits_for_the_run_and_takes_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run" / "log.txt"
    with pytest.raises(ValueError, match="refused"), RunScreen().logging_to(path):
        raise ValueError("refused")
    assert not path.parent.exists()  # nothing had begun
    with pytest.raises(ValueError, match="broken"), RunScreen("json").logging_to(path) as log:
        log.open()
        warnings.warn("careful", stacklevel=1)
        raise ValueError("broken")
    content = path.read_text()
    assert "careful" in content
    assert content.splitlines()[-1].endswith("ERROR stopped by an error: broken")
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {
        "event": "error",
        "text": "broken",
    }
    logging.getLogger("cascade_clip").warning("later")
    assert path.read_text() == content  # the file is closed


def test_a_stop_from_outside_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), RunScreen("json").logging_to(tmp_path / "log.txt") as log:
        log.open()
        raise SystemExit(75)
    assert capsys.readouterr().out == '{"event": "stopped", "code": 75}\n'
    assert "ERROR" not in (tmp_path / "log.txt").read_text()


def test_wandb_that_is_missing_names_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb"):
        wandb_run.WandbRun("project", tmp_path)


def test_wandb_without_a_connection_is_kept_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[dict[str, Any]] = []

    class Refused(Exception):
        pass

    class Logger:
        def __init__(self, **settings: Any) -> None:
            opened.append(settings)

        @property
        def experiment(self) -> str:
            if not opened[-1]["offline"]:
                raise Refused("no login")
            return "run"

        def log_hyperparams(self, values: dict[str, Any]) -> None:
            opened[-1]["logged"] = values

    ended: list[str] = []
    fake = SimpleNamespace(
        Error=Refused,
        Settings=lambda **values: values,
        run="run",
        finish=lambda: ended.append("run"),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(wandb_run, "WandbLogger", Logger)
    trainer = SimpleNamespace(is_global_zero=True, loggers=["tensorboard"])
    callback = wandb_run.WandbRun("project", tmp_path / "mine", silent=True)
    callback.setup(trainer, SimpleNamespace(config=Config()), "fit")
    callback.teardown(trainer, None, "fit")
    assert [
        (settings["project"], settings["name"], settings["offline"]) for settings in opened
    ] == [
        ("project", "mine", False),
        ("project", "mine", True),
    ]
    assert opened[1]["logged"]["train"]["steps"] == 20000
    assert opened[1]["settings"] == {"silent": True, "console": "off", "mode": "offline"}
    assert "mode" not in opened[0]["settings"]  # as the user's own settings say
    assert trainer.loggers[0] == "tensorboard"
    assert isinstance(trainer.loggers[1], Logger)
    assert ended == ["run"]
