"""The only inference path: images of any size and class names to a segmentation (method section 7).

Views of the image and class names go in here; `sliding` makes scores of them, in chunks of classes;
a running maximum over the chunks is the argmax. Letters: C classes, R rows of text (class names and
background words), c rows of a chunk, D joint width, H x W pixels.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar, overload

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cascade_clip.checkpoints import Checkpoint, Publishable
from cascade_clip.config import Device, InferenceConfig
from cascade_clip.encoders import Grid
from cascade_clip.errors import ImageError, SettingError
from cascade_clip.files import load_image
from cascade_clip.inference.class_binding import (
    BackgroundPolicy,
    BoundClasses,
    Threshold,
    Words,
    as_vocabulary,
    bind_classes,
)
from cascade_clip.inference.sliding import SlidingWindow
from cascade_clip.models import Segmenter
from cascade_clip.ops import (
    RunningBest,
    best_by_label,
    coarse_size,
    find_device,
    normalise,
    resize_image,
    short_side_shape,
)
from cascade_clip.results import Segmentation
from cascade_clip.vocabulary import Vocabulary

Picture = str | Path | Image.Image | NDArray[Any]
Pictures = list[Picture] | tuple[Picture, ...]
ScoreChunks = Iterator[tuple[int, Tensor]]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

NARROWEST = 100
"""Highest ratio of an image's sides; resizing would make narrower images enormous."""


