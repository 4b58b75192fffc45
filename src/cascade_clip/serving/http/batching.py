"""Several pictures through the network together: each runs the one inference path of `Predictor` in
a thread of its own, and the forward passes that all of them have reached become one.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from cascade_clip.encoders import TextEncoder
from cascade_clip.inference import BoundClasses, Predictor
from cascade_clip.models import Segmenter
from cascade_clip.results import Segmentation


class RememberedText(TextEncoder):
    """A text encoder that keeps the embeddings of the last class lists in memory and writes none to
    disk."""

    def __init__(self, encoder: TextEncoder, size: int) -> None:
        super().__init__(encoder.tower, encoder.tokenizer, encoder.fingerprint)
        self.keep = False
        self.remembered = lru_cache(size)(super().embed)

    def embed(self, words: Sequence[Sequence[str]], templates: Sequence[str]) -> Tensor:
        """Text embeddings (C, D), as `TextEncoder.embed` gives them."""
        return self.remembered(tuple(map(tuple, words)), tuple(templates))


class SharedForward:
    """Stands in for a network: calls with the same text that several threads have reached become
    one call."""

    def __init__(self, model: Callable[[Tensor, Tensor], Tensor], members: int) -> None:
        """Serve `members` threads, each of which must say `leave` at its end."""
        self._model, self._members = model, members
        self._calls: list[tuple[Tensor, Tensor]] = []
        self._answers: dict[int, Tensor | Exception] = {}
        self._changed = threading.Condition()

    def __getattr__(self, name: str) -> Any:
        """Everything else is the network's own."""
        return getattr(self._model, name)

    def __call__(self, images: Tensor, text: Tensor) -> Tensor:
        """Wait until every other thread calls too or has left, then answer all with one forward
        pass."""
        with self._changed:
            self._calls.append((images, text))
            self._changed.notify_all()
            while id(images) not in self._answers:
                if len(self._calls) == self._members:
                    self._run()
                    self._changed.notify_all()
                else:
                    self._changed.wait()
            answer = self._answers.pop(id(images))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def leave(self) -> None:
        """The calling thread asks nothing more."""
        with self._changed:
            self._members -= 1
            self._changed.notify_all()

    def _run(self) -> None:
        """Answer the calls that wait, those of one size together."""
        sizes: dict[torch.Size, list[Tensor]] = {}
        text = self._calls[0][1]
        for images, _ in self._calls:
            sizes.setdefault(images.shape[1:], []).append(images)
        self._calls = []
        for group in sizes.values():
            try:
                found: Sequence[Tensor | Exception] = self._model(torch.cat(group), text).split(
                    [len(images) for images in group]
                )
            except Exception as error:
                found = [error] * len(group)
            self._answers |= {
                id(images): answer for images, answer in zip(group, found, strict=True)
            }


def segment_together(
    predictor: Predictor, pictures: Sequence[Tensor], bound: BoundClasses, pool: ThreadPoolExecutor
) -> list[Segmentation | Exception]:
    """Segment 8-bit pictures (3, H, W) of any sizes with bound class names; errors take the place
    of results.

    One picture alone gives exactly what `Predictor.segment_pixels` gives; of several the scores
    agree to about 1e-5, since the matrix products add in another order.

    Args:
        predictor: the model.
        pictures: the pictures.
        bound: class names, bound.
        pool: must have a free thread for every picture.
    """
    if len(pictures) == 1:
        return [_attempt(predictor, pictures[0], bound)]
    shared = SharedForward(predictor.model, len(pictures))
    together = copy.copy(predictor)
    together.model = cast(Segmenter, shared)

    def run(pixels: Tensor) -> Segmentation | Exception:
        try:
            return _attempt(together, pixels, bound)
        finally:
            shared.leave()

    return list(pool.map(run, pictures))


def _attempt(predictor: Predictor, pixels: Tensor, bound: BoundClasses) -> Segmentation | Exception:
    try:
        return predictor.segment_pixels(pixels, bound)
    except Exception as error:
        return error
