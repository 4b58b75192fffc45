"""How a step is shared by devices and nodes, which launcher is found, and self-training beyond the
paper."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from cascade_clip.config import TrainConfig, find_part
from cascade_clip.data.registry import build_dataset
from cascade_clip.errors import Interrupted
from cascade_clip.training.data_module import TrainingBatches
from cascade_clip.training.ema import EmaTeacher
from cascade_clip.training.engine import (
    build_trainer,
    stopping_at_once,
)
from cascade_clip.training.fit import describe_batch, fit, prepare
from cascade_clip.training.launch import check_launch, is_first_process
from cascade_clip.training.non_finite import Cause, describe, merge_causes
from cascade_clip.training.run_folder import Run
from cascade_clip.training.task import SegmentationTask
from tiny_runs import DROPOUT, largest_gap, tiny_config, weights


@pytest.fixture(autouse=True)
def first_rank_again() -> Iterator[None]:
    """Lightning keeps the rank of the last engine that was built for the whole process."""
    yield
    rank_zero_only.rank = 0


# --- devices and nodes


@pytest.mark.parametrize(
    ("batch", "devices", "nodes", "micro", "at_once", "passes"),
    [
        (16, 1, 1, 0, 16, 1),
        (16, 4, 1, 0, 4, 1),
        (16, 4, 1, 2, 2, 2),
        (32, 4, 2, 1, 1, 4),
        (16, 1, 1, 4, 4, 4),
    ],
)
def test_the_batch_is_fixed_and_its_split_is_derived(
    batch: int, devices: int, nodes: int, micro: int, at_once: int, passes: int
) -> None:
    train = TrainConfig(batch_size=batch, devices=devices, num_nodes=nodes, micro_batch=micro)
    assert (train.images_at_once, train.accumulation) == (at_once, passes)
    assert nodes * devices * passes * at_once == batch
    assert (
        describe_batch(train)
        == f"a step of {batch} images = {nodes} nodes x {devices} devices x {passes} passes x"
        f" {at_once} images"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 16, "devices": 3}, "16 cannot be shared by 3 devices; make it a multiple"),
        (
            {"batch_size": 16, "devices": 4, "num_nodes": 3},
            "16 cannot be shared by 4 devices on each of 3 nodes",
        ),
        (
            {"batch_size": 16, "devices": 2, "num_nodes": 2, "micro_batch": 3},
            "does not divide the 4 images",
        ),
        ({"num_nodes": 0}, "num_nodes must be at least 1"),
        ({"pseudo_threshold": 1.0}, "pseudo_threshold must lie"),
        ({"ema_teacher": 1.0}, "ema_teacher must lie"),
    ],
)
def test_splits_that_do_not_fit(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)


def test_launchers_are_found(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun and srun are told from a plain start; a run on two nodes of one device each is
    distributed."""
    two_nodes = Run(tiny_config(folders, num_nodes=2), tmp_path)
    monkeypatch.setenv("NODE_RANK", "1")
    trainer, _ = build_trainer(two_nodes, [])
    assert isinstance(trainer.strategy.cluster_environment, LightningEnvironment)
    assert (trainer.world_size, trainer.global_rank) == (2, 1)
    monkeypatch.delenv("NODE_RANK")
    srun = {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NAME": "train",
    }
    for name, value in {
        **srun,
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "1",
    }.items():
        monkeypatch.setenv(name, value)
    trainer, _ = build_trainer(two_nodes, [])
    environment = trainer.strategy.cluster_environment
    assert isinstance(environment, SLURMEnvironment)
    assert environment.auto_requeue is False
    assert (trainer.world_size, trainer.global_rank) == (2, 1)
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x",
        "RANK": "1",
        "LOCAL_RANK": "0",
        "GROUP_RANK": "1",
        "WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(name, value)
    trainer, _ = build_trainer(two_nodes, [])
    assert isinstance(trainer.strategy.cluster_environment, TorchElasticEnvironment)


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "RANK": "2"}, False),  # torchrun, second node
        ({"SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, False),  # srun, second node
        ({"NODE_RANK": "1"}, False),  # started by hand on the second node
        ({"LOCAL_RANK": "0", "RANK": "0"}, True),
    ],
)
def test_who_is_first(
    variables: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first


def test_paths_of_a_step_are_those_of_its_batch(folders: Path) -> None:
    """Each image has its index in its file name and is told apart by its pixels."""
    config = tiny_config(folders)
    dataset = build_dataset(config.data)
    drawn: list[str] = []
    sample = dataset.sample
    dataset.sample = lambda index: (drawn.append(dataset.pairs[index][0].name), sample(index))[1]  # type: ignore[attr-defined,method-assign]
    batches = iter(TrainingBatches(config, dataset, start=0).train_dataloader())
    for step in range(4):
        drawn.clear()
        next(batches)
        in_batch = list(drawn)
        assert len(in_batch) == 4
        assert [
            path.name for path in TrainingBatches(config, dataset, start=0).paths(step)
        ] == in_batch


# --- self-training beyond the paper

SEEN = torch.tensor([True, False, False])
# scores of the unseen: 0.5 and 0.269; 0.119 and 0.047
LOGITS = torch.tensor([[[[9.0, 9.0]], [[0.0, -2.0]], [[-1.0, -3.0]]]])


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.0, [0, 1, 1, -1]), (0.3, [0, 1, -1, -1]), (0.5, [0, 1, -1, -1]), (0.51, [0, -1, -1, -1])],
)
def test_pseudo_labels_below_the_threshold_are_ignored(
    threshold: float, expected: list[int]
) -> None:
    labels = torch.tensor([[[0, 2, 1, -1]]])  # seen, unseen, unseen, ignored
    logits = LOGITS.repeat_interleave(2, dim=-1)  # (1, 3, 1, 4), one patch a pixel
    assert (
        find_part("protocols", "transductive")(SEEN, threshold)
        .targets(labels, logits, 1)[0, 0]
        .tolist()
        == expected
    )


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(4.0))
        self.frozen = nn.Parameter(torch.tensor(1.0), requires_grad=False)
        self.dropout = nn.Dropout(0.9)

    def forward(self, images: Tensor, queries: Tensor) -> Tensor:
        return self.dropout(images * self.factor + self.frozen)


