"""The order in which training walks through a dataset, and the crops that it sees."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from cascade_clip.data.augmentation import TrainTransform
from cascade_clip.data.samples import HasSamples
from cascade_clip.errors import DataError, SettingError


class TrainingSet(Dataset[tuple[Tensor, Tensor]]):
    """Augmented crops of a dataset, asked for by (position in the run, index).

    The randomness of a crop depends on the seed, the position and the index only: not on workers,
    ranks or what came before.
    """

    def __init__(self, dataset: HasSamples, transform: TrainTransform, seed: int = 0) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Image float32 (3, crop, crop) and labels int64 (crop, crop) of one (position, index)."""
        position, index = place
        sample = self.dataset.sample(index)
        return self.transform(sample.image, sample.labels, _generator(self.seed, position, index))


def _generator(*parts: int) -> torch.Generator:
    """A generator that is a function of some whole numbers, and of how many they are."""
    entropy = [len(parts), *(part % 2**64 for part in parts)]
    mixed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]) >> 1)  # torch wants it below 2**63


class StepSampler(Sampler[tuple[int, int]]):
    """Pairs (position in the run, index) for `TrainingSet`, each epoch in a new random order.

    Positions count images from the start of the run; position p belongs to step p // batch_size.
    Rank r takes the r-th contiguous slice of every global batch, so that a step sees the same pairs
    whatever the number of ranks.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        steps: int = 0,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Set up the order.

        Args:
            length: images in the dataset.
            batch_size: images of one step over all ranks.
            seed: seed of the order.
            steps: steps of the whole run; 0 means without end.
            start: images that the run has used already, over all ranks; whole batches. May be set
                later, too.
            rank: number of this rank.
            world: number of ranks.
        """
        if length < 1:
            raise DataError(f"the dataset must hold at least 1 image, got {length}")
        if batch_size < 1 or world < 1 or batch_size % world:
            raise SettingError(
                f"a batch of {batch_size} cannot be shared by {world} ranks; make it a multiple"
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank must lie in 0..{world - 1}, got {rank}")
        if steps < 0:
            raise SettingError(f"steps must be 0 (without end) or more, got {steps}")
        self.length, self.batch_size, self.seed, self.steps = length, batch_size, seed, steps
        self.rank, self.world = rank, world
        self.start = start

    @property
    def start(self) -> int:
        """Images that the run has used already, over all ranks."""
        return self._start

    @start.setter
    def start(self, value: int) -> None:
        if value < 0 or value % self.batch_size:
            raise ValueError(
                f"start must be a multiple of the batch size {self.batch_size}, got {value}"
            )
        self._start = value

    def __len__(self) -> int:
        if self.steps == 0:
            raise TypeError("a sampler without end has no length; set steps")
        return max(0, self.steps * self.batch_size - self.start) // self.world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Pairs from `start` on."""
        share = self.batch_size // self.world
        step = self.start // self.batch_size
        epoch, order = -1, np.empty(0, dtype=np.int64)
        while self.steps == 0 or step < self.steps:
            first = step * self.batch_size + self.rank * share
            for position in range(first, first + share):
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = self._order(epoch)
                yield position, int(order[position % self.length])
            step += 1

    def _order(self, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return torch.randperm(self.length, generator=_generator(self.seed, epoch)).numpy()
