"""What the service computes: requests with the same class names are segmented together by one
predictor, and written in the wanted format."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from PIL import Image
from torch import Tensor

from cascade_clip.config import ServiceOptions
from cascade_clip.inference import SCENERY, SCENERY_WORD, Predictor
from cascade_clip.results import Segmentation
from cascade_clip.serving.http.batching import RememberedText, segment_together
from cascade_clip.serving.uploads import read_class_names, read_upload
from cascade_clip.vocabulary import Vocabulary, parse_classes

Format = Literal["png", "overlay", "json", "coco"]
Background = Vocabulary | Literal["none"] | None


@dataclass(frozen=True)
class SegmentationRequest:
    """What a client asks for."""

    file: bytes
    """The image file."""
    classes: Vocabulary
    background: Background = None
    """`none`: no background names, whatever the model's settings say; None: those of the model."""
    threshold: float | None = None
    calibration: float = 0.0
    format: Format = "png"

    @property
    def key(self) -> Hashable:
        """Equal for requests whose pixels are compared with the same names in the same way."""
        background = self.background
        if isinstance(background, Vocabulary):
            return self.classes.synonyms, background.synonyms, self.threshold, self.calibration
        return self.classes.synonyms, background, self.threshold, self.calibration


class SegmentationResponse(NamedTuple):
    """What a client gets."""

    body: bytes
    media_type: str


class BatchSegmenter:
    """A predictor with the limits of the service; safe to call from `options.workers` threads."""

    def __init__(self, load: Callable[[], Predictor], options: ServiceOptions) -> None:
        """Load the model with `load`; text embeddings of class lists stay in a bounded memory and
        are not written to disk."""
        self.options = options
        self.predictor = load()
        if self.predictor.text_encoder is not None:
            self.predictor.text_encoder = RememberedText(
                self.predictor.text_encoder, options.cached_texts
            )
        self.batch = options.batch or (1 if self.predictor.device.type == "cpu" else 8)
        self._pool = ThreadPoolExecutor(options.workers * self.batch, thread_name_prefix="image")

    def segment(
        self, requests: list[SegmentationRequest]
    ) -> list[SegmentationResponse | BaseException]:
        """Answer requests of one key, in order; an error takes the place of a response."""
        first = requests[0]
        target = self.predictor.bind(
            first.classes, first.calibration, background=first.background, threshold=first.threshold
        )
        if len(requests) == 1:
            images = [self._read(first)]
        else:
            images = list(self._pool.map(self._read, requests))
        read = [image for image in images if isinstance(image, Tensor)]
        results = iter(segment_together(self.predictor, read, target, self._pool) if read else [])
        return [
            _write(request, image, next(results)) if isinstance(image, Tensor) else image
            for request, image in zip(requests, images, strict=True)
        ]

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, request: SegmentationRequest) -> Tensor | Exception:
        try:
            return read_upload(request.file, self.options.max_pixels, self.predictor.settings)
        except Exception as error:
            return error


def read_request(
    file: bytes, classes: str, background: str, options: ServiceOptions, **rest: Any
) -> SegmentationRequest:
    """Make a request of what a client sent; `scenery` stands for the packaged background names,
    `none` for no background names where the model has some of its own.

    Raises:
        SettingError: class names that are missing, doubled, or too many.
    """
    found = read_class_names(classes, options.max_words)
    names: Background = None
    if background.strip().casefold() == "none":
        names = "none"
    elif background.strip() == SCENERY_WORD:
        names = parse_classes(SCENERY)
    elif background.strip():
        names = read_class_names(background, options.max_words - sum(map(len, found.synonyms)))
    return SegmentationRequest(file, found, names, **rest)


def _write(
    request: SegmentationRequest, image: Tensor, result: Segmentation | Exception
) -> SegmentationResponse | Exception:
    try:
        return result if isinstance(result, Exception) else _respond(result, image, request.format)
    except Exception as error:
        return error


def _respond(result: Segmentation, image: Tensor, form: Format) -> SegmentationResponse:
    """Write a result in the wanted format; `image` is the uint8 tensor (3, H, W) for overlays."""
    if form in ("json", "coco"):
        values = result.to_json() if form == "json" else _coco_document(result)
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
        return SegmentationResponse(text.encode(), "application/json")
    if form == "png":
        drawn = result.index_image()
    else:
        drawn = result.overlay(Image.fromarray(image.permute(1, 2, 0).numpy()))  # (H, W, 3)
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return SegmentationResponse(file.getvalue(), "image/png")


def _coco_document(result: Segmentation) -> dict[str, Any]:
    height, width = result.labels.shape
    return {
        "images": [{"id": 1, "width": width, "height": height}],
        "categories": [
            {"id": index, "name": name} for index, name in enumerate(result.class_names, start=1)
        ],
        "annotations": [
            {"id": number, "image_id": 1, **part}
            for number, part in enumerate(result.to_coco_rle(), start=1)
        ],
    }
