"""Number formats, memory savers and speed settings: what stays float32, what must not change a
gradient, and who holds state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from cascade_clip.config import Config
from cascade_clip.data.registry import build_dataset
from cascade_clip.encoders.towers import OpenClipTower
from cascade_clip.training.fit import fit, prepare
from cascade_clip.training.resume import list_states
from cascade_clip.training.task import SegmentationTask
from tiny_runs import DROPOUT, largest_gap, tiny_config, weights, write_folders

SHALLOW = {"prompts": {"kind": "none"}}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("data"))


def build_task(config: Config) -> SegmentationTask:
    checkpoint = prepare(config, build_dataset(config.data))
    assert checkpoint.text is not None
    return SegmentationTask(
        checkpoint.model.train(),
        checkpoint.text,
        torch.tensor(checkpoint.vocabulary.seen_mask),
        config,
    )


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(4, 3, 64, 64, generator=generator), torch.randint(
        -1, 4, (4, 64, 64), generator=generator
    )


def gradients(task: SegmentationTask) -> dict[str, Tensor]:
    torch.manual_seed(0)
    task.accumulate_gradients(*batch())
    return {
        name: parameter.grad
        for name, parameter in task.model.named_parameters()
        if parameter.grad is not None
    }


class Watch(Callback):
    """Collects what a run does before each optimiser step; with `spoil`, makes a gradient infinite
    there."""

    def __init__(self, scale: float = 0.0, *, spoil: bool = False) -> None:
        self.scale, self.spoil = scale, spoil
        self.gradients: list[dict[str, Tensor]] = []
        self.state: dict[Any, Any] = {}

    def on_train_start(self, trainer: Any, task: Any) -> None:
        if self.scale:
            scaler = trainer.precision_plugin.scaler
            scaler.load_state_dict({**scaler.state_dict(), "scale": self.scale})
        if self.spoil:
            task.model.queries[0].bias.register_hook(lambda gradient: gradient * float("inf"))
        self.start = {name: value.clone() for name, value in task.model.state_dict().items()}

    def on_before_optimizer_step(self, trainer: Any, task: Any, optimizer: Any) -> None:
        found = {
            name: parameter.grad.clone()
            for name, parameter in task.model.named_parameters()
            if parameter.grad is not None
        }
        self.gradients.append(found)

    def on_train_end(self, trainer: Any, task: Any) -> None:
        self.state = trainer.optimizers[0].state
        self.trained = {parameter for parameter in task.parameters() if parameter.requires_grad}


# --- what stays float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_matrix_products_are_short(folders: Path, dtype: torch.dtype) -> None:
    """Residual stream, norms, features, similarities, loss and gradients are float32 under
    autocast; linear maps are not."""
    task = build_task(tiny_config(folders))
    seen: dict[str, set[torch.dtype]] = {}
    for name, module in task.model.named_modules():
        if isinstance(module, (nn.LayerNorm, nn.Linear)):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: seen.setdefault(name, set()).add(
                    output.dtype
                )
            )
    images, labels = batch()
    with torch.autocast("cpu", dtype=dtype):
        features = task.model.features(images)
        logits = task.model.decode(features, task.queries).total
        result = task.loss(images, labels)
        result.total.backward()
    assert {value.dtype for value in (*features.patches.values(), features.class_token)} == {
        torch.float32
    }
    assert logits.dtype == torch.float32
    assert {value.dtype for value in result} == {torch.float32}
    norms = {name: found for name, found in seen.items() if "norm" in name or "ln_" in name}
    assert len(norms) > 30
    assert {name for name, found in norms.items() if found != {torch.float32}} == set()
    assert seen["decoders.0.layers.0.expand"] == {dtype}
    assert {parameter.dtype for parameter in task.model.parameters()} == {torch.float32}
    assert {
        parameter.grad.dtype for parameter in task.model.parameters() if parameter.grad is not None
    } == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_short_formats_train(folders: Path, tmp_path: Path, precision: str) -> None:
    """The gradient that reaches the optimiser is that of float32 up to rounding, unscaled; state
    and weights are float32."""
    exact, short = Watch(), Watch()
    fit(tiny_config(folders, steps=1, precision="fp32"), tmp_path / "fp32", callbacks=[exact])
    fit(tiny_config(folders, steps=1, precision=precision), tmp_path / precision, callbacks=[short])
    assert exact.gradients[0].keys() == short.gradients[0].keys()
    wanted = torch.cat([value.flatten() for value in exact.gradients[0].values()])
    found = torch.cat([value.flatten() for value in short.gradients[0].values()])
    assert float((found - wanted).norm() / wanted.norm()) < (0.05 if precision == "bf16" else 0.01)
    assert not torch.equal(found, wanted)
    assert {value.dtype for state in short.state.values() for value in state.values()} == {
        torch.float32
    }
    assert {value.dtype for value in weights(tmp_path / precision).values()} == {torch.float32}


# --- fp16 and its scaler


def test_fp16_skips_steps_that_overflow(
    folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cascade_clip")
    watch = Watch(scale=2.0**60)
    fit(tiny_config(folders, steps=2, precision="fp16"), tmp_path / "run", callbacks=[watch])
    assert largest_gap(watch.start, weights(tmp_path / "run")) == 0
    (state,) = list_states(tmp_path / "run" / "state")
    assert torch.load(state, weights_only=True)["MixedPrecision"]["scale"] == 2.0**58
    assert "step 1 is skipped: its fp16 gradients overflow at scale" in caplog.text


def test_fp16_stops_when_no_scale_helps(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FloatingPointError,
        match=r"a gradient is not finite at step 2; .* in the gradient of queries\.0\.bias",
    ):
        fit(
            tiny_config(folders, precision="fp16"),
            tmp_path / "run",
            callbacks=[Watch(scale=2.0, spoil=True)],
        )


def test_fp16_resumes_exactly(folders: Path, tmp_path: Path) -> None:
    config = tiny_config(folders, DROPOUT, precision="fp16")
    fit(config, tmp_path / "whole")

    class Dies(Callback):
        def on_train_batch_end(
            self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_index: int
        ) -> None:
            if trainer.global_step == 3:
                raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fit(config, tmp_path / "part", callbacks=[Dies()])
    fit(config, tmp_path / "part", resume="always")
    assert largest_gap(weights(tmp_path / "whole"), weights(tmp_path / "part")) == 0


# --- memory and speed


def count_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    run = OpenClipTower.run_block
    monkeypatch.setattr(
        OpenClipTower,
        "run_block",
        lambda self, block, tokens, *prompt: (calls.append(1), run(self, block, tokens, *prompt))[
            1
        ],
    )
    return calls


def test_checkpointed_gradients_are_the_same(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every one of the 12 blocks has prompts before it, so every one is computed twice; dropout
    draws the same masks."""
    plain = gradients(build_task(tiny_config(folders, DROPOUT)))
    calls = count_blocks(monkeypatch)
    saving = gradients(build_task(tiny_config(folders, DROPOUT, gradient_checkpointing=True)))
    assert len(calls) == 24
    assert plain.keys() == saving.keys()
    assert all(torch.equal(plain[name], saving[name]) for name in plain)