def test_the_teacher_is_a_moving_average() -> None:
    model = Scale().train()
    teacher = EmaTeacher(model, decay=0.75)
    with torch.no_grad():
        model.factor.fill_(8.0)
    teacher.update(model)  # 0.75 * 4 + 0.25 * 8 = 5
    teacher.update(model)  # 0.75 * 5 + 0.25 * 8 = 5.75
    with torch.no_grad():
        model.frozen.fill_(3.0)
    answer = teacher(model, torch.ones(100), torch.zeros(1))
    # no dropout; what is frozen is the model's own
    assert torch.equal(answer, torch.full((100,), 8.75))
    assert not answer.requires_grad
    assert model.training and model.factor.item() == 8.0
    assert {name: value.item() for name, value in teacher.state_dict().items()} == {"factor": 5.75}


def test_pseudo_labels_come_from_the_teacher(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(folders, protocol="transductive", ema_teacher=0.9)
    checkpoint = prepare(config, build_dataset(config.data))
    assert checkpoint.text is not None
    task = SegmentationTask(
        checkpoint.model.train(), checkpoint.text, torch.tensor([True, True, False, False]), config
    )
    assert task.teacher is not None
    teacher_says = torch.full((1, 4, 4, 4), -5.0)
    teacher_says[:, 3] = 5.0
    monkeypatch.setattr(task.teacher, "forward", lambda *inputs: teacher_says)
    targets: list[Tensor] = []
    rule = task.protocol.targets
    monkeypatch.setattr(
        task.protocol, "targets", lambda *inputs: (targets.append(rule(*inputs)), targets[-1])[1]
    )
    task.loss(torch.randn(1, 3, 64, 64), torch.full((1, 64, 64), 2))
    assert set(targets[0].unique().tolist()) == {3}


def test_options_beyond_the_paper_act_in_self_training_alone(folders: Path, tmp_path: Path) -> None:
    plain = tiny_config(folders, DROPOUT, protocol="transductive", steps=3)
    plain = dataclasses.replace(plain, data=dataclasses.replace(plain.data, unseen="grass, sky"))
    slow = dataclasses.replace(plain, train=dataclasses.replace(plain.train, ema_teacher=0.9))
    strict = dataclasses.replace(
        plain, train=dataclasses.replace(plain.train, pseudo_threshold=0.999)
    )
    for name, config in (("plain", plain), ("slow", slow), ("strict", strict)):
        fit(config, tmp_path / name)
    for name in ("slow", "strict"):
        assert (
            largest_gap(weights(tmp_path / "plain" / "stage1"), weights(tmp_path / name / "stage1"))
            == 0
        )
        assert largest_gap(weights(tmp_path / "plain"), weights(tmp_path / name)) > 0
    inductive = SegmentationTask(
        prepare(plain, build_dataset(plain.data)).model,
        torch.randn(4, 32),
        torch.tensor([True] * 4),
        tiny_config(folders, ema_teacher=0.9),
    )
    assert inductive.teacher is None


@pytest.mark.parametrize(
    ("started", "devices", "nodes", "fits"),
    [(2, 1, 1, False), (2, 2, 1, True), (4, 2, 2, True), (4, 4, 2, False)],
)
def test_a_launcher_must_start_what_the_settings_share(
    monkeypatch: pytest.MonkeyPatch, started: int, devices: int, nodes: int, fits: bool
) -> None:
    """Without the check each process would train alone into the same folder."""
    train = TrainConfig(devices=devices, num_nodes=nodes)
    check_launch(train)  # no launcher
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", str(started))
    if fits:
        check_launch(train)
    else:
        with pytest.raises(
            ValueError,
            match=(
                f"torchrun started {started} processes, but .* = {devices * nodes}; set --devices"
            ),
        ):
            check_launch(train)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_scheduler_may_stop_loading_and_evaluating(name: str) -> None:
    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(Interrupted) as stopped, stopping_at_once():
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(5)
    assert stopped.value.code == 75
    assert not issubclass(Interrupted, Exception)  # nothing on the way may take it for an error
    assert signal.getsignal(getattr(signal, name)) == before


def test_the_cause_of_a_step_is_that_of_the_rank_that_knows_it() -> None:
    """A rank whose own masks are right sees only the sum of the gradients."""
    ranks = [
        (Cause("the gradient of backbone.prompts.tokens", ()), [Path("a"), Path("b")]),
        (Cause("the images", (1,)), [Path("c"), Path("d")]),
    ]
    cause, files = merge_causes(ranks)
    assert cause == Cause("the images", (3,)) and files == [Path(name) for name in "abcd"]
    assert "it shows in d; images of the batch: a, b, c, d" in describe(cause, math.nan, 7, files)
    assert merge_causes(ranks[:1])[0].place.startswith("the gradient")
