"""A run folder as version 0.1.0 wrote it, before the modules moved: it goes on, loads, and is
scored as then.

`fixtures/world` is a folder of four images; there `cascade-clip train settings.yaml --out run`
was typed. The folder `run` holds the state after step 2 of 4 and what came out at the end; pages
and logs were removed, and what names the machine was replaced.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from observe import FIXTURES, call
from PIL import Image
from safetensors.torch import load_file

import cascade_clip

TOLERANCE = 1e-4
"""Largest difference of a weight. One thread and two differ by 6e-8 after the two steps; a step
moves weights by up to 0.005, and a run that has lost its moments differs by more than ten times
the tolerance (the last test)."""
ZERO_GRADIENT = r"attention\.key\.bias"
"""The true gradient of these is 0; AdamW turns its rounding noise, another one on every processor,
into whole steps."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fixture as the working directory: every path in the run's settings is relative
    to it."""
    shutil.copytree(FIXTURES / "world", tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"


@pytest.fixture
def interrupted(world: Path) -> Path:
    """The run as it lay there after step 2."""
    shutil.rmtree(world / "run" / "model")
    (world / "run" / "report.json").unlink()
    metrics = world / "run" / "metrics.csv"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:3]))
    return world / "run"


def largest_gap(run: Path) -> float:
    """The largest difference between the weights of a run and the frozen ones of the uninterrupted
    run."""
    frozen, now = (
        load_file(folder / "model" / "model.safetensors")
        for folder in (FIXTURES / "world" / "run", run)
    )
    assert frozen.keys() == now.keys()
    return max(
        float((frozen[name] - now[name]).abs().max())
        for name in frozen
        if not re.search(ZERO_GRADIENT, name)
    )


def steps(run: Path) -> list[str]:
    return [line.partition(",")[0] for line in (run / "metrics.csv").read_text().splitlines()[1:]]


def test_an_old_state_goes_on_to_the_same_weights(interrupted: Path) -> None:
    code, _, errors = call("train", "settings.yaml", "--out", "run", "--resume", "auto")
    assert code == 0, errors
    assert steps(interrupted) == ["1", "2", "3", "4"]
    assert (
        len(json.loads((interrupted / "run.json").read_text())["starts"]) == 2
    )  # it went on, and did not start again
    assert largest_gap(interrupted) < TOLERANCE


def test_a_finished_old_run_segments_as_then(world: Path) -> None:
    found = (
        cascade_clip.load(world / "run", device="cpu").segment(world / "images" / "0.png").labels
    )
    frozen = np.asarray(Image.open(FIXTURES / "world" / "expected_index.png"))
    assert found.shape == frozen.shape
    assert (found != frozen).sum() <= 2  # rounding may decide at the border of two classes


def test_verify_and_evaluate_accept_an_old_run(world: Path) -> None:
    assert call("verify", "run", "--device", "cpu")[0] == 0
    words = (
        "--images",
        "images",
        "--masks",
        "masks",
        "--classes",
        "classes.txt",
        "--unseen",
        "sky",
        "--text-embeddings",
        "text.npy",
    )
    code, _, errors = call("evaluate", "run", *words, "--device", "cpu", "--out", "new.json")
    assert code == 0, errors
    old, new = (
        json.loads((world / file).read_text())["summary"]
        for file in ("run/report.json", "new.json")
    )
    assert new == pytest.approx(old, abs=1e-3)


def test_a_state_without_its_moments_is_noticed(interrupted: Path) -> None:
    """What the tolerance is worth: a run that has lost only the optimizer's moments ends with other
    weights."""
    path = interrupted / "state" / "step-00000002.ckpt"
    state = torch.load(path, weights_only=True)
    for moments in state["optimizer_states"][0]["state"].values():
        moments["exp_avg"].zero_()
    torch.save(state, path)
    code, _, errors = call("train", "settings.yaml", "--out", "run", "--resume", "auto")
    assert code == 0, errors
    gap = largest_gap(interrupted)
    assert gap > 10 * TOLERANCE
