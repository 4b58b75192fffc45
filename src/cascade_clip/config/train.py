"""Settings of training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from cascade_clip.config.values import (
    Device,
    Precision,
    Protocol,
    check,
    check_least,
    check_part,
    check_positive,
    check_range,
    check_share,
)


@dataclass(frozen=True)
class AugmentConfig:
    """Training augmentation (method: random scale, crop, flip, photometric distortion)."""

    scale: tuple[int, int] = (2048, 512)
    """Long and short side that a picture is fitted into, before the random ratio."""
    ratio: tuple[float, float] = (0.5, 2.0)
    """Range of the random ratio."""
    crop: int = 512
    """Side of the square crop, in pixels."""
    largest_share: float = 0.75
    """A crop is redrawn (ten times at most) while a class fills this share of labelled pixels."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    photometric: bool = True
    """Whether brightness, contrast, saturation and hue are distorted."""

    def __post_init__(self) -> None:
        check_range("train.augment", self, crop=(1, 2**15))
        check(
            0 < self.ratio[0] <= self.ratio[1] < math.inf,
            f"train.augment.ratio must rise from above 0, got {self.ratio}",
        )
        pixels = min(self.scale) >= 1
        check(pixels, f"train.augment.scale must be two sides in pixels, got {self.scale}")
        share = self.largest_share  # infinity: never drawn again
        check(share > 0, f"train.augment.largest_share must be positive, got {share}")
        check(0 <= self.flip <= 1, f"train.augment.flip is a probability, got {self.flip}")


