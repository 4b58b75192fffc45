"""Training end to end on tiny data: batch splits, ranks, resume, protocols, and what must not
leak."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cascade_clip.checkpoints.checkpoint import load_checkpoint, read_record, save_checkpoint
from cascade_clip.config import Config
from cascade_clip.config.serialization import config_to_dict
from cascade_clip.data.registry import build_dataset
from cascade_clip.encoders.text import TextEncoder
from cascade_clip.inference.loading import load_predictor
from cascade_clip.training.fit import fit, prepare
from cascade_clip.training.task import SegmentationTask
from paths import TESTS
from tiny_models import build_tiny
from tiny_runs import (
    DROPOUT,
    NAMES,
    ZERO_GRADIENT,
    largest_gap,
    tiny_config,
    weights,
)


def test_a_run_writes_a_checkpoint_and_a_log(folders: Path, finished: Callable[..., Path]) -> None:
    config, run = tiny_config(folders), finished()
    found = load_checkpoint(run / "model")
    assert found.vocabulary.names == NAMES
    assert found.vocabulary.unseen == ("sky",)
    assert found.config == config
    assert found.record["protocol"] == "inductive"
    assert found.record["steps"] == 4
    log = (run / "metrics.csv").read_text().splitlines()
    assert {"loss", "focal", "dice", "learning_rate"} <= set(log[0].split(","))
    assert len(log) == 1 + 4
    start = prepare(config, build_dataset(config.data)).model
    moved = {
        name
        for name, value in found.model.state_dict().items()
        if not torch.equal(value, start.state_dict()[name])
    }
    assert moved == {
        name for name, parameter in start.named_parameters() if parameter.requires_grad
    }


def gradients(
    config: Config, images: torch.Tensor, labels: torch.Tensor
) -> tuple[dict[str, torch.Tensor], float]:
    task = SegmentationTask.of(prepare(config, build_dataset(config.data)))
    result = task.accumulate_gradients(images, labels)
    return {
        name: parameter.grad
        for name, parameter in task.model.named_parameters()
        if parameter.grad is not None
    }, float(result.total)


@pytest.mark.parametrize("protocol", ["inductive", "transductive", "supervised"])
def test_micro_batches_give_the_gradient_of_the_batch(folders: Path, protocol: str) -> None:
    """Images weigh by their present classes, so a mean over micro-batches would be another
    gradient."""
    torch.manual_seed(3)
    images, labels = torch.randn(4, 3, 64, 64), torch.randint(-1, 4, (4, 64, 64))
    labels[0] = -1  # nothing present
    labels[1] = 2  # one class present
    whole, loss = gradients(tiny_config(folders, protocol=protocol), images, labels)
    for share in (1, 2):
        split, split_loss = gradients(
            tiny_config(folders, protocol=protocol, micro_batch=share), images, labels
        )
        assert split_loss == pytest.approx(loss, rel=1e-5)
        for name, gradient in whole.items():
            if name.endswith("attention.key.bias") and "mask_attention" not in name:
                continue  # its true gradient is 0: what is there is rounding
            torch.testing.assert_close(split[name], gradient, rtol=1e-4, atol=1e-6)


def test_two_processes_train_as_one(
    folders: Path, tmp_path: Path, finished: Callable[..., Path]
) -> None:
    """Two ranks with half of the batch each, image by image, through both stages of a transductive
    run in one call.

    Same losses and weights to 1e-5, the normaliser averaged over ranks included.
    """
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\nfrom tiny_runs"
        " import tiny_config; from cascade_clip.training.fit import"
        " fit\nfit(tiny_config(Path(sys.argv[2]), protocol='transductive', devices=2,"
        " micro_batch=1), Path(sys.argv[3]))\n"
    )
    (tmp_path / "run.py").write_text(script)
    command = [
        sys.executable,
        tmp_path / "run.py",
        str(TESTS),
        str(folders),
        str(tmp_path / "two"),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = finished(protocol="transductive")
    check_two_as_one(one, tmp_path / "two")
    check_two_as_one(one / "stage1", tmp_path / "two" / "stage1")


def check_two_as_one(one: Path, two: Path) -> None:
    assert largest_gap(weights(one), weights(two), ZERO_GRADIENT) < 1e-5
    logs = [
        np.genfromtxt(folder / "metrics.csv", delimiter=",", names=True) for folder in (one, two)
    ]
    assert np.allclose(logs[0]["loss"], logs[1]["loss"], rtol=1e-5)
    assert np.allclose(logs[0]["masks"], 2 * logs[1]["masks"])  # M is the mean over ranks


@pytest.mark.slow
def test_torchrun_trains_as_one(
    folders: Path, tmp_path: Path, finished: Callable[..., Path]
) -> None:
    """The command under torchrun with two processes, which stand for two nodes or two devices."""
    config = tiny_config(folders, devices=2)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config_to_dict(config)))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "cascade_clip",
        "train",
    ]
    words = [str(tmp_path / "run.yaml"), "--out", str(tmp_path / "two")]
    done = subprocess.run(
        [*command, *words],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("a step of 4 images = 1 nodes x 2 devices x 1 passes x 2 images") == 1
    check_two_as_one(finished(), tmp_path / "two")


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_run_is_the_uninterrupted_run(
    folders: Path,
    tmp_path: Path,
    finished: Callable[..., Path],
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit for bit that without workers, with dropout and whatever the number of workers."""
    config = tiny_config(folders, DROPOUT)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=workers))

    class Killed(Exception):
        pass

    step = SegmentationTask.training_step

    def dies_at_step_3(self: SegmentationTask, batch: Any, index: int) -> None:
        if self.global_step == 3:
            raise Killed
        step(self, batch, index)

    monkeypatch.setattr(SegmentationTask, "training_step", dies_at_step_3)
    with pytest.raises(Killed):
        fit(config, tmp_path / "part")
    monkeypatch.setattr(SegmentationTask, "training_step", step)
    fit(config, tmp_path / "part", resume="always")
    assert largest_gap(weights(finished(DROPOUT)), weights(tmp_path / "part")) == 0


