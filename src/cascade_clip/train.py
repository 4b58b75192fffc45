"""Training: the step, its optimiser and its schedule; Lightning is the engine.

Every random draw of a step follows from (seed, step, rank), so a resumed run is the run that was not interrupted.
Letters: B images, C class names, D joint width, H x W pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import warnings
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as lightning
import torch
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from cascade_clip.checkpoint import Checkpoint, load_checkpoint, load_strictly, save_checkpoint
from cascade_clip.clip import load_clip
from cascade_clip.config import Config, OptimizerConfig
from cascade_clip.data import LabelledImages, build_dataset, data_templates
from cascade_clip.datasets.folder import StepSampler, TrainingSet
from cascade_clip.losses import MaskLoss, mask_loss
from cascade_clip.model import Segmenter, build_segmenter
from cascade_clip.plain_values import config_to_dict
from cascade_clip.predictor import find_device
from cascade_clip.progress import MetricsFile
from cascade_clip.protocols import TrainingProtocol
from cascade_clip.text import build_text_encoder, load_embeddings
from cascade_clip.transforms import TrainTransform

logger = logging.getLogger(__name__)

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_FROZEN = "model.backbone.tower."


def learning_rate(step: int, total: int, config: OptimizerConfig) -> float:
    """Learning rate of a step counted from 0: polynomial decay over `total` steps, linear warm-up first (method section 10)."""
    decay = (1 - min(step, total) / total) ** config.power
    rate = float((config.learning_rate - config.final_rate) * decay + config.final_rate)
    if step < config.warmup_steps:
        rate *= 1 - (1 - step / config.warmup_steps) * (1 - config.warmup_ratio)
    return rate


class SegmentationTask(lightning.LightningModule):
    """The training step of one model, for any protocol, batch split and number of devices."""

    def __init__(self, model: Segmenter, text: Tensor, seen: Tensor, config: Config) -> None:
        """Train `model` with text embeddings (C, D) of which `seen` (C,) may be learned."""
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False
        self.model = model
        self.config = config
        self.protocol = TrainingProtocol(config.train.protocol, seen)
        self.register_buffer("queries", self.protocol.queries(text).float(), persistent=False)

    def loss(self, images: Tensor, labels: Tensor) -> MaskLoss:
        """Loss sums of normalised images (B, 3, H, W) with labels (B, H, W) of the vocabulary; divide by M afterwards."""
        logits = self.model(images, self.queries)  # (B, Q, h, w)
        targets = self.protocol.targets(labels, logits, self.model.patch_size)  # (B, H, W)
        return mask_loss(logits, targets, self.model.patch_size, self.config.train.loss)

    def accumulate_gradients(self, images: Tensor, labels: Tensor) -> MaskLoss:
        """Gradients of one optimiser step: undivided sums of every micro-batch, divided once by M of the whole batch.

        Returns the losses as they are reported: divided by M, which is averaged over ranks and at least 1.
        """
        share = self.config.train.micro_batch or len(images)
        parts = list(zip(images.split(share), labels.split(share), strict=True))
        sums = torch.zeros(4, device=images.device)
        for index, (micro_images, micro_labels) in enumerate(parts):
            with self._without_sync(index < len(parts) - 1):
                result = self.loss(micro_images, micro_labels)
                self._backward(result.total)
            sums += torch.stack([value.detach() for value in result])
        sums = self._mean_over_ranks(sums)
        masks = sums[3].clamp(min=1)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(masks)
        total, focal, dice = sums[:3] / masks
        return MaskLoss(total, focal, dice, masks)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """One optimiser step."""
        torch.manual_seed(hash((self.config.train.seed, self.global_step, self.global_rank)) % 2**63)
        optimizer = cast(Any, self.optimizers())
        rate = self.set_learning_rate(optimizer, self.global_step)
        optimizer.zero_grad(set_to_none=True)
        result = self.accumulate_gradients(*batch)
        if not math.isfinite(float(result.total)):
            raise FloatingPointError(f"the loss is {float(result.total)} at step {self.global_step}; the last checkpoint is kept")
        optimizer.step()
        values = {"loss": result.total, "focal": result.focal, "dice": result.dice, "masks": result.masks}
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
        return torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen CLIP out of training states."""
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if not name.startswith(_FROZEN)}

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


