"""What `--dry-run` finds: parameters, memory, steps, data, and one step on real images."""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cascade_clip.config import Config
from cascade_clip.data import LabelledImages, StepSampler, build_dataset
from cascade_clip.models import Cost, count_cost
from cascade_clip.ops import autocast_type, find_device
from cascade_clip.results import format_duration
from cascade_clip.training.data_module import training_set
from cascade_clip.training.fit import prepare
from cascade_clip.training.progress import used_memory
from cascade_clip.training.provenance import describe_batch
from cascade_clip.training.task import SegmentationTask

COUNTED_IMAGES = 100
"""Images whose labels are looked at."""
COUNTING_SECONDS = 10.0
"""Where reading them is slow, fewer are."""
_NAMED = 40


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: int
    gradients: int
    optimizer: int
    """AdamW's two moments of every trained value."""
    activations: int
    """What the backward pass of one micro-batch keeps, counted in the step that was run."""
    peak: int | None
    """The most that CUDA held in that step; None elsewhere."""

    @property
    def total(self) -> int:
        """The sum of the parts; torch itself and short-lived results come on top."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        """The parts by the names that people read."""
        parts = (self.weights, self.gradients, self.optimizer, self.activations)
        return dict(zip(("weights", "gradients", "optimiser", "activations"), parts, strict=True))


@dataclass(frozen=True)
class Counts:
    """What the training data holds."""

    images: int
    seen: int
    unseen: int
    looked_at: int
    """Number of images that `per_class` counts."""
    per_class: dict[str, int]
    """Images, among those looked at, that hold a class."""


@dataclass(frozen=True)
class DryRun:
    """What a run would be."""

    cost: Cost
    memory: Memory
    counts: Counts
    batch: dict[str, int]
    steps: int
    stages: int
    """2 for a transductive run that makes its own inductive half."""
    epochs: float
    """Passes over the training images, of all stages together."""
    loss: float
    """Of the one step, at the start of the schedule."""
    seconds: float
    """That the step took, from images in memory to new weights."""
    device: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def dry_run(config: Config) -> DryRun:
    """Prepare a run and take one step with one device's share of the first batch.

    Raises:
        ValueError, FileNotFoundError: settings, data or weights that do not fit, as in a real run.
    """
    dataset = build_dataset(config.data)
    halves = [config.train]
    if config.train.has_first_half:
        halves.insert(0, config.train.inductive_half())
    train = halves[0]  # the step that is done is the run's first
    config = replace(config, train=train)
    vocabulary = dataset.vocabulary
    queries = len(vocabulary.seen if train.protocol == "inductive" else vocabulary.names)
    cost = count_cost(config.model, queries, train.augment.crop)
    device = find_device(train.device)
    task = SegmentationTask.of(prepare(config, dataset)).to(device)
    images, labels = (part.to(device) for part in first_share(config, dataset))
    batch = describe_batch(train)
    share = batch["per_device"]
    kept = measure_activations(task, images[:share], labels[:share])
    loss, seconds = run_step(task, images, labels)
    memory, counts = measure_memory(task, kept, device), count_images(dataset)
    epochs = sum(half.steps * half.batch_size for half in halves) / len(dataset)
    return DryRun(
        cost, memory, counts, batch, train.steps, len(halves), epochs, loss, seconds, str(device)
    )


def first_share(config: Config, dataset: LabelledImages) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, H, W) and labels (B, H, W) of the first device in the first step."""
    train = config.train
    batches = training_set(config, dataset)
    order = StepSampler(len(dataset), train.batch_size, train.seed, steps=1, world=train.processes)
    pairs = [batches[place] for place in order]
    return torch.stack([image for image, _ in pairs]), torch.stack([labels for _, labels in pairs])


def measure_activations(task: SegmentationTask, images: Tensor, labels: Tensor) -> int:
    """Count the bytes kept for backward of images (B, 3, H, W), labels (B, H, W) besides these."""
    values = (*task.parameters(), *task.buffers(), images, labels)
    own = {value.untyped_storage().data_ptr() for value in values}
    found: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), _autocast(task):
        task.loss(images, labels)
    return sum(found.values())


