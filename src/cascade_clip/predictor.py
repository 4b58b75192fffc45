"""The only inference path: images of any size and class names to a segmentation (method section 7).

Mask logits stay at patch resolution for all classes; upsampling, sigmoid, calibration, window averaging and argmax run in chunks of
classes with a running maximum, so memory does not grow with the number of classes.
Letters: C classes, c classes of a chunk, D joint width, n windows, h x w patches, H x W pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_clip.backbone import Grid
from cascade_clip.checkpoint import Checkpoint, load_checkpoint
from cascade_clip.config import Device, InferenceConfig, Precision
from cascade_clip.model import Segmenter
from cascade_clip.results import Segmentation
from cascade_clip.transforms import load_image, normalise, resize_image, short_side_shape
from cascade_clip.vocabulary import Vocabulary, build_palette, parse_classes

PIXELS_AT_ONCE = 64_000_000
"""Upper bound on class-chunk size times output pixels; smaller chunks are used for large images."""


@dataclass(frozen=True)
class Target:
    """Class names bound to a model: what one call compares the pixels with."""

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    text: Tensor  # (C, D)
    seen: Tensor  # (C,), bool
    calibration: float = 0.0

    def __post_init__(self) -> None:
        """Check that everything counts the same classes."""
        if not len(self.names) == len(self.colors) == len(self.text) == len(self.seen):
            raise ValueError(f"{len(self.names)} names need as many colours and rows of text, got {len(self.colors)} and {len(self.text)}")


class Window(NamedTuple):
    """One window of the resized image; it may stick out right and below where the image is smaller."""

    top: int
    left: int
    height: int
    width: int


class WindowLogits(NamedTuple):
    """Mask logits of all windows of one image."""

    logits: Tensor  # (n, C, h, w)
    windows: tuple[Window, ...]
    canvas: Grid  # size of the resized image


class LabelMap(NamedTuple):
    """The winning class of every pixel."""

    labels: Tensor  # (H, W), int64
    scores: Tensor  # (H, W), float32: sigmoid minus calibration


class Predictor:
    """A model with its text side, ready to segment images with any class names."""

    def __init__(self, checkpoint: Checkpoint, settings: InferenceConfig | None = None, device: Device = "auto") -> None:
        """Put a loaded checkpoint on a device; `settings` replaces the inference settings that it carries."""
        self.checkpoint = checkpoint
        self.settings = settings or checkpoint.config.inference
        self.device = find_device(device)
        self.model: Segmenter = checkpoint.model.to(self.device).eval()
        self.text_encoder = checkpoint.text_encoder
        if self.text_encoder is not None:
            self.text_encoder.tower.to(self.device)

    @property
    def vocabulary(self) -> Vocabulary:
        """The class names that the model was trained with."""
        return self.checkpoint.vocabulary

    def segment(self, image: Any, classes: str | Sequence[str] | Vocabulary | None = None, calibration: float = 0.0) -> Segmentation:
        """Label every pixel of one image with one of the given class names.

        Args:
            image: a path, a Pillow image, or an array (H, W), (H, W, 3) or (H, W, 4) of 8-bit values.
            classes: names as a list or as "cat, sofa = couch; settee"; by default the names of the training vocabulary.
            calibration: subtracted from the scores of names that were seen in training (the published evaluation uses 0.1).

        Raises:
            FileNotFoundError, ValueError: no such image, a broken one, or one smaller than a patch; empty or duplicate names.
        """
        pixels = load_image(image)  # (3, H, W), uint8
        result = self.label_map(pixels, target := self.bind(classes, calibration))
        return Segmentation(result.labels.cpu().numpy(), target.names, target.colors, result.scores.cpu().numpy())

    def bind(self, classes: str | Sequence[str] | Vocabulary | None = None, calibration: float = 0.0, text: Tensor | None = None) -> Target:
        """Encode class names once, to segment many images with them.

        Args:
            classes: names, as in `segment`.
            calibration: subtracted from scores of seen names, unless every name is seen.
            text: embeddings (C, D) to use instead of the text tower.
        """
        vocabulary = self._vocabulary(classes)
        rows = self._embed(vocabulary) if text is None else text
        known = {name.casefold() for name in self.vocabulary.seen}
        seen = torch.tensor([name.casefold() in known for name in vocabulary.names])  # (C,)
        return Target(vocabulary.names, vocabulary.colors, rows, seen, 0.0 if bool(seen.all()) else calibration)

    @torch.inference_mode()
    def label_map(self, pixels: Tensor, target: Target) -> LabelMap:
        """The winning class of every pixel of an 8-bit image (3, H, W)."""
        return self.label_map_of_input(self._prepare(pixels), target, (pixels.shape[-2], pixels.shape[-1]))

    @torch.inference_mode()
    def label_map_of_input(self, image: Tensor, target: Target, size: Grid | None = None) -> LabelMap:
        """The winning class per pixel for an image that is resized and normalised already, (3, H', W'); default size: its own."""
        size = size or (image.shape[-2], image.shape[-1])
        best: Tensor | None = None
        labels = torch.zeros(size, dtype=torch.int64, device=self.device)
        for start, scores in self._score_chunks(image, target, size):  # (c, H, W)
            high, index = scores.max(dim=0)  # (H, W)
            if best is None:
                best, labels = high, index
                continue
            wins = high > best  # (H, W)
            best = torch.where(wins, high, best)
            labels = torch.where(wins, index + start, labels)
        assert best is not None
        return LabelMap(labels, best)

    @torch.inference_mode()
    def scores(self, pixels: Tensor, target: Target) -> Tensor:
        """Scores of all classes at once, (C, H, W), for an 8-bit image (3, H, W); memory grows with the number of classes."""
        return self.scores_of_input(self._prepare(pixels), target, (pixels.shape[-2], pixels.shape[-1]))

    @torch.inference_mode()
    def scores_of_input(self, image: Tensor, target: Target, size: Grid | None = None) -> Tensor:
        """Scores (C, H, W) for an image that is resized and normalised already, (3, H', W'); default output size: its own."""
        size = size or (image.shape[-2], image.shape[-1])
        return torch.cat([scores for _, scores in self._score_chunks(image, target, size)])

    def _vocabulary(self, classes: str | Sequence[str] | Vocabulary | None) -> Vocabulary:
        if classes is None:
            return self.vocabulary
        if isinstance(classes, Vocabulary):
            return classes
        if isinstance(classes, str):
            return parse_classes(classes)
        names = tuple(str(name).strip() for name in classes)
        return Vocabulary(names, tuple((name,) for name in names), build_palette(len(names)))

    def _embed(self, vocabulary: Vocabulary) -> Tensor:
        stored = self.checkpoint.text  # embeddings that the model was trained with instead of the text tower's
        rows = {name.casefold(): index for index, name in enumerate(self.vocabulary.names)}
        missing = [name for name in vocabulary.names if name.casefold() not in rows]
        if self.text_encoder is not None and (stored is None or missing):
            return self.text_encoder.embed(vocabulary.synonyms, self.checkpoint.templates)
        if stored is None or missing:
            raise ValueError(
                f"this model was stored without a text tower and knows no embedding of {missing or list(vocabulary.names)}; "
                f"it knows {list(self.vocabulary.names) if stored is not None else 'none'}. Give text embeddings as an array"
            )
        return stored[[rows[name.casefold()] for name in vocabulary.names]]  # (C, D)

    def _prepare(self, pixels: Tensor) -> Tensor:
        """Resize the short side to the window, if so set, and normalise: (3, H', W')."""
        height, width = pixels.shape[-2:]
        patch = self.model.patch_size
        if min(height, width) < patch:
            raise ValueError(f"an image of {width} x {height} pixels is smaller than one patch ({patch} pixels); give a larger one")
        if self.settings.resize:
            pixels = resize_image(pixels, short_side_shape(height, width, self.settings.window))  # (3, H', W')
        config = self.checkpoint.config.model
        return normalise(pixels.to(self.device), config.mean, config.std)

    def _score_chunks(self, image: Tensor, target: Target, size: Grid) -> Iterator[tuple[int, Tensor]]:
        """Scores (c, H, W) of one chunk of classes after another, with the index of their first class."""
        found = self._window_logits(image.to(self.device), target.text.to(self.device))
        chunk = max(1, min(self.settings.class_chunk, PIXELS_AT_ONCE // max(size[0] * size[1], found.canvas[0] * found.canvas[1])))
        shift = (target.seen.float() * target.calibration).to(self.device)  # (C,)
        for start in range(0, len(target.names), chunk):
            scores = self._canvas_scores(found, slice(start, start + chunk), shift[start : start + chunk])  # (c, H', W')
            if size != found.canvas:
                scores = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]  # (c, H, W)
            yield start, scores

    def _window_logits(self, image: Tensor, text: Tensor) -> WindowLogits:
        """Run every window through the network, a few at a time."""
        canvas: Grid = (image.shape[-2], image.shape[-1])
        windows = list_windows(canvas, self.settings.window, self.settings.stride)
        parts = []
        for start in range(0, len(windows), self.settings.window_batch):
            batch = torch.stack([self._cut(image, window) for window in windows[start : start + self.settings.window_batch]])
            with torch.autocast(self.device.type, dtype=autocast_type(self.settings.precision), enabled=self.settings.precision != "fp32"):
                parts.append(self.model(batch, text))  # (windows, C, h, w)
        return WindowLogits(torch.cat(parts), windows, canvas)

    def _cut(self, image: Tensor, window: Window) -> Tensor:
        side = self.settings.window
        part = image[:, window.top : window.top + window.height, window.left : window.left + window.width]
        return F.pad(part, (0, side - window.width, 0, side - window.height))  # (3, window, window)

    def _canvas_scores(self, found: WindowLogits, classes: slice, shift: Tensor) -> Tensor:
        """Average the windows' scores of a chunk of classes over the resized image: (c, H', W')."""
        total = found.logits.new_zeros(len(shift), *found.canvas, dtype=torch.float32)  # (c, H', W')
        count = found.logits.new_zeros(found.canvas, dtype=torch.float32)  # (H', W')
        for logits, window in zip(found.logits, found.windows, strict=True):
            rows, columns = slice(window.top, window.top + window.height), slice(window.left, window.left + window.width)
            scores = self._window_scores(logits[classes], shift)  # (c, window, window)
            total[:, rows, columns] += scores[:, : window.height, : window.width]
            count[rows, columns] += 1
        return total / count

    def _window_scores(self, logits: Tensor, shift: Tensor) -> Tensor:
        """Mask logits (c, h, w) of one window to scores (c, window, window)."""
        side, patch = self.settings.window, self.model.patch_size
        score_side = self.settings.score_size or side
        padded = math.ceil(side / patch) * patch
        full = round(padded * score_side / side)
        masks = F.interpolate(logits[None].float(), size=(full, full), mode="bilinear", align_corners=False)  # (1, c, full, full)
        scores = masks[..., :score_side, :score_side].sigmoid() - shift[:, None, None]  # (1, c, score_side, score_side)
        if score_side != side:
            scores = F.interpolate(scores, size=(side, side), mode="bilinear", align_corners=False)
        return scores[0]  # (c, window, window)


