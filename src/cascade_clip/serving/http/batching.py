"""Several images through the network together: each runs the one inference path of `Predictor` in a
thread of its own, and the forward passes that all of them have reached become one."""

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from cascade_clip.encoders import TextEncoder
from cascade_clip.inference import BoundClasses, Predictor
from cascade_clip.models import Segmenter
from cascade_clip.results import Segmentation

T = TypeVar("T")


class RememberedText(TextEncoder):
    """A text encoder that keeps the embeddings of the last class lists in memory, none on disk."""

    def __init__(self, encoder: TextEncoder, size: int) -> None:
        super().__init__(encoder.tower, encoder.tokenizer, encoder.fingerprint)
        self.keep = False
        self.remembered = lru_cache(size)(super().embed)

    def embed(self, words: Sequence[Sequence[str]], templates: Sequence[str]) -> Tensor:
        """Return text embeddings (C, D), as `TextEncoder.embed` does."""
        return self.remembered(tuple(map(tuple, words)), tuple(templates))


class SharedForward:
    """A stand-in for a network: calls of several threads with the same text become one call."""

    def __init__(self, model: Callable[[Tensor, Tensor], Tensor], members: int) -> None:
        """Serve `members` threads, each of which must call `leave` at its end."""
        self._model, self._members = model, members
        self._calls: list[tuple[Tensor, Tensor]] = []
        self._results: dict[int, Tensor | Exception] = {}
        self._changed = threading.Condition()

    def __getattr__(self, name: str) -> Any:
        """Return the network's own attributes."""
        return getattr(self._model, name)

    def __call__(self, images: Tensor, text: Tensor) -> Tensor:
        """Wait until every other thread calls too or has left, then run one pass for them all."""
        with self._changed:
            self._calls.append((images, text))
            self._changed.notify_all()
            while id(images) not in self._results:
                if len(self._calls) == self._members:
                    self._run()
                    self._changed.notify_all()
                else:
                    self._changed.wait()
            result = self._results.pop(id(images))
        if isinstance(result, Exception):
            raise result
        return result

    def leave(self) -> None:
        """Take note that the calling thread makes no more calls."""
        with self._changed:
            self._members -= 1
            self._changed.notify_all()

    def _run(self) -> None:
        """Run the calls that wait, those of one size together."""
        sizes: dict[torch.Size, list[Tensor]] = {}
        text = self._calls[0][1]
        for images, _ in self._calls:
            sizes.setdefault(images.shape[1:], []).append(images)
        self._calls = []
        for group in sizes.values():
            found = attempt(self._run_group, group, text)
            results = [found] * len(group) if isinstance(found, Exception) else found
            self._results |= zip(map(id, group), results, strict=True)

    def _run_group(self, group: list[Tensor], text: Tensor) -> tuple[Tensor, ...]:
        logits = self._model(torch.cat(group), text)
        return torch.split(logits, [len(images) for images in group])


def segment_together(
    predictor: Predictor, images: Sequence[Tensor], bound: BoundClasses, pool: ThreadPoolExecutor
) -> list[Segmentation | Exception]:
    """Segment 8-bit images (3, H, W) of any sizes with bound class names; errors take the place of
    results.

    A single image gives exactly what `Predictor.segment_pixels` gives; of several the scores agree
    to about 1e-5, since the matrix products add in another order.

    Args:
        predictor: the model.
        images: the images.
        bound: class names, bound.
        pool: must have a free thread for every image.
    """
    if len(images) == 1:
        return [attempt(predictor.segment_pixels, images[0], bound)]
    shared = SharedForward(predictor.model, len(images))
    together = copy.copy(predictor)
    together.model = cast(Segmenter, shared)

    def run(pixels: Tensor) -> Segmentation | Exception:
        try:
            return attempt(together.segment_pixels, pixels, bound)
        finally:
            shared.leave()

    return list(pool.map(run, images))


def attempt(function: Callable[..., T], *values: Any) -> T | Exception:
    """Call a function and return its error, which concerns one request, instead of raising it."""
    try:
        return function(*values)
    except Exception as error:
        return error
