"""Measurements on a GPU: inference, sliding windows and a training step, also compiled.

Letters: B images, C classes, H x W pixels.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from cascade_clip.config import Config, InferenceConfig, Precision
from cascade_clip.errors import SettingError
from cascade_clip.losses import mask_loss
from cascade_clip.models import Segmenter, build_segmenter
from cascade_clip.ops import autocast_type, first_best
from cascade_clip.research.benchmark.machine import Measurement
from cascade_clip.research.benchmark.work import (
    Size,
    Work,
    blocky_labels,
    build_predictor,
    count_flops,
    model_config,
)

CHUNK = 32


@dataclass(frozen=True)
class GpuPlan:
    """What is measured; the defaults are the published model's."""

    device: Literal["cuda", "cpu"] = "cuda"
    size: Size = "full"
    batches: tuple[int, ...] = (1, 8, 32)
    classes: tuple[int, ...] = (20, 171)
    train_batch: int = 16
    train_classes: int = 156
    sliding: tuple[int, int] = (1024, 2048)
    compiled: bool = True
    seconds: float = 5.0


def measure_gpu(plan: GpuPlan, progress: Callable[[str], None]) -> list[Measurement]:
    """All measurements of a plan; models are built once.

    Raises:
        ValueError: there is no such device.
    """
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise SettingError("benchmark gpu needs a CUDA device, and torch finds none here")
    torch.manual_seed(0)
    side = 8192 if plan.device == "cuda" else 256
    left = torch.randn(side, side, device=plan.device, dtype=torch.bfloat16)
    peak = 2 * side**3 / _time(plan, lambda: left @ left)[0]  # operations per second
    note = "the machine's own peak, 100 % below"
    found = [Measurement("bf16 matrix products", peak / 1e12, "TFLOP/s", note)]
    model = build_segmenter(model_config(plan.size)).to(plan.device)
    for measured in (
        *_inference(plan, model.eval(), peak),
        *_sliding(plan, model.eval()),
        *_training(plan, model.train(), peak),
    ):
        progress(f"{measured.name}: {measured.value:.1f} {measured.unit}, {measured.note}")
        found.append(measured)
    return found


def _modes(plan: GpuPlan) -> tuple[tuple[Precision, bool], ...]:
    plain: tuple[tuple[Precision, bool], ...] = (("fp32", False), ("bf16", False))
    return (*plain, ("bf16", True)) if plan.compiled else plain


def _inference(plan: GpuPlan, model: Segmenter, peak: float) -> Iterator[Measurement]:
    """Images per second from normalised batches to labels at full size."""
    side = Work("inference", size=plan.size).window
    cases = itertools.product(plan.classes, plan.batches, _modes(plan))
    for classes, batch, (precision, compiled) in cases:
        images = torch.randn(batch, 3, side, side, device=plan.device)
        text = normalize(torch.randn(classes, model.joint_width, device=plan.device), dim=-1)
        network: Any = torch.compile(model.forward) if compiled else model.forward

        def label(network: Any = network, images: Tensor = images, text: Tensor = text) -> Tensor:
            return labels_of(network(images, text), side)

        with torch.inference_mode(), _autocast(plan, precision):
            seconds, memory = _time(plan, label)
        work = Work("inference", classes=classes, height=side, width=side, size=plan.size)
        share = count_flops(work) * batch / seconds / peak
        name = f"inference {side}, batch {batch}, {classes} classes, {_mode(precision, compiled)}"
        yield Measurement(name, batch / seconds, "images/s", _note(share, memory))


def labels_of(logits: Tensor, side: int) -> Tensor:
    """Labels (B, side, side) of mask logits (B, C, h, w), by a maximum over chunks of classes."""
    best = logits.new_full((), -1.0)
    labels = torch.zeros((), dtype=torch.int64, device=logits.device)
    size = (side, side)
    for start in range(0, logits.shape[1], CHUNK):
        part = logits[:, start : start + CHUNK].float()
        # (B, c, side, side)
        scores = interpolate(part, size=size, mode="bilinear", align_corners=False).sigmoid_()
        high, index = first_best(scores.transpose(0, 1))  # (B, side, side)
        labels = torch.where(high > best, index + start, labels)
        best = torch.maximum(high, best)
    return labels


def _sliding(plan: GpuPlan, model: Segmenter) -> Iterator[Measurement]:
    """Seconds for one large image through windows, eight at a time."""
    work = Work("inference", size=plan.size)
    height, width = plan.sliding
    text = normalize(torch.randn(plan.classes[-1], model.joint_width), dim=-1)
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        sizes: Any = {"window": work.window, "stride": work.stride, "window_batch": 8}
        settings = InferenceConfig(**sizes, precision=precision)
        predictor = build_predictor(model, text, settings, plan.device)
        bound, image = predictor.bind(text=text), torch.randn(3, height, width, device=plan.device)
        label = functools.partial(predictor.label_map_of_input, image, bound)
        seconds, memory = _time(plan, label)
        name = f"sliding {height} x {width}, {len(text)} classes, {precision}"
        yield Measurement(name, 1 / seconds, "images/s", _note(None, memory))


def _training(plan: GpuPlan, model: Segmenter, peak: float) -> Iterator[Measurement]:
    """Optimiser steps per second without data loading."""
    side = Work("train", size=plan.size).window
    config = Config().train
    images = torch.randn(plan.train_batch, 3, side, side, device=plan.device)
    labels = blocky_labels(plan.train_batch, plan.train_classes, side, side).to(plan.device)
    text = normalize(torch.randn(plan.train_classes, model.joint_width, device=plan.device), dim=-1)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate = config.optimizer.learning_rate
    optimizer = torch.optim.AdamW(trained, lr=rate, fused=plan.device == "cuda")
    work = Work("train", classes=plan.train_classes, height=side, width=side, size=plan.size)
    flops = count_flops(work) * plan.train_batch
    for precision, compiled in _modes(plan):
        network: Any = torch.compile(model.forward) if compiled else model.forward

        def step(network: Any = network, precision: Precision = precision) -> None:
            optimizer.zero_grad(set_to_none=True)
            with _autocast(plan, precision):
                masks = network(images, text)
                mask_loss(masks, labels, model.patch_size, config.loss).total.backward()
            optimizer.step()

        seconds, memory = _time(plan, step)
        name = f"training step, batch {len(images)}, {len(text)} classes"
        note = _note(flops / seconds / peak, memory)
        yield Measurement(f"{name}, {_mode(precision, compiled)}", 1 / seconds, "steps/s", note)


def _autocast(plan: GpuPlan, precision: Precision) -> torch.autocast:
    return torch.autocast(plan.device, autocast_type(precision), enabled=precision != "fp32")


def _mode(precision: Precision, compiled: bool) -> str:
    return f"{precision}, compiled" if compiled else precision


def _time(plan: GpuPlan, run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of one call after two warm-up calls, and the peak of allocated memory in GiB."""
    run()
    run()
    if plan.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    _wait(plan)
    count, begin = 0, time.perf_counter()
    while count < 3 or time.perf_counter() - begin < plan.seconds:
        run()
        _wait(plan)
        count += 1
    seconds = (time.perf_counter() - begin) / count
    return seconds, torch.cuda.max_memory_allocated() / 2**30 if plan.device == "cuda" else 0.0


def _wait(plan: GpuPlan) -> None:
    if plan.device == "cuda":
        torch.cuda.synchronize()


def _note(share: float | None, memory: float) -> str:
    peak = "" if share is None else f"{share:.0%} of the bf16 peak, "
    return f"{peak}{memory:.1f} GiB"