def test_unseen_labels_leave_no_trace(folders: Path, tmp_path: Path) -> None:
    """Scrambled unseen labels give the same bits; cropping does not look at them either.

    Inductive: dog and sky become each other or ignored at random. Transductive: they become each
    other.
    """
    draw = np.random.default_rng(0)
    for kind, choices in (("inductive", (1, 3, 255)), ("transductive", (1, 3))):
        (tmp_path / kind).mkdir()
        for path in (folders / "masks").iterdir():
            mask = np.array(Image.open(path))
            scrambled = draw.choice(np.array(choices, dtype=np.uint8), mask.shape)
            Image.fromarray(
                np.where((mask == 1) | (mask == 3), scrambled, mask).astype(np.uint8)
            ).save(tmp_path / kind / path.name)
        # crops are drawn again
        train = {
            "protocol": kind,
            "steps": 2,
            "augment": {"scale": [128, 64], "crop": 48, "largest_share": 0.3},
        }
        first = tiny_config(folders, **train)
        first = dataclasses.replace(first, data=dataclasses.replace(first.data, unseen="dog, sky"))
        second = dataclasses.replace(
            first, data=dataclasses.replace(first.data, masks=str(tmp_path / kind))
        )
        fit(first, tmp_path / f"{kind}-first")
        fit(second, tmp_path / f"{kind}-second")
        assert (
            largest_gap(weights(tmp_path / f"{kind}-first"), weights(tmp_path / f"{kind}-second"))
            == 0
        )


def test_transductive_runs_both_stages(finished: Callable[..., Path]) -> None:
    run = finished(protocol="transductive")
    first, second = load_checkpoint(run / "stage1" / "model"), load_checkpoint(run / "model")
    assert first.record["protocol"] == "inductive"
    assert first.config.train.schedule_steps == 8  # the half of the full schedule
    assert second.record["protocol"] == "transductive"
    assert second.config.train.init_from == str(run / "stage1" / "model")


def test_every_step_has_a_seed_of_its_own(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    loss = SegmentationTask.loss
    monkeypatch.setattr(
        SegmentationTask,
        "loss",
        lambda self, *batch: (seeds.append(torch.initial_seed()), loss(self, *batch))[1],
    )
    fit(tiny_config(folders), tmp_path / "run")
    assert len(set(seeds)) == 4


def test_a_run_folder_is_not_overwritten(folders: Path, finished: Callable[..., Path]) -> None:
    run = finished()
    with pytest.raises(ValueError, match="holds a run already"):
        fit(tiny_config(folders), run)
    with pytest.raises(ValueError, match=r"other settings \(train.steps\); choose another"):
        fit(tiny_config(folders, steps=2, device="auto"), run, resume="auto")
    # another device is no other run
    assert fit(tiny_config(folders, device="auto"), run, resume="auto").model


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_one_line(folders: Path, tmp_path: Path, workers: int) -> None:
    import shutil

    shutil.copytree(folders, tmp_path / "data")
    image = tmp_path / "data" / "images" / "3.png"
    image.write_bytes(image.read_bytes()[:300])
    config = tiny_config(tmp_path / "data")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=workers))
    with pytest.raises(ValueError, match=r"3\.png") as found:
        fit(config, tmp_path / "run")
    assert "\n" not in str(found.value)


