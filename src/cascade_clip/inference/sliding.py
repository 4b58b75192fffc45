"""Run the network on windows of an image and merge their mask logits to scores (method section 7).

Mask logits stay at patch resolution for all classes; upsampling, sigmoid, calibration and window
averaging run in chunks of classes, so memory does not grow with the number of classes. Letters: C
classes, R rows of text, c rows of a chunk, n windows, h x w patches, H x W pixels, H' x W' pixels
of the resized image.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_clip.config import InferenceConfig, ModelConfig, find_part
from cascade_clip.encoders import Grid
from cascade_clip.inference.class_binding import BoundClasses
from cascade_clip.inference.windows import Window, cut_windows, list_windows
from cascade_clip.models import Segmenter
from cascade_clip.ops import WindowImage, autocast_type

COPIES = 4
"""Full-size score tensors of a chunk that live at once."""

PIXELS_AT_ONCE = {"cpu": 2**22}
"""Highest product of classes in a chunk and output pixels; on a CPU, what fits into its cache."""

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


@dataclass(frozen=True)
class SlidingWindow:
    """A network that slides over images larger than its window."""

    model: Segmenter
    config: ModelConfig
    settings: InferenceConfig
    device: torch.device

    def score_chunks(
        self, views: list[Tensor], bound: BoundClasses, size: Grid
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the scores (c, H, W) of one chunk of rows after another, with the index of its
        first row; means over the views, each (3, H', W'), and their mirror images."""
        found, text = [], bound.text.to(self.device)  # (R, D)
        for view in views:
            image = view.to(self.device)
            found.append(self._window_logits(image, text))
            if self.settings.flip:
                found.append(self._window_logits(image.flip(-1), text)._replace(mirrored=True))
        shift = (bound.seen.float() * bound.calibration).to(self.device)  # (R,)
        canvases = [size, *(logits.canvas for logits in found)]
        chunk = self.rows_at_once(max(height * width for height, width in canvases))
        for start in range(0, len(text), chunk):
            part = slice(start, start + chunk)
            part_shift = shift[part] if bound.calibration else None
            scores = self._view_scores(found[0], part, part_shift, size)  # (c, H, W)
            for other in found[1:]:
                scores = scores + self._view_scores(other, part, part_shift, size)
            yield start, scores / len(found) if len(found) > 1 else scores

    def rows_at_once(self, pixels: int) -> int:
        """Return how many rows of an image with this number of pixels fit into memory."""
        if self.settings.max_memory:
            return max(1, self.settings.max_memory * 2**20 // (COPIES * 4 * pixels))
        limit = PIXELS_AT_ONCE.get(self.device.type, OTHER_PIXELS_AT_ONCE)
        return max(1, min(self.settings.class_chunk, limit // pixels))

    def _window_logits(self, image: Tensor, text: Tensor) -> WindowLogits:
        """Run every window through the network, a few at a time."""
        settings, parts = self.settings, []
        windows = list_windows((image.shape[-2], image.shape[-1]), settings.window, settings.stride)
        kind, mixed = autocast_type(settings.precision), settings.precision != "fp32"
        with torch.autocast(self.device.type, dtype=kind, enabled=mixed):
            for start in range(0, len(windows), settings.window_batch):
                some = windows[start : start + settings.window_batch]
                batch = cut_windows(image, some, settings.window)
                if settings.combine == "confidence":
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
        height, width = found.canvas
        if len(found.windows) == 1:
            scores = self._window_scores(found.logits[0, rows], shift, found.image)
            return scores[:, :height, :width]
        chunk = found.logits[:, rows]  # (n, c, h, w)
        total = chunk.new_zeros(chunk.shape[1], height, width, dtype=torch.float32)  # (c, H', W')
        count = chunk.new_zeros(height, width, dtype=torch.float32)  # (H', W')
        for logits, window in zip(chunk, found.windows, strict=True):
            down = slice(window.top, window.top + window.height)
            across = slice(window.left, window.left + window.width)
            # (c, window, window)
            scores = self._window_scores(logits, shift, found.image[:, down, across])
            total[:, down, across] += scores[:, : window.height, : window.width]
            count[down, across] += 1
        return total.div_(count)

    def _window_scores(self, logits: Tensor, shift: Tensor | None, image: Tensor) -> Tensor:
        """Turn mask logits (c, h, w) of one window into scores (c, window, window); `image` is the
        window's part of the image, (3, <= window, <= window)."""
        settings, config = self.settings, self.config
        side, patch = settings.window, self.model.patch_size
        score_side = settings.score_size or side
        padded = math.ceil(side / patch) * patch
        full = round(padded * score_side / side)
        guide = WindowImage(image, config.mean, config.std, padded)
        upsample = find_part("upsamplers", settings.upsampler)
        masks: Tensor = upsample(logits.float(), full, guide, settings)  # (c, full, full)
        # (1, c, score_side, score_side)
        scores = masks[None, :, :score_side, :score_side].sigmoid_()
        if shift is not None:
            scores -= shift[:, None, None]
        if score_side != side:
            scores = F.interpolate(scores, size=(side, side), mode="bilinear", align_corners=False)
        return scores[0]  # (c, window, window)
