"""The batches of a run, the same for any number of workers, devices and interruptions."""

import contextlib
import itertools
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from torch.utils.data import DataLoader

from cascade_clip.config import Config
from cascade_clip.data import LabelledImages, Sample, StepSampler, TrainingSet, TrainTransform
from cascade_clip.training.protocols import TrainingProtocol, build_protocol


class HiddenLabels:
    """A dataset whose labels hold only what the protocol may know, already before cropping."""

    def __init__(self, dataset: LabelledImages, protocol: TrainingProtocol) -> None:
        self.dataset, self.protocol = dataset, protocol

    def __len__(self) -> int:
        return len(self.dataset)

    def sample(self, index: int) -> Sample:
        """Return one image with labels (H, W) that the protocol may know."""
        sample = self.dataset.sample(index)
        return replace(sample, labels=self.protocol.hide(sample.labels))


def training_set(config: Config, dataset: LabelledImages) -> TrainingSet:
    """Return augmented crops of a dataset, with labels as the protocol may see them."""
    protocol = build_protocol(config.train, torch.tensor(dataset.vocabulary.seen_mask))
    transform = TrainTransform(config.train.augment, config.model.mean, config.model.std)
    return TrainingSet(HiddenLabels(dataset, protocol), transform, seed=config.train.seed)


class TrainingBatches(lightning.LightningDataModule):
    """Batches of augmented crops, from any step on."""

    def __init__(self, config: Config, dataset: LabelledImages, start: int) -> None:
        """Serve the batches of a run; `start` counts images that it has used already."""
        super().__init__()
        self.config, self.dataset, self.start = config, dataset, start

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of this rank, from `start` on."""
        train, workers = self.config.train, self.config.data.workers
        return DataLoader(
            training_set(self.config, self.dataset),
            batch_size=train.batch_size // self._world(),
            sampler=self._order(self.start),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_signals_to_the_run if workers else None,
        )

    def paths(self, step: int) -> list[Path]:
        """Return the files of the images that this rank gets in a step counted from 0."""
        size = self.config.train.batch_size
        places = itertools.islice(self._order(step * size), size // self._world())
        return [self.dataset.sample(index).path for _, index in places]

    def _order(self, start: int) -> StepSampler:
        train, world = self.config.train, self._world()
        rank = self.trainer.global_rank if self.trainer else 0
        return StepSampler(
            len(self.dataset), train.batch_size, train.seed, start=start, rank=rank, world=world
        )

    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1


def _leave_signals_to_the_run(worker: int) -> None:
    """Ignore a scheduler's signals: loading goes on until the step has ended and is saved."""
    for name in ("SIGTERM", "SIGUSR1"):
        with contextlib.suppress(AttributeError):  # Windows knows only the first
            signal.signal(getattr(signal, name), signal.SIG_IGN)
