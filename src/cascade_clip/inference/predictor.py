"""The only inference path: images of any size and class names to a segmentation (method section 7).

Mask logits stay at patch resolution for all classes; upsampling, sigmoid, calibration, window
averaging and argmax run in chunks of classes with a running maximum, so memory does not grow with
the number of classes. Letters: C classes, c classes of a chunk, D joint width, n windows, h x w
patches, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cascade_clip.checkpoints import Checkpoint, Publishable
from cascade_clip.config import Device, InferenceConfig, find_part
from cascade_clip.encoders import Grid
from cascade_clip.errors import ImageError, SettingError
from cascade_clip.files import load_image
from cascade_clip.inference.class_binding import (
    Target,
    Threshold,
    Words,
    as_vocabulary,
    build_target,
)
from cascade_clip.inference.windows import Window, cut_windows, list_windows
from cascade_clip.models import Segmenter
from cascade_clip.ops import (
    RunningBest,
    WindowImage,
    autocast_type,
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

NARROWEST = 100
"""Times that one side of an image may be as long as the other; resizing makes narrower ones
enormous."""

COPIES = 4
"""Full-size score tensors of a chunk that live at once."""

PIXELS_AT_ONCE = {"cpu": 2**22}
"""Upper bound on class-chunk size times output pixels; smaller chunks are used for large images. On
a CPU, what its cache holds."""

OTHER_PIXELS_AT_ONCE = 64_000_000
"""The same on other devices."""


class WindowLogits(NamedTuple):
    """Mask logits of all windows of one view of an image."""

    logits: Tensor  # (n, R, h, w)
    windows: tuple[Window, ...]
    image: Tensor  # (3, H', W'), the resized and normalised image
    mirrored: bool = False

    @property
    def canvas(self) -> Grid:
        """Size of the resized image."""
        return self.image.shape[-2], self.image.shape[-1]


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
        """Put a loaded checkpoint on a device; `settings` replaces the inference settings that it
        carries."""
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
            image: a path, a Pillow image, or an array (H, W), (H, W, 3) or (H, W, 4) of 8-bit
                values; or a list of these.
            classes: names as a list or as "cat, sofa = couch; settee"; by default the names of the
                training vocabulary.
            calibration: subtracted from the scores of names that were seen in training (the
                published evaluation uses 0.1).
            background: background words that compete with the names and all mean `background`: a
                list, "sky, wall", a file, or `scenery`.
            threshold: pixels whose best score (0..1) lies below are left unlabelled, or
                `background` where that is one of the names.

        Returns:
            A `Segmentation`; for a list of images, a list of them.

        Raises:
            FileNotFoundError, ValueError: no such image, a broken one, or one smaller than a patch;
                empty or duplicate names.
        """
        target = self.bind(classes, calibration, background=background, threshold=threshold)
        if isinstance(image, (list, tuple)):
            return [self.segment_with(one, target) for one in image]
        return self.segment_with(image, target)

    def segment_with(self, image: Picture, target: Target) -> Segmentation:
        """Label every pixel of one image with names that are bound already."""
        return self.segment_pixels(load_image(image), target)

    def segment_pixels(self, pixels: Tensor, target: Target) -> Segmentation:
        """Label every pixel of an 8-bit RGB image (3, H, W)."""
        result = self.label_map(pixels, target, class_maps=True)
        maps = None if result.class_maps is None else result.class_maps.cpu().numpy()
        return Segmentation(
            result.labels.cpu().numpy(),
            target.names,
            target.colors,
            result.scores.cpu().numpy(),
            maps,
        )

    def bind(
        self,
        classes: Words | None = None,
        calibration: float = 0.0,
        text: Tensor | None = None,
        *,
        background: Words | None = None,
        threshold: Threshold | None = None,
    ) -> Target:
        """Encode class names once, to segment many images with them.

        Args:
            classes: names, as in `segment`.
            calibration: subtracted from scores of seen names, unless every name is seen.
            text: embeddings (C, D) of the names to use instead of the text tower.
            background: background words, or `none`; by default those of the inference settings.
            threshold: lowest score of a labelled pixel, or `none`; by default that of the inference
                settings.
        """
        return build_target(
            self.vocabulary if classes is None else as_vocabulary(classes),
            self._embed,
            self.vocabulary.seen,
            calibration=calibration,
            text=text,
            background=self.settings.background if background is None else background,
            threshold=self.settings.threshold if threshold is None else threshold,
        )

    @torch.inference_mode()
    def label_map(self, pixels: Tensor, target: Target, *, class_maps: bool = False) -> LabelMap:
        """The winning class of every pixel of an 8-bit image (3, H, W); with `class_maps` also
        coarse score maps of all classes."""
        return self._label_map(
            self._views(pixels), target, (pixels.shape[-2], pixels.shape[-1]), class_maps=class_maps
        )

    @torch.inference_mode()
    def label_map_of_input(
        self, image: Tensor, target: Target, size: Grid | None = None
    ) -> LabelMap:
        """The winning class per pixel for an image that is resized and normalised already, (3, H',
        W'); default size: its own."""
        return self._label_map([image], target, size or (image.shape[-2], image.shape[-1]))

    @torch.inference_mode()
    def best_rows(self, pixels: Tensor, target: Target, groups: Sequence[Tensor]) -> list[LabelMap]:
        """The best row of text of every pixel of an 8-bit image (3, H, W) within each group of
        rows, bool (R,), none of them empty.

        All in one pass; labels are rows of the target, whatever label or threshold belongs to them.
        """
        found = [RunningBest() for _ in groups]
        # (c, H, W)
        for start, scores in self._score_chunks(
            self._views(pixels), target, (pixels.shape[-2], pixels.shape[-1])
        ):
            for group, best in zip(groups, found, strict=True):
                best.add(scores[group[start : start + len(scores)].to(scores.device)])
        rows = [group.nonzero()[:, 0].to(self.device) for group in groups]
        return [
            LabelMap(own[best.rows], best.scores) for own, best in zip(rows, found, strict=True)
        ]

    @torch.inference_mode()
    def scores(self, pixels: Tensor, target: Target) -> Tensor:
        """Scores of all rows of a target at once, (R, H, W), for an 8-bit image (3, H, W); memory
        grows with their number."""
        size = (pixels.shape[-2], pixels.shape[-1])
        return torch.cat(
            [scores for _, scores in self._score_chunks(self._views(pixels), target, size)]
        )

    @torch.inference_mode()
    def scores_of_input(self, image: Tensor, target: Target, size: Grid | None = None) -> Tensor:
        """Scores (R, H, W) for an image that is resized and normalised already, (3, H', W');
        default output size: its own."""
        size = size or (image.shape[-2], image.shape[-1])
        return torch.cat([scores for _, scores in self._score_chunks([image], target, size)])

    def _label_map(
        self, views: list[Tensor], target: Target, size: Grid, *, class_maps: bool = False
    ) -> LabelMap:
        best, maps = RunningBest(), []
        for _, scores in self._score_chunks(views, target, size):  # (c, H, W)
            if class_maps:
                maps.append(
                    F.interpolate(
                        scores[None], size=coarse_size(size), mode="bilinear", align_corners=False
                    )[0].half()
                )
            best.add(scores)
        labels = best.rows  # (H, W)
        if target.labels is not None:
            labels = target.labels.to(self.device)[labels]
        if target.threshold is not None:
            labels = torch.where(best.scores < target.threshold, target.below, labels)
        return LabelMap(
            labels,
            best.scores,
            best_by_label(torch.cat(maps), target.labels, len(target.names)) if maps else None,
        )

    def _embed(self, vocabulary: Vocabulary) -> Tensor:
        # embeddings that the model was trained with instead of the text tower's
        stored = self.checkpoint.text
        rows = {name.casefold(): index for index, name in enumerate(self.vocabulary.names)}
        missing = [name for name in vocabulary.names if name.casefold() not in rows]
        if self.text_encoder is not None and (stored is None or missing):
            return self.text_encoder.embed(vocabulary.synonyms, self.checkpoint.templates)
        if stored is None or missing:
            raise SettingError(
                "this model was stored without a text tower and knows no embedding of"
                f" {missing or list(vocabulary.names)}; it knows"
                f" {list(self.vocabulary.names) if stored is not None else 'none'}. Give text"
                " embeddings as an array"
            )
        return stored[[rows[name.casefold()] for name in vocabulary.names]]  # (C, D)

    def _views(self, pixels: Tensor) -> list[Tensor]:
        """The image in every size of the test-time augmentation, resized and normalised: each (3,
        H', W')."""
        height, width = pixels.shape[-2:]
        patch = self.model.patch_size
        if min(height, width) < patch:
            raise ImageError(
                f"an image of {width} x {height} pixels is smaller than one patch ({patch} pixels);"
                " give a larger one"
            )
        if self.settings.resize and max(height, width) > NARROWEST * min(height, width):
            raise ImageError(
                f"an image of {width} x {height} pixels is narrower than 1 : {NARROWEST}; cut it to"
                " pieces"
            )
        config = self.checkpoint.config.model
        views = []
        for scale in self.settings.scales:
            resized = pixels
            if self.settings.resize:
                resized = resize_image(
                    pixels,
                    short_side_shape(
                        height, width, max(patch, round(self.settings.window * scale))
                    ),
                )
            elif scale != 1:
                resized = resize_image(
                    pixels, (max(patch, round(height * scale)), max(patch, round(width * scale)))
                )
            views.append(normalise(resized.to(self.device), config.mean, config.std))  # (3, H', W')
        return views

    def _score_chunks(
        self, views: list[Tensor], target: Target, size: Grid
    ) -> Iterator[tuple[int, Tensor]]:
        """Scores (c, H, W) of one chunk of rows after another, with the index of their first; the
        mean over views and mirror images."""
        found = []
        for view in views:
            image, text = view.to(self.device), target.text.to(self.device)
            found.append(self._window_logits(image, text))
            if self.settings.flip:
                found.append(self._window_logits(image.flip(-1), text)._replace(mirrored=True))
        # (R,)
        shift = (
            (target.seen.float() * target.calibration).to(self.device)
            if target.calibration
            else None
        )
        chunk = self._chunk(
            max(area(canvas) for canvas in [size, *(logits.canvas for logits in found)])
        )
        for start in range(0, len(target.text), chunk):
            part = slice(start, start + chunk)
            part_shift = None if shift is None else shift[part]
            scores = self._view_scores(found[0], part, part_shift, size)  # (c, H, W)
            for other in found[1:]:
                scores = scores + self._view_scores(other, part, part_shift, size)
            yield start, scores / len(found) if len(found) > 1 else scores

    def _chunk(self, pixels: int) -> int:
        """Rows whose full-size scores are held at once for an image of so many pixels."""
        if self.settings.max_memory:
            return max(1, self.settings.max_memory * 2**20 // (COPIES * 4 * pixels))
        limit = PIXELS_AT_ONCE.get(self.device.type, OTHER_PIXELS_AT_ONCE)
        return max(1, min(self.settings.class_chunk, limit // pixels))

    def _window_logits(self, image: Tensor, text: Tensor) -> WindowLogits:
        """Run every window through the network, a few at a time."""
        canvas: Grid = (image.shape[-2], image.shape[-1])
        windows = list_windows(canvas, self.settings.window, self.settings.stride)
        parts = []
        with torch.autocast(
            self.device.type,
            dtype=autocast_type(self.settings.precision),
            enabled=self.settings.precision != "fp32",
        ):
            for start in range(0, len(windows), self.settings.window_batch):
                batch = cut_windows(
                    image, windows[start : start + self.settings.window_batch], self.settings.window
                )
                if self.settings.combine == "confidence":
                    parts.append(self.model.stage_masks(batch, text).weighted_by_confidence())
                else:
                    parts.append(self.model(batch, text))  # (windows, R, h, w)
        return WindowLogits(torch.cat(parts), windows, image)

    def _view_scores(
        self, found: WindowLogits, rows: slice, shift: Tensor | None, size: Grid
    ) -> Tensor:
        """Scores (c, H, W) of a chunk of rows from one view."""
        scores = self._canvas_scores(found, rows, shift)  # (c, H', W')
        if found.mirrored:
            scores = scores.flip(-1)
        if size != found.canvas:
            scores = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
        return scores

    def _canvas_scores(self, found: WindowLogits, rows: slice, shift: Tensor | None) -> Tensor:
        """Average the windows' scores of a chunk of rows over the resized image: (c, H', W')."""
        if len(found.windows) == 1:
            return self._window_scores(found.logits[0, rows], shift, found.image)[
                :, : found.canvas[0], : found.canvas[1]
            ]
        # (c, H', W')
        total = found.logits.new_zeros(
            found.logits[0, rows].shape[0], *found.canvas, dtype=torch.float32
        )
        count = found.logits.new_zeros(found.canvas, dtype=torch.float32)  # (H', W')
        for logits, window in zip(found.logits, found.windows, strict=True):
            down, across = (
                slice(window.top, window.top + window.height),
                slice(window.left, window.left + window.width),
            )
            # (c, window, window)
            scores = self._window_scores(logits[rows], shift, found.image[:, down, across])
            total[:, down, across] += scores[:, : window.height, : window.width]
            count[down, across] += 1
        return total.div_(count)

    def _window_scores(self, logits: Tensor, shift: Tensor | None, image: Tensor) -> Tensor:
        """Mask logits (c, h, w) of one window with its part of the image (3, <= window, <= window)
        to scores (c, window, window)."""
        side, patch = self.settings.window, self.model.patch_size
        score_side = self.settings.score_size or side
        padded = math.ceil(side / patch) * patch
        full = round(padded * score_side / side)
        masks = self._full_masks(logits.float(), image, padded, full)  # (c, full, full)
        # (1, c, score_side, score_side)
        scores = masks[None, :, :score_side, :score_side].sigmoid_()
        if shift is not None:
            scores -= shift[:, None, None]
        if score_side != side:
            scores = F.interpolate(scores, size=(side, side), mode="bilinear", align_corners=False)
        return scores[0]  # (c, window, window)

    def _full_masks(self, logits: Tensor, image: Tensor, padded: int, full: int) -> Tensor:
        """Mask logits (c, h, w) of one padded window upsampled as the settings say, (c, full,
        full)."""
        config = self.checkpoint.config.model
        upsample = find_part("upsamplers", self.settings.upsampler)
        window = WindowImage(image, config.mean, config.std, padded)
        masks: Tensor = upsample(logits, full, window, self.settings)  # (c, full, full)
        return masks


def area(size: Grid) -> int:
    """Number of pixels."""
    return size[0] * size[1]
