"""One training step: its losses, gradients, optimiser and learning rate.

Every random draw of a step follows from (seed, step, rank), so a resumed run has the same weights
as an uninterrupted one. Letters: B images, C class names, Q queries, D joint width, H x W pixels,
h x w patches.
"""

from __future__ import annotations

import contextlib
import logging
import math
from typing import Any, TypeVar, cast

import lightning.pytorch as lightning
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from cascade_clip.checkpoints import Checkpoint
from cascade_clip.config import Config, OptimizerConfig
from cascade_clip.errors import NonFiniteError
from cascade_clip.losses import StepLoss, present_pairs, step_loss
from cascade_clip.models import Segmenter
from cascade_clip.training.data_module import TrainingBatches
from cascade_clip.training.ema import EmaTeacher
from cascade_clip.training.non_finite import describe, find_cause, merge_causes
from cascade_clip.training.progress import EXTRA
from cascade_clip.training.protocols import build_protocol

logger = logging.getLogger(__name__)

_FROZEN = "model.backbone.tower."
T = TypeVar("T")


def learning_rate(step: int, total: int, config: OptimizerConfig) -> float:
    """Return the rate of a step from 0: linear warm-up, polynomial decay (method section 10)."""
    decay = (1 - min(step, total) / total) ** config.power
    rate = float((config.learning_rate - config.final_rate) * decay + config.final_rate)
    if step < config.warmup_steps:
        rate *= 1 - (1 - step / config.warmup_steps) * (1 - config.warmup_ratio)
    return rate


class SegmentationTask(lightning.LightningModule):
    """The training step of one model, for any protocol, batch split and number of devices."""

    queries: Tensor

    checkpoint: Checkpoint
    """What predicts with the model as it is now; only of a task made by `of`."""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> SegmentationTask:
        """Return the task that trains a checkpoint with text embeddings by its own settings."""
        assert checkpoint.text is not None
        seen = torch.tensor(checkpoint.vocabulary.seen_mask)
        task = cls(checkpoint.model.train(), checkpoint.text, seen, checkpoint.config)
        task.checkpoint = checkpoint
        return task

    def __init__(self, model: Segmenter, text: Tensor, seen: Tensor, config: Config) -> None:
        """Train `model` with text embeddings (C, D) of which `seen` (C,) may be learned."""
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False
        self.model = model
        self.config = config
        train = config.train
        self.protocol = build_protocol(train, seen)
        averaged = train.ema_teacher and train.protocol == "transductive"
        self.teacher = EmaTeacher(model, train.ema_teacher) if averaged else None
        model.backbone.gradient_checkpointing = train.gradient_checkpointing
        self.run_model = torch.compile(model.stage_masks) if train.compile else model.stage_masks
        self.register_buffer("queries", self.protocol.queries(text).float(), persistent=False)

    def loss(
        self, images: Tensor, labels: Tensor, masks_per_image: Tensor | None = None
    ) -> StepLoss:
        """Return the loss sums of normalised images (B, 3, H, W) with labels (B, H, W) of the
        vocabulary, to be divided by M.

        `masks_per_image` is M / B of the whole step if these images are a part of it (see
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
        """Compute the gradients of one optimiser step: sums over all micro-batches, divided once by
        M of the whole batch.

        Returns the losses divided by M, which is averaged over ranks and at least 1.
        """
        share = self.config.train.micro_batch or len(images)
        parts = list(zip(images.split(share), labels.split(share), strict=True))
        sums = torch.zeros(len(StepLoss._fields), device=images.device)
        ahead = None
        # not in self-training: the labels alone give the targets
        if len(parts) > 1 and self.config.train.loss.per_image:
            targets = self.protocol.targets(labels, images, self.model.patch_size)
            ahead = self._masks_per_image(targets)
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
        """Take one optimiser step.

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
        weights = self.config.train.loss
        extra = (name for name in EXTRA if getattr(weights, name))
        values = {name: getattr(result, name) for name in ("focal", "dice", "masks", *extra)}
        self.log_dict({"loss": result.total, **values, "learning_rate": rate}, prog_bar=True)

    def set_learning_rate(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set the learning rate of a step in every group, and return it."""
        train = self.config.train
        rate = learning_rate(step, train.schedule_steps or train.steps, train.optimizer)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over the trained parameters; frozen ones have no optimiser state."""
        settings = self.config.train.optimizer
        return torch.optim.AdamW(
            [parameter for parameter in self.parameters() if parameter.requires_grad],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=self.config.train.fused or None,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen CLIP out of training states."""
        state = checkpoint["state_dict"].items()
        checkpoint["state_dict"] = {
            name: one for name, one in state if not name.startswith(_FROZEN)
        }

    def _step_seed(self) -> int:
        return hash((self.config.train.seed, self.global_step, self.global_rank)) % 2**63

    def _refuse_non_finite(self, loss: Tensor, images: Tensor) -> None:
        gradients = [one.grad for one in self.parameters() if one.grad is not None]
        norms = torch._foreach_norm(gradients, math.inf) if gradients else [loss.new_zeros(())]
        value, size = torch.stack([loss.float(), torch.stack(norms).max().float()]).tolist()
        if math.isfinite(value) and math.isfinite(size):
            return
        precision = self.trainer.precision_plugin
        scaler = precision.scaler if isinstance(precision, MixedPrecision) else None
        if math.isfinite(value) and scaler is not None and scaler.get_scale() >= 1:
            text = "step %d is skipped: its fp16 gradients overflow at scale %g, which is halved"
            logger.info(text, self.global_step, scaler.get_scale())
            return
        torch.manual_seed(self._step_seed())

        def forward(batch: Tensor) -> Tensor:
            parts = batch.split(self.config.train.images_at_once)
            return torch.cat([self.model(part, self.queries) for part in parts])

        cause = find_cause(self.model, forward, images)
        paths = cast(TrainingBatches, cast(Any, self.trainer).datamodule).paths(self.global_step)
        cause, paths = merge_causes(self._gather((cause, paths)))  # the same words on every rank
        found = describe(cause, value, self.global_step, paths)
        raise NonFiniteError(f"{found}; states saved before are kept")

    def _gather(self, value: T) -> list[T]:
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