def run_step(task: SegmentationTask, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Take one optimiser step; return its loss and seconds."""
    optimizer = task.configure_optimizers()
    if images.is_cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    with _autocast(task):
        result = task.accumulate_gradients(images, labels)
    task.set_learning_rate(optimizer, 0)
    optimizer.step()
    loss = float(result.total)
    if images.is_cuda:
        torch.cuda.synchronize()
    return loss, time.perf_counter() - begin


def measure_memory(task: SegmentationTask, activations: int, device: torch.device) -> Memory:
    """Return the parts of a step's memory."""
    trained = _bytes(value for value in task.parameters() if value.requires_grad)
    peak = used_memory(device) if device.type == "cuda" else None
    weights = _bytes((*task.parameters(), *task.buffers()))
    return Memory(weights, trained, 2 * trained, activations, peak)


def _bytes(values: Iterable[Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in values)


def count_images(dataset: LabelledImages) -> Counts:
    """Count the images that hold each class, among the first ones."""
    vocabulary = dataset.vocabulary
    counts = torch.zeros(len(vocabulary.names), dtype=torch.int64)
    end = time.monotonic() + COUNTING_SECONDS
    looked_at = 0
    for index in range(min(COUNTED_IMAGES, len(dataset))):
        labels = dataset.sample(index).labels
        counts[labels[labels >= 0].unique()] += 1
        looked_at += 1
        if time.monotonic() > end:
            break
    per_class = dict(zip(vocabulary.names, counts.tolist(), strict=True))
    return Counts(len(dataset), len(vocabulary.seen), len(vocabulary.unseen), looked_at, per_class)


def describe_dry_run(found: DryRun, unseen: tuple[str, ...]) -> list[str]:
    """Return the lines that people read."""
    cost, memory, counts, batch = found.cost, found.memory, found.counts, found.batch
    rare = [name for name, number in counts.per_class.items() if not number]
    often = sorted(counts.per_class.items(), key=lambda item: -item[1])
    held = [f"{name}{' *' * (name in unseen)} {number}" for name, number in often if number]
    steps, total = f"{found.steps:,} steps", found.stages * found.steps
    if found.stages == 2:
        steps = f"2 x {steps} (inductive half, then self-training)"
    peak = f"; CUDA's peak in the step was {_size(memory.peak)}" if memory.peak else ""
    sizes = ", ".join(f"{name} {_size(size)}" for name, size in memory.parts.items())
    side, both = f"{cost.image_side} x {cost.image_side}", cost.parameters + cost.text_parameters
    published = f"{cost.published_parameters:,} in all, {cost.published_trained:,} trained"
    rows = [
        ("parameters", f"{both:,} in all, {cost.trained:,} trained"),
        ("", f"counted the published way: {published}"),
        ("", f"{cost.flops / 1e9:.1f} GFLOP forward per image of {side} pixels"),
        ("memory", f"{_size(memory.total)} on {found.device}: {sizes}"),
        (
            "",
            f"activations counted in one step with {batch['per_device']} images at once, the rest"
            " follows from the parameters;",
        ),
        ("", f"torch itself and short-lived results come on top{peak}"),
        (
            "batch",
            f"{batch['effective']} images = {batch['devices']} devices x {batch['per_device']} at"
            f" once x {batch['accumulation']} passes",
        ),
        ("length", f"{steps}, {found.epochs:.2f} epochs"),
        ("data", f"{counts.images:,} images, {counts.seen} classes seen, {counts.unseen} unseen"),
        (
            "",
            f"images per class among the first {counts.looked_at} (* unseen):"
            f" {_listed(held) or 'no labels'}",
        ),
        *([("", f"in none of them: {_listed(rare)}")] if rare else []),
        (
            "one step",
            f"loss {found.loss:.4f}, {found.seconds:.2f} s; {total:,} such steps are"
            f" {format_duration(found.seconds * total)}, without loading",
        ),
    ]
    return [f"{title:<13}{line}" for title, line in rows]


def _autocast(task: SegmentationTask) -> torch.autocast:
    wanted = task.config.train.precision
    return torch.autocast(task.device.type, autocast_type(wanted), enabled=wanted != "fp32")


def _size(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return ", ".join(items[:_NAMED]) + more
