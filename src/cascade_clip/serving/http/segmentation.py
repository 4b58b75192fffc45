"""Segmentation requests, read from what a client sent, and responses in the wanted format."""

import io
import json
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from PIL import Image
from torch import Tensor

from cascade_clip.config import ServiceOptions
from cascade_clip.inference import SCENERY_WORD
from cascade_clip.results import Segmentation
from cascade_clip.serving.uploads import read_class_names
from cascade_clip.vocabulary import Vocabulary

Format = Literal["png", "overlay", "json", "coco"]


@dataclass(frozen=True)
class SegmentationRequest:
    """What a client asks for."""

    file: bytes
    """The image file."""
    classes: Vocabulary
    background: Vocabulary | str | None = None
    """Background names, or one of the words `none` and `scenery`; None: those of the model."""
    threshold: float | None = None
    calibration: float = 0.0
    format: Format = "png"

    @property
    def key(self) -> Hashable:
        """Equal for requests whose pixels are compared with the same names in the same way."""
        background = getattr(self.background, "synonyms", self.background)
        return self.classes.synonyms, background, self.threshold, self.calibration


class SegmentationResponse(NamedTuple):
    """What a client gets."""

    body: bytes
    media_type: str


def read_request(
    file: bytes, classes: str, background: str, options: ServiceOptions, **rest: Any
) -> SegmentationRequest:
    """Make a request of what a client sent; `rest` are fields that need no reading.

    Raises:
        SettingError: class names that are missing, doubled, or too many.
    """
    found = read_class_names(classes, options.max_words)
    names: Vocabulary | str | None = background.strip().casefold() or None
    if names not in (None, "none", SCENERY_WORD):  # words that `Predictor.bind` knows
        names = read_class_names(background, options.max_words - sum(map(len, found.synonyms)))
    return SegmentationRequest(file, found, names, **rest)


def write_response(
    request: SegmentationRequest, image: Tensor, result: Segmentation
) -> SegmentationResponse:
    """Write the result for an image (3, H, W) in the format of its request."""
    if request.format in ("json", "coco"):
        values = result.to_json() if request.format == "json" else _coco_document(result)
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
        return SegmentationResponse(text.encode(), "application/json")
    if request.format == "png":
        drawn = result.index_image()
    else:
        drawn = result.overlay(Image.fromarray(image.permute(1, 2, 0).numpy()))  # (H, W, 3)
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return SegmentationResponse(file.getvalue(), "image/png")


def _coco_document(result: Segmentation) -> dict[str, Any]:
    height, width = result.labels.shape
    images = [{"id": 1, "width": width, "height": height}]
    categories = [{"id": index, "name": name} for index, name in enumerate(result.class_names, 1)]
    parts = enumerate(result.to_coco_rle(), 1)
    annotations = [{"id": number, "image_id": 1, **part} for number, part in parts]
    return {"images": images, "categories": categories, "annotations": annotations}
