"""A run that is killed, pre-empted, short of disk or given a damaged state goes on bit for bit, or
says what to do."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from cascade_clip.config import Config
from cascade_clip.config.serialization import config_to_dict
from cascade_clip.errors import Interrupted
from cascade_clip.files import atomic
from cascade_clip.models.segmenter import Segmenter
from cascade_clip.training import resume as states
from cascade_clip.training.engine import STOPPED
from cascade_clip.training.fit import fit
from cascade_clip.training.non_finite import Cause, describe, find_cause
from cascade_clip.training.progress import read_metrics
from cascade_clip.training.resume import (
    StateFiles,
    find_damage,
    list_states,
    newest_state,
    state_path,
)
from tiny_models import build_tiny
from tiny_runs import DROPOUT, ZERO_GRADIENT, largest_gap, tiny_config, weights


@pytest.fixture(scope="session")
def whole(finished: Callable[..., Path]) -> dict[str, torch.Tensor]:
    """The weights of the uninterrupted run of four steps with dropout."""
    return weights(finished(DROPOUT))


class At(Callback):
    """Do something once, after the given step or (`before`) right before it."""

    def __init__(self, step: int, action: Callable[[Any], object], *, before: bool = False) -> None:
        self.step, self.action, self.before = step, action, before

    def on_train_batch_start(self, trainer: Any, task: Any, batch: Any, batch_index: int) -> None:
        if self.before and trainer.global_step == self.step:
            self.action(task)

    def on_train_batch_end(
        self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        if not self.before and trainer.global_step == self.step:
            self.action(task)


class Killed(Exception):
    pass


def die(task: Any) -> None:
    raise Killed


def names_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "state").iterdir())


# --- killed and pre-empted


def start(settings: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    """`cascade-clip train` in a process group of its own, as a scheduler starts it."""
    command = [
        sys.executable,
        "-m",
        "cascade_clip",
        "train",
        str(settings),
        "--out",
        str(out),
        *words,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def wait_for_step(out: Path, step: int, process: subprocess.Popen[str]) -> int:
    """Wait until a run has logged a step; returns the last one it has logged."""
    for _ in range(6000):
        rows = read_metrics(out / "metrics.csv")
        if rows and rows[-1]["step"] >= step:
            return int(rows[-1]["step"])
        if process.poll() is not None:
            raise AssertionError(process.communicate()[1])
        time.sleep(0.02)
    raise AssertionError("the run does not move")


def test_killed_and_preempted_is_the_uninterrupted_run(folders: Path, tmp_path: Path) -> None:
    """kill -9 at some step after a state; SIGTERM to all processes of the run that went on; then on
    to the end."""
    alone = tiny_config(folders, DROPOUT, steps=40, save_every=5, preview_every=0)
    config = dataclasses.replace(alone, data=dataclasses.replace(alone.data, workers=1))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config_to_dict(config)))
    out = tmp_path / "part"

    first = start(tmp_path / "run.yaml", out, "--resume", "auto")
    wait_for_step(out, 7, first)
    os.killpg(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert list_states(out / "state")
    reached = int(read_metrics(out / "metrics.csv")[-1]["step"])

    second = start(tmp_path / "run.yaml", out, "--resume", "auto")
    wait_for_step(out, reached + 2, second)
    os.killpg(second.pid, signal.SIGTERM)
    _, errors = second.communicate(timeout=120)
    assert second.returncode == STOPPED == 75, errors
    stopped = list_states(out / "state")[0]
    assert reached < states.saved_step(stopped) < 40
    assert (
        f"stopped after step {states.saved_step(stopped)}, as asked; its state is saved: go on with"
        " --resume auto" in errors
    )
    assert not (out / "model").exists()

    fit(config, out, resume="always")
    fit(alone, tmp_path / "whole")
    assert largest_gap(weights(tmp_path / "whole"), weights(out)) == 0
    steps = [row["step"] for row in read_metrics(out / "metrics.csv")]
    assert steps == list(range(1, 41))


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step(folders: Path, tmp_path: Path) -> None:
    """A signal to the first process alone stops both; the run then goes on to the weights of one
    process."""
    config = tiny_config(folders, steps=20, save_every=5, preview_every=0, devices=2)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config_to_dict(config)))
    out = tmp_path / "two"
    first = start(tmp_path / "run.yaml", out)
    wait_for_step(out, 3, first)
    os.kill(first.pid, signal.SIGTERM)
    _, errors = first.communicate(timeout=120)
    assert first.returncode == STOPPED, errors
    assert errors.count("stopped after step") == 1
    second = start(tmp_path / "run.yaml", out, "--resume", "always")
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    fit(
        dataclasses.replace(config, train=dataclasses.replace(config.train, devices=1)),
        tmp_path / "one",
    )
    # rounding grows over 20 steps
    assert largest_gap(weights(tmp_path / "one"), weights(out), ZERO_GRADIENT) < 1e-4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_after_the_step(
    folders: Path, tmp_path: Path, whole: dict[str, torch.Tensor], number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as found:
        fit(
            tiny_config(folders, DROPOUT),
            tmp_path / "run",
            callbacks=[At(2, lambda task: os.kill(os.getpid(), number), before=True)],
        )
    assert (found.value.code, found.value.number) == (STOPPED, number)
    assert names_of(tmp_path / "run") == ["step-00000002.ckpt", "step-00000003.ckpt"]
    assert signal.getsignal(number) is before
    fit(tiny_config(folders, DROPOUT), tmp_path / "run", resume="auto")
    assert largest_gap(whole, weights(tmp_path / "run")) == 0


def test_a_signal_in_the_last_step_changes_nothing(folders: Path, tmp_path: Path) -> None:
    fit(
        tiny_config(folders),
        tmp_path / "run",
        callbacks=[At(3, lambda task: os.kill(os.getpid(), signal.SIGTERM), before=True)],
    )
    assert (tmp_path / "run" / "model").is_dir()


# --- the choice to resume


def test_resume_is_a_choice(folders: Path, tmp_path: Path) -> None:
    config = tiny_config(folders)
    with pytest.raises(FileNotFoundError, match="holds no state to go on from"):
        fit(config, tmp_path / "run", resume="always")
    assert not (tmp_path / "run").exists()
    first = fit(config, tmp_path / "run", resume="auto")
    with pytest.raises(ValueError, match=r"holds a run already; continue it with --resume auto"):
        fit(config, tmp_path / "run")
    # no step is taken
    again = fit(
        config, tmp_path / "run", resume="always", callbacks=[At(4, die), At(0, die, before=True)]
    )
    assert largest_gap(dict(first.model.state_dict()), dict(again.model.state_dict())) == 0


@pytest.mark.parametrize("stage", [1, 2])
def test_a_transductive_run_goes_on_in_either_stage(
    folders: Path, tmp_path: Path, finished: Callable[..., Path], stage: int
) -> None:
    train = {"protocol": "transductive", "ema_teacher": 0.5, "pseudo_threshold": 0.5}
    config = tiny_config(folders, DROPOUT, **train)

    class DiesInStage(At):
        seen = 0

        def on_train_start(self, trainer: Any, task: Any) -> None:
            self.seen += 1
            self.step = 3 if self.seen == stage else -1

    with pytest.raises(Killed):
        fit(config, tmp_path / "part", callbacks=[DiesInStage(-1, die)])
    assert (tmp_path / "part" / "stage1" / "model").exists() == (stage == 2)
    fit(config, tmp_path / "part", resume="always")
    assert largest_gap(weights(finished(DROPOUT, **train)), weights(tmp_path / "part")) == 0


def test_self_training_needs_a_whole_first_stage(
    folders: Path, tmp_path: Path, finished: Callable[..., Path]
) -> None:
    config = tiny_config(folders, protocol="transductive", steps=2)
    with pytest.raises(Killed):
        fit(config, tmp_path / "run", callbacks=[At(2, die)])
    (tmp_path / "run" / "stage1" / "model").mkdir()
    for name in ("config.yaml", "checkpoint.json"):  # the weights are missing
        (tmp_path / "run" / "stage1" / "model" / name).write_bytes(
            (finished() / "model" / name).read_bytes()
        )
    with pytest.raises(
        ValueError,
        match=(
            r"stage1.model is not a whole checkpoint: \['model.safetensors'\] missing; remove .*"
            r" --resume auto"
        ),
    ):
        fit(config, tmp_path / "run", resume="auto")


def test_self_training_needs_all_steps_of_the_first_stage(folders: Path, tmp_path: Path) -> None:
    def stop(task: Any) -> None:
        task.trainer.should_stop = True

    config = tiny_config(folders, protocol="transductive")
    with pytest.raises(
        ValueError, match=r"needs all 4 steps of stage 1 in .*stage1; go on with --resume auto"
    ):
        fit(config, tmp_path / "run", callbacks=[At(2, stop)])
    assert not (tmp_path / "run" / "model").exists()


def test_a_second_ctrl_c_ends_a_run_at_once(folders: Path, tmp_path: Path) -> None:
    def press_twice(task: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(
            tiny_config(folders, DROPOUT),
            tmp_path / "run",
            callbacks=[At(3, press_twice, before=True)],
        )
    assert names_of(tmp_path / "run") == ["step-00000002.ckpt"]


# --- states on the disk


def test_the_last_two_states_are_kept(folders: Path, tmp_path: Path) -> None:
    fit(tiny_config(folders, steps=7), tmp_path / "run")
    assert names_of(tmp_path / "run") == ["step-00000004.ckpt", "step-00000006.ckpt"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [cut, flip_one_bit, empty])
def test_damage_is_seen(
    tmp_path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    for step in (2, 4):
        StateFiles().save_checkpoint({"weights": torch.randn(1000)}, state_path(tmp_path, step))
    harm(state_path(tmp_path, 4))
    assert newest_state(tmp_path) == state_path(tmp_path, 2)
    assert re.search(r"step-00000004\.ckpt is damaged \(.+\) and is passed over", caplog.text)


def test_a_run_falls_back_to_the_state_before(folders: Path, tmp_path: Path) -> None:
    config = tiny_config(folders, DROPOUT, steps=6)
    fit(config, tmp_path / "whole")
    with pytest.raises(Killed):
        fit(config, tmp_path / "part", callbacks=[At(5, die)])
    cut(list_states(tmp_path / "part" / "state")[0])
    fit(config, tmp_path / "part", resume="always")
    assert [row["step"] for row in read_metrics(tmp_path / "part" / "metrics.csv")] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    assert largest_gap(weights(tmp_path / "whole"), weights(tmp_path / "part")) == 0


def test_nothing_but_damaged_states_is_an_error(tmp_path: Path) -> None:
    state_path(tmp_path, 3).write_bytes(b"no state")
    with pytest.raises(ValueError, match=r"every state in .* is damaged"):
        newest_state(tmp_path)
    assert newest_state(tmp_path / "nowhere") is None


def test_a_full_disk_ends_the_run_and_keeps_the_state(
    folders: Path, tmp_path: Path, whole: dict[str, torch.Tensor]
) -> None:
    """A limit on file sizes fails a write in its middle, as a full disk does."""
    config = tiny_config(folders, DROPOUT)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(task: Any) -> None:
        size = list_states(tmp_path / "run" / "state")[0].stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))

    try:
        with pytest.raises(
            OSError,
            match=r"step-00000004.ckpt \(File too large\); .*step-00000002.ckpt is kept: make room",
        ) as found:
            fit(config, tmp_path / "run", callbacks=[At(3, fill)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(found.value)
    assert names_of(tmp_path / "run") == ["step-00000002.ckpt"]
    fit(config, tmp_path / "run", resume="auto")
    assert largest_gap(whole, weights(tmp_path / "run")) == 0


def test_a_kill_while_writing_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = StateFiles()
    files.save_checkpoint({"global_step": 2}, state_path(tmp_path, 2))

    def killed(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-9])
        raise Killed

    monkeypatch.setattr(atomic, "_flush", killed)
    with pytest.raises(Killed):
        files.save_checkpoint({"global_step": 4}, state_path(tmp_path, 4))
    monkeypatch.undo()
    assert newest_state(tmp_path) == state_path(tmp_path, 2)
    assert files.load_checkpoint(state_path(tmp_path, 2)) == {"global_step": 2}
    files.save_checkpoint({"global_step": 6}, state_path(tmp_path, 6))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000002.ckpt",
        "step-00000006.ckpt",
    ]


def test_a_state_is_flushed_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    flush, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("flush"), flush(handle))[1])
    monkeypatch.setattr(
        os, "replace", lambda old, new: (order.append("rename"), rename(old, new))[1]
    )
    StateFiles().save_checkpoint({"a": torch.zeros(2)}, state_path(tmp_path, 1))
    assert order == ["flush", "rename", "flush"]
    assert find_damage(state_path(tmp_path, 1)) is None


def test_nothing_in_a_state_is_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "trap"),))

    torch.save({"x": Trap()}, state_path(tmp_path, 1))
    with pytest.raises(Exception, match="never executed"):
        StateFiles().load_checkpoint(state_path(tmp_path, 1), weights_only=False)
    assert not (tmp_path / "trap").exists()


# --- losses that are not finite


def batch_paths(folders: Path, config: Config, step: int) -> list[str]:
    """The images of a step, worked out from the order that the data set gives."""
    from cascade_clip.data.sampling import StepSampler

    order = iter(StepSampler(8, config.train.batch_size, config.train.seed))
    indices = [
        index for _, index in (next(order) for _ in range((step + 1) * config.train.batch_size))
    ][-config.train.batch_size :]
    return [str(folders / "images" / f"{index}.png") for index in indices]


def fails(folders: Path, out: Path, action: Callable[[Any], object], step: int = 2) -> str:
    config = tiny_config(folders, DROPOUT)
    with pytest.raises(FloatingPointError) as found:
        fit(config, out, callbacks=[At(step, action, before=True)])
    assert not (out / "model").exists()
    message = str(found.value)
    assert "\n" not in message
    assert message.endswith(
        f"images of the batch: {', '.join(batch_paths(folders, config, step))}; states saved before"
        " are kept"
    )
    return message


def test_a_bad_parameter_is_named(folders: Path, tmp_path: Path) -> None:
    def poison(task: Any) -> None:
        task.model.decoders[1].layers[0].expand.weight.data[0, 0] = float("nan")

    message = fails(folders, tmp_path / "run", poison)
    assert message.startswith(
        "the loss is nan at step 2; the first value that is not finite is in the parameter"
        " decoders.1.layers.0.expand.weight; images"
    )
    assert names_of(tmp_path / "run") == ["step-00000002.ckpt"]


def test_a_bad_gradient_is_named(folders: Path, tmp_path: Path) -> None:
    def poison(task: Any) -> None:
        task.model.queries[0].bias.register_hook(lambda gradient: gradient * float("inf"))

    message = fails(folders, tmp_path / "run", poison)
    assert message.startswith(
        "a gradient is not finite at step 2; the first value that is not finite is in the gradient"
        " of queries.0.bias; images of the batch"
    )


def test_a_loss_that_is_bad_by_itself(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FloatingPointError,
        match=r"the loss is inf at step 0; .* is in (the gradient of|the loss itself)",
    ):
        fit(tiny_config(folders, loss={"focal": 1e39}), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_the_first_layer_and_the_image_are_named() -> None:
    model: Segmenter = build_tiny().model.train()
    text = torch.randn(3, 32)
    images = torch.randn(3, 3, 64, 64)

    def forward(batch: torch.Tensor) -> torch.Tensor:
        return model(batch, text)

    images[1, 0, 5, 5] = float("inf")
    assert find_cause(model, forward, images) == ("the images", (1,))
    images[1] = 3e38  # finite, but the sums of the first layer are not
    assert find_cause(model, forward, images) == (
        "the output of the layer backbone.tower.visual.conv1",
        (1,),
    )
    images[1] = 0.0
    with torch.no_grad():
        model.decoders[2].layers[0].expand.weight.fill_(3e38)
    assert find_cause(model, forward, images) == (
        "the output of the layer decoders.2.layers.0.expand",
        (0, 1, 2),
    )
    assert not any(module._forward_hooks for module in model.modules())


def test_the_guilty_image_is_named_among_the_others() -> None:
    cause = Cause("the images", (1,))
    assert (
        describe(cause, math.nan, 7, [Path("a.png"), Path("b.png")])
        == "the loss is nan at step 7; the first value that is not finite is in the images; it"
        " shows in b.png; images of the batch: a.png, b.png"
    )