def test_a_frozen_encoder_is_not_computed_twice(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_blocks(monkeypatch)
    gradients(build_task(tiny_config(folders, SHALLOW, gradient_checkpointing=True)))
    assert len(calls) == 12


def test_what_is_frozen_is_out_of_graph_and_optimiser(folders: Path, tmp_path: Path) -> None:
    task = build_task(tiny_config(folders))
    result = task.loss(*batch())
    leaves, met, waiting = set(), set(), [result.total.grad_fn]
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        ahead = [
            parent for parent, _ in node.next_functions if parent is not None and parent not in met
        ]
        met.update(ahead)
        waiting += ahead
    assert leaves == {parameter for parameter in task.parameters() if parameter.requires_grad}
    assert not any(parameter.requires_grad for parameter in task.model.backbone.tower.parameters())
    watch = Watch()
    fit(tiny_config(folders, steps=1), tmp_path / "run", callbacks=[watch])
    assert watch.state.keys() == watch.trained


def test_fused_adamw_takes_the_same_steps(folders: Path, tmp_path: Path) -> None:
    assert (
        build_task(tiny_config(folders, fused=True)).configure_optimizers().defaults["fused"]
        is True
    )
    fit(tiny_config(folders, fused=True), tmp_path / "fused")
    fit(tiny_config(folders), tmp_path / "plain")
    assert (
        0
        < largest_gap(
            weights(tmp_path / "fused"), weights(tmp_path / "plain"), r"attention\.key\.bias"
        )
        < 1e-5
    )


def test_compile_is_a_setting(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function: (compiled.append(function), function)[1])
    build_task(tiny_config(folders))
    assert compiled == []
    task = build_task(tiny_config(folders, compile=True))
    assert compiled == [task.model.stage_masks]
    assert not any("_orig_mod" in name for name in task.state_dict())


@pytest.mark.slow
def test_compiled_training_is_training(folders: Path, tmp_path: Path) -> None:
    fit(tiny_config(folders, compile=True, steps=2), tmp_path / "compiled")
    fit(tiny_config(folders, steps=2), tmp_path / "plain")
    assert (
        largest_gap(
            weights(tmp_path / "compiled"), weights(tmp_path / "plain"), r"attention\.key\.bias"
        )
        < 1e-4
    )
