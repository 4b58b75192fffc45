"""Several processes, started by torchrun, that share the images of one evaluation."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cascade_clip.errors import SettingError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """One process among those that work together; by default it is alone."""

    rank: int = 0
    """Number of this process; 0 prints and writes."""
    world: int = 1
    """Number of processes."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise SettingError(f"rank must lie in 0..{self.world - 1}, got {self.rank}")

    def share(
        self, length: int, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[int]:
        """Yield every world-th index below `length`, so that no process gets all easy images; after
        each, `progress` is called with (done, total)."""
        own = range(self.rank, length, self.world)
        for done, index in enumerate(own, 1):
            yield index
            if progress is not None:
                progress(done, len(own))

    def sum(self, counts: Tensor) -> Tensor:
        """The sum of every process's whole numbers, on the device and with the shape of its own."""
        if self.world == 1:
            return counts
        total = counts.cpu()  # gloo sums on the host, whatever device the counts were made on
        total = total.clone() if total is counts else total
        dist.all_reduce(total)
        return total.to(counts.device)

    def gather(self, value: Value) -> list[Value]:
        """Every process's value, in the order of ranks; what is sent is pickled."""
        if self.world == 1:
            return [value]
        found: list[Value | None] = [None] * self.world
        dist.all_gather_object(found, value)
        return [item for item in found if item is not None]


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Join the processes that torchrun started (RANK, WORLD_SIZE and LOCAL_RANK), if it did.

    Each process takes the CUDA device of its local number, if there are any.

    Raises:
        ValueError: variables that are missing or no numbers.
    """
    world = _read("WORLD_SIZE", 1)
    if world <= 1:
        yield Ranks()
        return
    ranks = Ranks(_read("RANK"), world)
    if torch.cuda.is_available():
        torch.cuda.set_device(_read("LOCAL_RANK", 0) % torch.cuda.device_count())
    dist.init_process_group("gloo", rank=ranks.rank, world_size=world)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def _read(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    try:
        return int(text)
    except ValueError:
        message = f"the environment variable {name} must be a whole number, got {text!r}"
        raise SettingError(f"{message}; start with torchrun") from None