def test_settings_are_checked_before_anything_runs(folders: Path, tmp_path: Path) -> None:
    config = tiny_config(folders, protocol="transductive")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, unseen=""))
    with pytest.raises(ValueError, match="needs unseen classes"):
        fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_embeddings_that_replace_the_text_tower_are_kept(folders: Path, tmp_path: Path) -> None:
    """A model trained on given rows is asked with the same rows; other words go through the text
    tower."""
    rows = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    np.save(tmp_path / "text.npy", rows)
    config = tiny_config(folders, steps=1)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, text_embeddings=str(tmp_path / "text.npy"))
    )
    fit(config, tmp_path / "run")
    predictor = load_predictor(tmp_path / "run", device="cpu")
    assert np.array_equal(predictor.bind(["sky", "cat"]).text.numpy(), rows[[3, 0]])
    assert not np.array_equal(predictor.bind(["sky", "zebra"]).text.numpy()[0], rows[3])


def test_a_start_that_carries_its_clip_brings_its_text_tower(folders: Path, tmp_path: Path) -> None:
    """Class names are embedded by the CLIP that the start stands on, not by the one that the
    settings name."""
    torch.manual_seed(1)
    first = build_tiny()
    assert first.text_encoder is not None
    with torch.no_grad():
        first.text_encoder.tower.token_embedding.weight.add_(torch.randn(49408, 32))
    encoder = TextEncoder(first.text_encoder.tower, first.text_encoder.tokenizer)
    save_checkpoint(tmp_path / "start", dataclasses.replace(first, text_encoder=encoder))
    config = tiny_config(folders, steps=1, init_from=str(tmp_path / "start"))
    prepared = prepare(config, build_dataset(config.data))
    expected = load_checkpoint(tmp_path / "start").text_encoder
    assert expected is not None and prepared.text is not None
    assert torch.equal(
        prepared.text, expected.embed([(name,) for name in NAMES], ("a photo of a {}",))
    )


def test_full_checkpoints_need_no_other_file(folders: Path, tmp_path: Path) -> None:
    fit(tiny_config(folders, steps=1), tmp_path / "run", full=True)
    assert read_record(tmp_path / "run" / "model")["clip_stored"]


def test_a_run_that_was_refused_leaves_the_folder_free(folders: Path, tmp_path: Path) -> None:
    """Text embeddings that are not there are found after the folder was claimed; the corrected
    command starts."""
    config = tiny_config(folders, steps=1)
    wrong = dataclasses.replace(
        config, data=dataclasses.replace(config.data, text_embeddings=str(tmp_path / "nowhere.npy"))
    )
    with pytest.raises(FileNotFoundError, match="nowhere"):
        fit(wrong, tmp_path / "run")
    assert fit(config, tmp_path / "run").record["steps"] == 1
    with pytest.raises(ValueError, match="holds a run already"):
        fit(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"first_batch_size": -3, "protocol": "transductive"},
            r"train\.first_batch_size must be 0",
        ),
        ({"first_batch_size": 2}, "first_batch_size is for runs that make"),
        (
            {"first_batch_size": 2, "protocol": "transductive", "micro_batch": 4},
            r"does not divide the 2 images of train\.first_batch_size",
        ),
        (
            {"first_batch_size": 3, "protocol": "transductive", "devices": 2},
            r"train\.first_batch_size 3 cannot be shared",
        ),
        ({"seed": -1}, r"train\.seed must lie in"),
        ({"seed": 2**32}, r"train\.seed must lie in"),
        ({"augment": {"flip": 7}}, "probability"),
        ({"augment": {"scale": [0, 0]}}, "two sides"),
        ({"augment": {"largest_share": -1}}, "largest_share"),
        ({"loss": {"gamma": -1}}, "gamma"),
        ({"loss": {"alpha": 9}}, "alpha"),
        ({"loss": {"focal": float("nan")}}, "focal"),
        ({"optimizer": {"warmup_ratio": -3}}, "warmup_ratio"),
        ({"optimizer": {"final_rate": -1}}, "final_rate"),
        ({"optimizer": {"power": -1}}, "power"),
        ({"optimizer": {"weight_decay": -1}}, "weight_decay"),
        ({"optimizer": {"learning_rate": float("inf")}}, "learning_rate"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    folders: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(folders, **change)


def test_the_first_half_has_its_own_batch(folders: Path, tmp_path: Path) -> None:
    fit(
        tiny_config(folders, protocol="transductive", steps=2, first_batch_size=2), tmp_path / "run"
    )
    assert load_checkpoint(tmp_path / "run" / "stage1" / "model").config.train.batch_size == 2
    assert load_checkpoint(tmp_path / "run" / "model").config.train.batch_size == 4