def fit(config: Config, out: Path, *, resume: bool = False, full: bool = False, callbacks: list[Callback] | None = None) -> Checkpoint:
    """Train as `config` says and write the checkpoint folder `out/model`, CLIP's own weights included if `full`.

    A transductive run without `train.init_from` first runs its inductive half into `out/stage1`.

    Raises:
        ValueError, FileNotFoundError: settings, data or weights that do not fit; `out` holds a run and `resume` is not set.
    """
    dataset = build_dataset(config.data)
    seen = torch.tensor(dataset.vocabulary.seen_mask)
    TrainingProtocol(config.train.protocol, seen)  # a split that makes no sense is found before anything runs
    if config.train.protocol == "transductive" and not config.train.init_from:
        config = _run_first_stage(config, out, resume=resume, callbacks=callbacks)
    _claim_folder(config, out, resume=resume)
    checkpoint = prepare(config, dataset)
    assert checkpoint.text is not None
    task = SegmentationTask(checkpoint.model.train(), checkpoint.text, seen, config)
    state = out / "state" / "last.ckpt"
    resumed = state if resume and state.is_file() else None
    batches = TrainingBatches(config, dataset, start=_saved_step(resumed) * config.train.batch_size)
    trainer = build_trainer(config, out, callbacks or [])
    _run_engine(trainer, task, batches, resumed)
    record = {"protocol": config.train.protocol, "steps": task.global_step, "images": len(dataset)}
    kept = checkpoint.text if checkpoint.text_encoder is None or config.data.text_embeddings else None
    finished = dataclasses.replace(checkpoint, model=task.model.cpu().eval(), text=kept, record=record)
    if trainer.is_global_zero:
        save_checkpoint(out / "model", finished, full=full)
    return finished


def _run_engine(trainer: lightning.Trainer, task: SegmentationTask, batches: TrainingBatches, resumed: Path | None) -> None:
    """Run Lightning without the warnings that do not concern us; errors of loading processes become their own last line."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
        warnings.filterwarnings("ignore", ".*exists and is not empty.*")  # a resumed run goes on in its folder
        warnings.filterwarnings("ignore", ".*no pre-optimization state was saved.*")  # the state after a step is what we want
        try:
            trainer.fit(task, datamodule=batches, ckpt_path=str(resumed) if resumed else None)
        except (ValueError, OSError) as error:
            if "in DataLoader worker process" not in str(error):
                raise
            last = [line for line in str(error).splitlines() if line.strip()][-1]
            raise ValueError(last.partition("Error: ")[2] or last) from error
        except SystemExit as error:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from error


def prepare(config: Config, dataset: LabelledImages) -> Checkpoint:
    """The model before the first step, with text embeddings of the data set's class names."""
    lightning.seed_everything(config.train.seed, verbose=False)
    vocabulary = dataset.vocabulary
    clip = load_clip(config.model.clip)
    encoder = build_text_encoder(clip)
    model = build_segmenter(config.model, clip)
    if config.train.init_from:
        first = load_checkpoint(config.train.init_from)
        if not first.clip_fingerprint:  # it carries a CLIP of its own, and the class names must be embedded by that one
            encoder, clip = first.text_encoder, dataclasses.replace(clip, fingerprint="")
        elif first.clip_fingerprint != clip.fingerprint:
            raise ValueError(f"{config.train.init_from} stands on another CLIP than {config.model.clip.name} {config.model.clip.weights}")
        load_strictly(model, first.model.state_dict(), Path(config.train.init_from))
    templates = data_templates(config.data)
    if config.data.text_embeddings:
        text = load_embeddings(Path(config.data.text_embeddings), len(vocabulary.names), model.joint_width)
    elif encoder is None:
        raise ValueError("this CLIP has no text tower here; give text embeddings with data.text_embeddings")
    else:
        text = encoder.embed(vocabulary.synonyms, templates)
    return Checkpoint(model, encoder, config, vocabulary, templates, clip.fingerprint, clip.architecture, text)


