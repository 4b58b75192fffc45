"""Training: the step, its optimiser and its schedule; Lightning is the engine.

Every random draw of a step follows from (seed, step, rank), so a resumed run is the run that was
not interrupted. Letters: B images, C class names, D joint width, H x W pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from pathlib import Path
from typing import Any, TypeVar, cast

import lightning.pytorch as lightning
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from cascade_clip.checkpoints import (
    Checkpoint,
    load_checkpoint,
    load_config,
    load_strictly,
    read_record,
    save_checkpoint,
)
from cascade_clip.config import Config, OptimizerConfig, Resume, TrainConfig, config_to_dict
from cascade_clip.data import LabelledImages, build_dataset, data_templates, describe_data
from cascade_clip.encoders import build_text_encoder, load_clip, load_embeddings
from cascade_clip.errors import (
    CascadeClipError,
    CheckpointError,
    MissingFileError,
    NonFiniteError,
    SettingError,
)
from cascade_clip.files import write_whole
from cascade_clip.losses import StepLoss, present_pairs, step_loss
from cascade_clip.models import Segmenter, build_segmenter
from cascade_clip.training.data_module import TrainingBatches
from cascade_clip.training.ema import EmaTeacher
from cascade_clip.training.engine import build_trainer, check_launch, is_first_process, run_engine
from cascade_clip.training.non_finite import describe, find_cause, merge_causes
from cascade_clip.training.protocols import build_protocol
from cascade_clip.training.provenance import summarise_run, write_run_file
from cascade_clip.training.resume import list_states, newest_state, saved_step

logger = logging.getLogger(__name__)

_FROZEN = "model.backbone.tower."
T = TypeVar("T")


def learning_rate(step: int, total: int, config: OptimizerConfig) -> float:
    """Learning rate of a step counted from 0: polynomial decay over `total` steps, linear warm-up
    first (method section 10)."""
    decay = (1 - min(step, total) / total) ** config.power
    rate = float((config.learning_rate - config.final_rate) * decay + config.final_rate)
    if step < config.warmup_steps:
        rate *= 1 - (1 - step / config.warmup_steps) * (1 - config.warmup_ratio)
    return rate


class SegmentationTask(lightning.LightningModule):
    """The training step of one model, for any protocol, batch split and number of devices."""

    queries: Tensor

    checkpoint: Checkpoint
    """All that is needed to predict with the model as it is now; `fit` sets it for callbacks."""

    def __init__(self, model: Segmenter, text: Tensor, seen: Tensor, config: Config) -> None:
        """Train `model` with text embeddings (C, D) of which `seen` (C,) may be learned."""
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False
        self.model = model
        self.config = config
        train = config.train
        self.protocol = build_protocol(train, seen)
        self.teacher = (
            EmaTeacher(model, train.ema_teacher)
            if train.ema_teacher and train.protocol == "transductive"
            else None
        )
        model.backbone.gradient_checkpointing = train.gradient_checkpointing
        self.run_model = torch.compile(model.stage_masks) if train.compile else model.stage_masks
        self.register_buffer("queries", self.protocol.queries(text).float(), persistent=False)

    def loss(
        self, images: Tensor, labels: Tensor, masks_per_image: Tensor | None = None
    ) -> StepLoss:
        """Loss sums of normalised images (B, 3, H, W) with labels (B, H, W) of the vocabulary;
        divide by M afterwards.

        `masks_per_image` is M / B of the whole step, where these images are a part of it (see
        `step_loss`).
        """
        masks = self.run_model(images, self.queries)
        logits = masks.total  # (B, Q, h, w)
        # (B, Q, h, w)
        guide = logits if self.teacher is None else self.teacher(self.model, images, self.queries)
        targets = self.protocol.targets(labels, guide, self.model.patch_size)  # (B, H, W)
        weights = self.config.train.loss
        if masks_per_image is None and weights.per_image:
            masks_per_image = self._masks_per_image(targets)
        stages = masks.stages if weights.auxiliary else ()
        return step_loss(logits, targets, self.model.patch_size, weights, masks_per_image, stages)

    def _masks_per_image(self, targets: Tensor) -> Tensor:
        """M / B of targets (B, H, W), M averaged over ranks and at least 1."""
        masks = present_pairs(targets, len(self.queries)).sum().float()
        return self._mean_over_ranks(masks).clamp(min=1) / len(targets)

    def accumulate_gradients(self, images: Tensor, labels: Tensor) -> StepLoss:
        """Gradients of one optimiser step: undivided sums of every micro-batch, divided once by M
        of the whole batch.

        Returns the losses as they are reported: divided by M, which is averaged over ranks and at
        least 1.
        """
        share = self.config.train.micro_batch or len(images)
        parts = list(zip(images.split(share), labels.split(share), strict=True))
        sums = torch.zeros(len(StepLoss._fields), device=images.device)
        ahead = None
        # not in self-training: the labels alone give the targets
        if len(parts) > 1 and self.config.train.loss.per_image:
            ahead = self._masks_per_image(
                self.protocol.targets(labels, images, self.model.patch_size)
            )
        for index, (micro_images, micro_labels) in enumerate(parts):
            with self._without_sync(index < len(parts) - 1):
                result = self.loss(micro_images, micro_labels, ahead)
                self._backward(result.total)
            sums += torch.stack([value.detach() for value in result])
        sums = self._mean_over_ranks(sums)
        masks = sums[-1].clamp(min=1)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(masks)
        return StepLoss(*(sums[:-1] / masks).unbind(), masks)  # type: ignore[call-arg]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """One optimiser step.

        Raises:
            FloatingPointError: the loss or a gradient is not finite; with fp16 a gradient that
                overflows skips the step instead.
        """
        torch.manual_seed(self._step_seed())
        optimizer = cast(Any, self.optimizers())
        rate = self.set_learning_rate(optimizer, self.global_step)
        optimizer.zero_grad(set_to_none=True)
        result = self.accumulate_gradients(*batch)
        self._refuse_non_finite(result.total, batch[0])
        optimizer.step()
        if self.teacher is not None:
            self.teacher.update(self.model)
        values = {
            "loss": result.total,
            "focal": result.focal,
            "dice": result.dice,
            "masks": result.masks,
        }
        weights = self.config.train.loss
        values |= {
            name: getattr(result, name)
            for name in ("ssim", "cross_entropy", "auxiliary")
            if getattr(weights, name)
        }
        self.log_dict(values, prog_bar=True)
        self.log("learning_rate", rate, prog_bar=True)

    def set_learning_rate(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Give every group the learning rate of a step, and return it."""
        train = self.config.train
        rate = learning_rate(step, train.schedule_steps or train.steps, train.optimizer)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over what is trained; frozen parts hold no state."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        settings = self.config.train.optimizer
        fused = self.config.train.fused or None
        return torch.optim.AdamW(
            trained, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=fused
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen CLIP out of training states."""
        checkpoint["state_dict"] = {
            name: value
            for name, value in checkpoint["state_dict"].items()
            if not name.startswith(_FROZEN)
        }

    def _step_seed(self) -> int:
        return hash((self.config.train.seed, self.global_step, self.global_rank)) % 2**63

    def _refuse_non_finite(self, loss: Tensor, images: Tensor) -> None:
        gradients = [
            parameter.grad for parameter in self.parameters() if parameter.grad is not None
        ]
        largest = (
            torch.stack(torch._foreach_norm(gradients, math.inf)).max()
            if gradients
            else loss.new_zeros(())
        )
        value, size = torch.stack([loss.float(), largest.float()]).tolist()
        if math.isfinite(value) and math.isfinite(size):
            return
        precision = self.trainer.precision_plugin
        scaler = precision.scaler if isinstance(precision, MixedPrecision) else None
        if math.isfinite(value) and scaler is not None and scaler.get_scale() >= 1:
            logger.info(
                "step %d is skipped: its fp16 gradients overflow at scale %g, which is halved",
                self.global_step,
                scaler.get_scale(),
            )
            return
        torch.manual_seed(self._step_seed())
        share = self.config.train.images_at_once
        cause = find_cause(
            self.model,
            lambda batch: torch.cat(
                [self.model(part, self.queries) for part in batch.split(share)]
            ),
            images,
        )
        paths = cast(TrainingBatches, cast(Any, self.trainer).datamodule).paths(self.global_step)
        cause, paths = merge_causes(self._gather((cause, paths)))  # the same words on every rank
        raise NonFiniteError(
            f"{describe(cause, value, self.global_step, paths)}; states saved before are kept"
        )

    def _gather(self, value: T) -> list[T]:
        """The values of all ranks, in order."""
        if self.trainer.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(found, value)
        return found

    def _backward(self, loss: Tensor) -> None:
        if self._trainer is None:  # used without an engine
            loss.backward()
        else:
            self.manual_backward(loss)

    def _without_sync(self, wanted: bool) -> contextlib.AbstractContextManager[None]:
        strategy = None if self._trainer is None else self.trainer.strategy
        if wanted and isinstance(strategy, ParallelStrategy):
            return strategy.block_backward_sync()
        return contextlib.nullcontext()

    def _mean_over_ranks(self, value: Tensor) -> Tensor:
        if self._trainer is None or self.trainer.world_size == 1:
            return value
        return cast(Tensor, self.trainer.strategy.reduce(value.clone(), reduce_op="mean"))


def fit(
    config: Config,
    out: Path,
    *,
    resume: Resume = "never",
    full: bool = False,
    callbacks: list[Callback] | None = None,
) -> Checkpoint:
    """Train as `config` says and write the checkpoint folder `out/model`, CLIP's own weights
    included if `full`.

    A transductive run without `train.init_from` first runs its inductive half into `out/stage1`.
    `resume` is `never`: the folder must hold no run; `auto`: go on from the last state if there is
    one, else start; `always`: go on, and refuse to start. A run that went on is bit for bit the run
    that was not interrupted; one that has ended is returned as it is.

    Raises:
        ValueError, FileNotFoundError: settings, data or weights that do not fit; `out` holds a run,
            or none, against `resume`.
        FloatingPointError: a loss or gradient is not finite.
        OSError: the state of the run cannot be written.
        Stopped: a scheduler asked the run to end, and its state is saved.
    """
    check_launch(config.train)
    dataset = build_dataset(config.data)
    # a split that makes no sense is found first
    build_protocol(config.train, torch.tensor(dataset.vocabulary.seen_mask))
    _claim_folder(config, out, resume)
    if config.train.protocol == "transductive" and not config.train.init_from:
        config = _run_first_stage(config, out, dataset, resume, callbacks or [])
    return _run_stage(config, out, dataset, resume, callbacks or [], full=full)


def _run_stage(
    config: Config,
    out: Path,
    dataset: LabelledImages,
    resume: Resume,
    callbacks: list[Callback],
    *,
    full: bool = False,
) -> Checkpoint:
    """Train one protocol into a folder, from its last state on or from the start."""
    if resume != "never" and _has_ended(config, out):
        logger.info("%s has been trained to its end already", out)
        return load_checkpoint(out / "model")
    checkpoint = prepare(config, dataset)
    assert checkpoint.text is not None
    task = SegmentationTask(
        checkpoint.model.train(),
        checkpoint.text,
        torch.tensor(dataset.vocabulary.seen_mask),
        config,
    )
    task.checkpoint = checkpoint
    state = newest_state(out / "state") if resume != "never" else None
    batches = TrainingBatches(
        config, dataset, start=saved_step(state) * config.train.batch_size if state else 0
    )
    trainer, saver = build_trainer(config, out, callbacks)
    if is_first_process():
        logger.info("%s", describe_data(dataset))
        logger.info("%s", describe_batch(config.train))
        warm, steps = (
            config.train.optimizer.warmup_steps,
            config.train.schedule_steps or config.train.steps,
        )
        if warm >= steps:
            logger.warning(
                "the warm-up (train.optimizer.warmup_steps %d) is as long as the run of %d steps:"
                " the learning rate stays low",
                warm,
                steps,
            )
    run = write_run_file(out, config, dataset, write=is_first_process())
    run_engine(trainer, saver, task, batches, state)
    record = {
        "protocol": config.train.protocol,
        "steps": task.global_step,
        "images": len(dataset),
        "run": summarise_run(run),
    }
    kept = (
        checkpoint.text if checkpoint.text_encoder is None or config.data.text_embeddings else None
    )
    finished = dataclasses.replace(
        checkpoint, model=task.model.cpu().eval(), text=kept, record=record
    )
    if trainer.is_global_zero:
        save_checkpoint(out / "model", finished, full=full)
    trainer.strategy.barrier("checkpoint")  # other processes may read it now
    return finished


def describe_batch(train: TrainConfig) -> str:
    """How a step's images are shared, in one line."""
    return (
        f"a step of {train.batch_size} images = {train.num_nodes} nodes x {train.devices} devices x"
        f" {train.accumulation} passes x {train.images_at_once} images"
    )


def prepare(config: Config, dataset: LabelledImages) -> Checkpoint:
    """The model before the first step, with text embeddings of the data set's class names."""
    lightning.seed_everything(config.train.seed, verbose=False)
    vocabulary = dataset.vocabulary
    clip = load_clip(config.model.clip)
    encoder = build_text_encoder(clip)
    model = build_segmenter(config.model, clip)
    if config.train.init_from:
        first = load_checkpoint(config.train.init_from)
        # it carries a CLIP of its own, and the class names must be embedded by that one
        if not first.clip_fingerprint:
            encoder, clip = first.text_encoder, dataclasses.replace(clip, fingerprint="")
        elif first.clip_fingerprint != clip.fingerprint:
            raise SettingError(
                f"{config.train.init_from} stands on another CLIP than {config.model.clip.name}"
                f" {config.model.clip.weights}"
            )
        load_strictly(model, first.model.state_dict(), Path(config.train.init_from))
    templates = data_templates(config.data)
    if config.data.text_embeddings:
        text = load_embeddings(
            Path(config.data.text_embeddings), len(vocabulary.names), model.joint_width
        )
    elif encoder is None:
        raise SettingError(
            "this CLIP has no text tower here; give text embeddings with data.text_embeddings"
        )
    else:
        text = encoder.embed(vocabulary.synonyms, templates)
    return Checkpoint(
        model, encoder, config, vocabulary, templates, clip.fingerprint, clip.architecture, text
    )


def inductive_half(config: Config) -> Config:
    """The settings of the first half of a transductive run."""
    train = config.train
    off = {"pseudo_threshold": 0.0, "ema_teacher": 0.0, "first_batch_size": 0}
    batch = train.first_batch_size or train.batch_size
    inductive = dataclasses.replace(
        train,
        protocol="inductive",
        schedule_steps=2 * train.steps,
        batch_size=batch,
        **cast(Any, off),
    )
    return dataclasses.replace(config, train=inductive)


def _run_first_stage(
    config: Config, out: Path, dataset: LabelledImages, resume: Resume, callbacks: list[Callback]
) -> Config:
    """The inductive half of a transductive run; returns the settings of the second half, which
    starts from its checkpoint.

    Raises:
        ValueError: the checkpoint of the first half is missing or not whole.
    """
    stage = out / "stage1"
    train = config.train
    first = inductive_half(config)
    _claim_folder(first, stage, "never" if resume == "never" else "auto")
    if is_first_process() and not _has_ended(first, stage):
        logger.info(
            "transductive run: the inductive half (%d steps of a schedule of %d) comes first",
            train.steps,
            2 * train.steps,
        )
    _run_stage(first, stage, dataset, resume, callbacks)
    if not _has_ended(first, stage):
        raise SettingError(
            f"the self-training stage needs all {train.steps} steps of stage 1 in {stage}; go on"
            " with --resume auto"
        )
    return dataclasses.replace(
        config, train=dataclasses.replace(train, init_from=str(stage / "model"), first_batch_size=0)
    )


def _has_ended(config: Config, out: Path) -> bool:
    """Whether a folder holds the checkpoint of a run that came to its end.

    Raises:
        ValueError: there is a checkpoint, and it is not whole.
    """
    if not (out / "model").exists():
        return False
    try:
        return int(read_record(out / "model").get("steps", 0)) >= config.train.steps
    except CascadeClipError as error:
        raise CheckpointError(
            f"{error}; remove {out / 'model'} and go on with --resume auto"
        ) from error


def _claim_folder(config: Config, out: Path, resume: Resume) -> None:
    """Make `out` the folder of this run, or see that it is; the first process does it for all."""
    if not is_first_process():
        return
    settings = out / "config.yaml"
    text = yaml.safe_dump(config_to_dict(config), sort_keys=False)
    begun = any(
        list_states(folder / "state") or (folder / "model").exists()
        for folder in (out, out / "stage1")
    )
    steps = out / "metrics.csv"
    begun_now = steps.is_file() and len(steps.read_text(encoding="utf-8").splitlines()) > 1
    if settings.is_file() and (begun or begun_now):  # else it was refused before its first step
        if resume == "never":
            raise SettingError(
                f"{out} holds a run already; continue it with --resume auto, or choose another"
                " --out"
            )
        found = _differences(config_to_dict(load_config(settings)), config_to_dict(config))
        # another device goes on with the same run
        changed = [name for name in found if name != "train.device"]
        if changed:
            raise SettingError(
                f"{out} holds a run with other settings ({', '.join(changed)}); choose another"
                f" --out, or use {settings}"
            )
        text = settings.read_text(encoding="utf-8")
    if resume == "always" and not begun:
        raise MissingFileError(
            f"{out} holds no state to go on from; start with --resume auto or without --resume"
        )
    write_whole(settings, text)


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Dotted names of the settings in which two nested mappings differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            found
            for key in keys
            for found in _differences(
                old.get(key), new.get(key), f"{name}.{key}" if name else str(key)
            )
        ]
    return [] if old == new else [name]