def _accept_target(method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Accept the keyword `target`, the former name of `bound`."""

    @functools.wraps(method)
    def call(*args: Arguments.args, **named: Arguments.kwargs) -> Result:
        if "target" in named and "bound" not in named:
            named["bound"] = named.pop("target")
        return method(*args, **named)

    return call


class LabelMap(NamedTuple):
    """The winning class of every pixel."""

    labels: Tensor  # (H, W), int64; -1 below a threshold
    scores: Tensor  # (H, W), float32: sigmoid minus calibration
    # (C, h, w), float16: scores of all classes at lower resolution
    class_maps: Tensor | None = None


class Predictor(Publishable):
    """A model with its text side, ready to segment images with any class names."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: InferenceConfig | None = None,
        device: Device = "auto",
    ) -> None:
        """Put a loaded checkpoint on a device; `settings` replaces its inference settings."""
        self.checkpoint = checkpoint
        self.settings = settings or checkpoint.config.inference
        self.device = find_device(device)
        self.model: Segmenter = checkpoint.model.to(self.device).eval()
        self.text_encoder = checkpoint.text_encoder
        if self.text_encoder is not None:
            self.text_encoder.tower.to(self.device)

    def with_settings(
        self, settings: InferenceConfig | None = None, /, **changes: Any
    ) -> Predictor:
        """Return a predictor with the same model and other inference settings.

        Args:
            settings: replaces the settings of this predictor.
            changes: single settings that differ, such as `flip=True`.
        """
        other = copy.copy(self)
        other.settings = dataclasses.replace(settings or self.settings, **changes)
        return other

    @property
    def sliding(self) -> SlidingWindow:
        """The network with what its sliding window needs."""
        return SlidingWindow(self.model, self.checkpoint.config.model, self.settings, self.device)

    @property
    def vocabulary(self) -> Vocabulary:
        """The class names that the model was trained with."""
        return self.checkpoint.vocabulary

    @overload
    def segment(
        self,
        image: Picture,
        classes: Words | None = ...,
        calibration: float = ...,
        *,
        background: Words | None = ...,
        threshold: Threshold | None = ...,
    ) -> Segmentation: ...

    @overload
    def segment(
        self,
        image: Pictures,
        classes: Words | None = ...,
        calibration: float = ...,
        *,
        background: Words | None = ...,
        threshold: Threshold | None = ...,
    ) -> list[Segmentation]: ...

    def segment(
        self,
        image: Picture | Pictures,
        classes: Words | None = None,
        calibration: float = 0.0,
        *,
        background: Words | None = None,
        threshold: Threshold | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Label every pixel of an image with one of the given class names.

        Args:
            image: a path, a Pillow image or an 8-bit array (H, W), (H, W, 3) or (H, W, 4); or a
                list of these.
            classes: names as a list or as "cat, sofa = couch; settee"; default: those of training.
            calibration: subtracted from scores of names seen in training (0.1 in the paper).
            background: words that compete with the names and all mean `background`: a list, "sky,
                wall", a file, or `scenery`.
            threshold: pixels with a lower best score (0..1) are unlabelled, or `background` where
                that is one of the names.

        Returns:
            A `Segmentation`; for a list of images, a list of them.

        Raises:
            FileNotFoundError, ValueError: a missing, damaged or tiny image; empty or double names.
        """
        bound = self.bind(classes, calibration, background=background, threshold=threshold)
        if isinstance(image, (list, tuple)):
            return [self.segment_with(one, bound) for one in image]
        return self.segment_with(image, bound)

    @_accept_target
    def segment_with(self, image: Picture, bound: BoundClasses) -> Segmentation:
        """Label every pixel of one image with names that are bound already."""
        return self.segment_pixels(load_image(image), bound)

    @_accept_target
    def segment_pixels(self, pixels: Tensor, bound: BoundClasses) -> Segmentation:
        """Label every pixel of an 8-bit RGB image (3, H, W)."""
        result = self.label_map(pixels, bound, class_maps=True)
        maps = None if result.class_maps is None else result.class_maps.cpu().numpy()
        labels, scores = result.labels.cpu().numpy(), result.scores.cpu().numpy()
        return Segmentation(labels, bound.names, bound.colors, scores, maps)

    def bind(
        self,
        classes: Words | None = None,
        calibration: float = 0.0,
        text: Tensor | None = None,
        *,
        background: Words | None = None,
        threshold: Threshold | None = None,
    ) -> BoundClasses:
        """Encode class names once, to segment many images with them.

        Args:
            classes: names, as in `segment`.
            calibration: subtracted from scores of seen names, unless every name is seen.
            text: embeddings (C, D) of the names to use instead of the text tower.
            background: background words, or `none`; by default those of the inference settings.
            threshold: lowest score of a labelled pixel, or `none`; by default that of the settings.
        """
        vocabulary = self.vocabulary if classes is None else as_vocabulary(classes)
        policy = BackgroundPolicy.parse(
            self.settings.background if background is None else background,
            self.settings.threshold if threshold is None else threshold,
        )
        seen = self.vocabulary.seen
        return bind_classes(
            vocabulary, self._embed, seen, calibration=calibration, text=text, policy=policy
        )

    @torch.inference_mode()
    @_accept_target
    def label_map(
        self, pixels: Tensor, bound: BoundClasses, *, class_maps: bool = False
    ) -> LabelMap:
        """Find the best class per pixel of an 8-bit image (3, H, W), and coarse `class_maps`."""
        return self._label_map(self._score_chunks(pixels, bound), bound, class_maps=class_maps)

    @torch.inference_mode()
    @_accept_target
    def label_map_of_input(
        self, image: Tensor, bound: BoundClasses, size: Grid | None = None
    ) -> LabelMap:
        """Find the best class per pixel of a resized, normalised image; see `scores_of_input`."""
        return self._label_map(self._score_chunks_of_input(image, bound, size), bound)

    @torch.inference_mode()
    @_accept_target
    def best_rows(
        self, pixels: Tensor, bound: BoundClasses, groups: Sequence[Tensor]
    ) -> list[LabelMap]:
        """Find the best text embedding of every pixel within each non-empty group, bool (R,).

        One pass over an 8-bit image (3, H, W). Labels are rows of text; thresholds do not apply.
        """
        found = [RunningBest() for _ in groups]
        for start, scores in self._score_chunks(pixels, bound):  # (c, H, W)
            for group, best in zip(groups, found, strict=True):
                best.add(scores[group[start : start + len(scores)].to(scores.device)])
        rows = [group.nonzero()[:, 0].to(self.device) for group in groups]
        pairs = zip(rows, found, strict=True)
        return [LabelMap(own[best.rows], best.scores) for own, best in pairs]

    @torch.inference_mode()
    @_accept_target
    def scores(self, pixels: Tensor, bound: BoundClasses) -> Tensor:
        """Return all scores (R, H, W) of an 8-bit image (3, H, W) at once; memory grows with R."""
        return torch.cat([scores for _, scores in self._score_chunks(pixels, bound)])

    @torch.inference_mode()
    @_accept_target
    def scores_of_input(
        self, image: Tensor, bound: BoundClasses, size: Grid | None = None
    ) -> Tensor:
        """Return scores (R, H, W) of a resized, normalised image; `size` defaults to its own."""
        return torch.cat([scores for _, scores in self._score_chunks_of_input(image, bound, size)])

    def _label_map(
        self, chunks: ScoreChunks, bound: BoundClasses, *, class_maps: bool = False
    ) -> LabelMap:
        best, maps = RunningBest(), []
        for _, scores in chunks:  # (c, H, W)
            if class_maps:
                size = coarse_size((scores.shape[-2], scores.shape[-1]))
                small = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)
                maps.append(small[0].half())  # (c, h, w)
            best.add(scores)
        labels = best.rows  # (H, W)
        if bound.labels is not None:
            labels = bound.labels.to(self.device)[labels]
        if bound.threshold is not None:
            labels = torch.where(best.scores < bound.threshold, bound.below, labels)
        coarse = best_by_label(torch.cat(maps), bound.labels, len(bound.names)) if maps else None
        return LabelMap(labels, best.scores, coarse)

    def _score_chunks(self, pixels: Tensor, bound: BoundClasses) -> ScoreChunks:
        size = (pixels.shape[-2], pixels.shape[-1])
        return self.sliding.score_chunks(self._views(pixels), bound, size)

    def _score_chunks_of_input(
        self, image: Tensor, bound: BoundClasses, size: Grid | None
    ) -> ScoreChunks:
        return self.sliding.score_chunks([image], bound, size or (image.shape[-2], image.shape[-1]))

    def _embed(self, vocabulary: Vocabulary) -> Tensor:
        # embeddings that the model was trained with instead of the text tower's
        stored = self.checkpoint.text
        rows = {name.casefold(): index for index, name in enumerate(self.vocabulary.names)}
        missing = [name for name in vocabulary.names if name.casefold() not in rows]
        if self.text_encoder is not None and (stored is None or missing):
            return self.text_encoder.embed(vocabulary.synonyms, self.checkpoint.templates)
        if stored is None or missing:
            known = [] if stored is None else list(self.vocabulary.names)
            raise SettingError(
                f"this model was stored without a text tower and knows no embedding of"
                f" {missing or list(vocabulary.names)}; it knows {known or 'none'}. Give text"
                " embeddings"
            )
        return stored[[rows[name.casefold()] for name in vocabulary.names]]  # (C, D)

    def _views(self, pixels: Tensor) -> list[Tensor]:
        """Resize and normalise the image for every scale of the augmentation: each (3, H', W')."""
        (height, width), patch = pixels.shape[-2:], self.model.patch_size
        name = f"an image of {width} x {height} pixels"
        if min(height, width) < patch:
            raise ImageError(f"{name} is smaller than one patch ({patch} pixels); enlarge it")
        if self.settings.resize and max(height, width) > NARROWEST * min(height, width):
            raise ImageError(f"{name} is narrower than 1 : {NARROWEST}; cut it into pieces")
        config, views = self.checkpoint.config.model, []
        for scale in self.settings.scales:
            resized = pixels
            if self.settings.resize:
                side = max(patch, round(self.settings.window * scale))
                resized = resize_image(pixels, short_side_shape(height, width, side))
            elif scale != 1:
                size = (max(patch, round(height * scale)), max(patch, round(width * scale)))
                resized = resize_image(pixels, size)
            views.append(normalise(resized.to(self.device), config.mean, config.std))  # (3, H', W')
        return views