class TrainingBatches(lightning.LightningDataModule):
    """Batches of augmented crops, the same whatever the number of workers and devices."""

    def __init__(self, config: Config, dataset: LabelledImages, start: int) -> None:
        """Serve the batches of a run; `start` counts images that it has used already."""
        super().__init__()
        self.config, self.dataset, self.start = config, dataset, start

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of this rank, from `start` on."""
        train = self.config.train
        world = self.trainer.world_size if self.trainer else 1
        rank = self.trainer.global_rank if self.trainer else 0
        order = StepSampler(len(self.dataset), train.batch_size, train.seed, start=self.start, rank=rank, world=world)
        return DataLoader(
            TrainingSet(self.dataset, TrainTransform(train.augment, self.config.model.mean, self.config.model.std), seed=train.seed),
            batch_size=train.batch_size // world,
            sampler=order,
            num_workers=self.config.data.workers,
            persistent_workers=self.config.data.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def build_trainer(config: Config, out: Path, callbacks: list[Callback]) -> lightning.Trainer:
    """Lightning's engine with our settings."""
    train = config.train
    device = find_device(train.device)
    saver = ModelCheckpoint(out / "state", filename="last", every_n_train_steps=train.save_every, enable_version_counter=False)
    return lightning.Trainer(
        accelerator={"cpu": "cpu", "cuda": "gpu", "mps": "mps"}[device.type],
        devices=train.devices,
        strategy=DDPStrategy(process_group_backend="gloo" if device.type == "cpu" else None) if train.devices > 1 else "auto",
        precision=cast(Any, _PRECISIONS[train.precision]),
        max_steps=train.steps,
        max_epochs=-1,
        logger=TensorBoardLogger(out, name="", version="tensorboard"),
        log_every_n_steps=train.log_every,
        callbacks=[saver, MetricsFile(out / "metrics.csv", train.log_every), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


def _run_first_stage(config: Config, out: Path, *, resume: bool, callbacks: list[Callback] | None) -> Config:
    """The inductive half of a transductive run; returns the settings of the second half."""
    stage = out / "stage1"
    train = config.train
    if train.devices > 1:
        raise ValueError(
            "on several devices run the two stages one after the other: first --train.protocol inductive with "
            f"--train.schedule_steps {2 * train.steps}, then --train.protocol transductive with --train.init_from RUN/model"
        )
    if not (stage / "model").is_dir():
        logger.info("transductive run: the inductive half (%d steps of a schedule of %d) comes first", train.steps, 2 * train.steps)
        first = dataclasses.replace(train, protocol="inductive", schedule_steps=2 * train.steps)
        fit(dataclasses.replace(config, train=first), stage, resume=resume, callbacks=callbacks)
    return dataclasses.replace(config, train=dataclasses.replace(train, init_from=str(stage / "model")))


def _claim_folder(config: Config, out: Path, *, resume: bool) -> None:
    settings = out / "config.yaml"
    text = yaml.safe_dump(config_to_dict(config), sort_keys=False)
    if os.environ.get("LOCAL_RANK", "0") != "0":  # another process of the same run
        return
    if settings.is_file() and not resume:
        raise ValueError(f"{out} holds a run already; continue it with --resume, or choose another --out")
    if settings.is_file() and settings.read_text(encoding="utf-8") != text:
        raise ValueError(f"{out} holds a run with other settings; choose another --out, or use {settings}")
    out.mkdir(parents=True, exist_ok=True)
    settings.write_text(text, encoding="utf-8")


def _saved_step(state: Path | None) -> int:
    if state is None:
        return 0
    return int(torch.load(state, map_location="cpu", weights_only=True, mmap=True)["global_step"])