def list_windows(canvas: Grid, side: int, stride: int) -> tuple[Window, ...]:
    """Windows that cover an image, row by row; the last one in each direction is shifted back inside."""
    tops, lefts = _starts(canvas[0], side, stride), _starts(canvas[1], side, stride)
    return tuple(Window(top, left, min(side, canvas[0]), min(side, canvas[1])) for top in tops for left in lefts)


def _starts(length: int, side: int, stride: int) -> list[int]:
    count = max(math.ceil((length - side) / stride), 0) + 1
    return [max(min(index * stride, length - side), 0) for index in range(count)]


def find_device(device: Device) -> torch.device:
    """The device of that name; `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ValueError: a device that this machine or this build of torch does not have.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if device not in available:
        raise ValueError(f"unknown device {device!r}; choose auto, cpu, cuda or mps")
    if not available[device]:
        raise ValueError(f"device {device} is not available here; choose one of {[name for name, there in available.items() if there]}")
    return torch.device(device)


def autocast_type(precision: Precision) -> torch.dtype:
    """The type of matrix products for a precision setting."""
    return torch.float16 if precision == "fp16" else torch.bfloat16


def load_predictor(
    source: str | Path, device: Device = "auto", precision: Precision | None = None, clip_weights: str | None = None
) -> Predictor:
    """Load a checkpoint folder, ready to segment.

    Args:
        source: a checkpoint folder, a run folder, or a packaged model: `mini`, `mini-last`.
        device: where to run; `auto` takes CUDA, then MPS, then the CPU.
        precision: number format of the network instead of the checkpoint's own.
        clip_weights: CLIP weights (file or tag) instead of the place that the checkpoint names; the hash is still compared.
    """
    checkpoint = load_checkpoint(source, clip_weights)
    settings = checkpoint.config.inference
    if precision is not None:
        settings = dataclasses.replace(settings, precision=precision)
    return Predictor(checkpoint, settings, device)