@dataclass(frozen=True)
class LossConfig:
    """Loss on summed mask logits: focal, dice (Eq. 8, Table 18), and terms of other methods."""

    focal: float = 100.0
    """Weight of the sigmoid focal loss."""
    dice: float = 1.0
    """Weight of the dice loss."""
    ssim: float = 0.0
    """Weight of 1 - SSIM of mask and 0/1 map, mean over images, classes, pixels (SPT-SEG)."""
    ssim_on: Literal["logits", "sigmoid"] = "logits"
    """What SSIM compares with the 0/1 map: the raw `logits`, as released, or their `sigmoid`."""
    cross_entropy: float = 0.0
    """Weight of the softmax cross-entropy, mean over labelled pixels, then images (ZegCLIP)."""
    alpha: float = 0.25
    """Balance of the focal loss between present and absent pixels."""
    gamma: float = 2.0
    """Exponent that lowers the focal loss of easy pixels."""
    ignored: Literal["negative", "masked"] = "negative"
    """`negative`: unlabelled pixels count as negatives, as published; `masked`: count nowhere."""
    auxiliary: float = 0.0
    """Deep supervision: weight of the same loss on the mask logits of every single stage, beside
    the loss on their sum. 0 is off, as published."""
    class_chunk: int = 32
    """Number of classes whose full-size mask is held at once; changes memory, never the result."""

    def __post_init__(self) -> None:
        check_least("train.loss", self, class_chunk=1, focal=0, dice=0, ssim=0, cross_entropy=0)
        check_least("train.loss", self, auxiliary=0, gamma=0)
        check_range("train.loss", self, alpha=(0, 1))
        check(
            any((self.focal, self.dice, self.ssim, self.cross_entropy)),
            "every weight of train.loss is 0; set one of focal, dice, ssim, cross_entropy",
        )

    @property
    def per_image(self) -> bool:
        """Whether a term is a mean over images, beside those that are sums over masks."""
        return bool(self.ssim or self.cross_entropy)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and polynomial decay."""

    learning_rate: float = 2e-4
    """Peak learning rate of prompts and decoders (the published 2e-5 times its factor 10)."""
    weight_decay: float = 0.01
    """Weight decay of every trained tensor."""
    power: float = 0.9
    """Exponent of the polynomial decay."""
    final_rate: float = 1e-6
    """Learning rate at the end."""
    warmup_steps: int = 1500
    """Steps of linear warm-up."""
    warmup_ratio: float = 1e-6
    """Part of the learning rate at step 0."""

    def __post_init__(self) -> None:
        check_positive("train.optimizer", self, "learning_rate")
        check_least("train.optimizer", self, weight_decay=0, final_rate=0, power=0, warmup_steps=0)
        check_range("train.optimizer", self, warmup_ratio=(0, 1))


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained."""

    protocol: Protocol = "inductive"
    """`inductive`: unseen names unknown; `transductive`: unseen names known, pseudo-labels;
    `supervised`: all labels."""
    steps: int = 20000
    """Optimiser steps."""
    schedule_steps: int = 0
    """Steps over which the learning rate decays (longer in an inductive half); 0: `steps`."""
    batch_size: int = 16
    """Images per step over all devices."""
    first_batch_size: int = 0
    """Images per step in the inductive half of a transductive run; 0 means `batch_size`."""
    micro_batch: int = 0
    """Images at once on one device; 0: its whole share. Changes memory, not the gradient."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    init_from: str = ""
    """Checkpoint folder whose weights start the run (stage 1 of a transductive run)."""
    pseudo_threshold: float = 0.0
    """Self-training only: an unseen pixel whose best score over the unseen names is below this gets
    no pseudo-label and counts as ignored (see `train.loss.ignored`). 0 is off, as published."""
    ema_teacher: float = 0.0
    """Self-training only: pseudo-labels come from an exponential moving average of the trained
    weights with this decay per step, run without dropout. 0 is off, as published: they come from
    the model's own output of the same step."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Loss."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimiser and schedule."""
    precision: Precision = "fp32"
    """Number format of matrix products; weights, similarities and losses stay float32."""
    device: Device = "auto"
    """Where to train."""
    devices: int = 1
    """Number of devices (or CPU processes) of each node that share every batch."""
    num_nodes: int = 1
    """Machines that share every batch; start the same command on each by torchrun or srun."""
    gradient_checkpointing: bool = False
    """Compute CLIP's blocks again in the backward pass: less memory, same gradients."""
    compile: bool = False
    """Compile the network with torch.compile before training."""
    fused: bool = False
    """Use AdamW's fused kernel: faster on a GPU, last bits differ."""
    save_every: int = 1000
    """Steps between the states that `--resume` goes on from; the last two are kept."""
    log_every: int = 10
    """Steps between lines of `metrics.csv`."""
    preview_every: int | None = None
    """Steps between previews (`previews/*.png`); null: a tenth of the run, 0: none."""

    def __post_init__(self) -> None:
        check_part("protocols", self.protocol, "train.protocol")
        check_least("train", self, steps=1, batch_size=1, devices=1, num_nodes=1, micro_batch=0)
        check_least("train", self, save_every=1, log_every=1, first_batch_size=0)
        check_range("train", self, seed=(0, 2**32 - 1))
        check_share("train", self, "pseudo_threshold", "ema_teacher")
        if self.preview_every is not None:
            check_least("train", self, preview_every=0)
        check(
            not self.first_batch_size or self.has_first_half,
            "train.first_batch_size is for runs that make their own inductive half; leave it at 0",
        )
        self._check_share("batch_size", self.batch_size)
        self._check_share("first_batch_size", self.first_batch_size)
        check(
            not (self.loss.per_image and self.self_training and self.accumulation > 1),
            "train.loss.ssim and cross_entropy in self-training need all images of a device at"
            " once, to count the masks; set train.micro_batch to 0, or more devices",
        )
        check(
            self.schedule_steps == 0 or self.schedule_steps >= self.steps,
            f"train.schedule_steps {self.schedule_steps} must be 0 or at least steps {self.steps}",
        )

    def _check_share(self, name: str, images: int) -> None:
        """See that a batch can be shared by the processes and their micro-batches."""
        share, rest = divmod(images, self.processes)
        nodes = f" on each of {self.num_nodes} nodes" if self.num_nodes > 1 else ""
        shared = f"cannot be shared by {self.devices} devices{nodes}; make it a multiple"
        check(rest == 0, f"train.{name} {images} {shared}")
        check(
            self.micro_batch == 0 or share % self.micro_batch == 0,
            f"train.micro_batch {self.micro_batch} does not divide the {share} images of"
            f" train.{name} {images} that each device gets",
        )

    @property
    def self_training(self) -> bool:
        """Whether the model labels unseen classes itself, after learning the seen ones."""
        return self.protocol == "transductive"

    @property
    def has_first_half(self) -> bool:
        """Whether the run makes the inductive checkpoint that its self-training starts from."""
        return self.self_training and not self.init_from

    def inductive_half(self) -> TrainConfig:
        """Return the settings of the first half of a transductive run."""
        return replace(
            self,
            protocol="inductive",
            schedule_steps=2 * self.steps,
            batch_size=self.first_batch_size or self.batch_size,
            first_batch_size=0,
            pseudo_threshold=0.0,
            ema_teacher=0.0,
        )

    @property
    def processes(self) -> int:
        """Processes that share every batch: devices of all nodes."""
        return self.devices * self.num_nodes

    @property
    def images_at_once(self) -> int:
        """Images that go through the network at once on one device."""
        return self.micro_batch or self.batch_size // self.processes

    @property
    def accumulation(self) -> int:
        """Passes per step; nodes x devices x images at once x passes is the batch size."""
        return self.batch_size // (self.processes * self.images_at_once)
