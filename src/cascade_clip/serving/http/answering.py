"""What the service computes: questions read under limits, answered in groups by one predictor, and
written in the wanted form."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from PIL import Image
from torch import Tensor

from cascade_clip.config import ServiceOptions
from cascade_clip.errors import ImageError, SettingError
from cascade_clip.files import load_image
from cascade_clip.inference import SCENERY, SCENERY_WORD, Predictor
from cascade_clip.ops import short_side_shape
from cascade_clip.results import Segmentation
from cascade_clip.serving.http.batching import RememberedText, segment_together
from cascade_clip.serving.web.studio import LONGEST_TEXT, open_upload
from cascade_clip.vocabulary import Vocabulary, parse_classes

Format = Literal["png", "overlay", "json", "coco"]
MEDIA_TYPES: dict[Format, str] = {
    "png": "image/png",
    "overlay": "image/png",
    "json": "application/json",
    "coco": "application/json",
}


class TooLarge(ValueError):
    """A picture beyond the limits; the message is one line."""


@dataclass(frozen=True)
class Question:
    """What a client asks."""

    file: bytes
    """The picture file."""
    classes: Vocabulary
    background: Vocabulary | Literal["none"] | None = None
    """`none`: no background words, whatever the model's settings say."""
    threshold: float | None = None
    calibration: float = 0.0
    format: Format = "png"

    @property
    def key(self) -> Hashable:
        """Equal for questions that are compared with the same words in the same way."""
        words = (
            self.background.synonyms if isinstance(self.background, Vocabulary) else self.background
        )
        return self.classes.synonyms, words, self.threshold, self.calibration


class Answer(NamedTuple):
    """What a client gets."""

    body: bytes
    media_type: str


class Answerer:
    """A predictor with the limits of the service; safe to call from as many threads as it was made
    for."""

    def __init__(self, load: Callable[[], Predictor], options: ServiceOptions) -> None:
        """Load the model with `load`; embeddings of class lists stay in a bounded memory and are
        not written to disk."""
        self.options = options
        self.predictor = load()
        if self.predictor.text_encoder is not None:
            self.predictor.text_encoder = RememberedText(
                self.predictor.text_encoder, options.cached_texts
            )
        self.batch = options.batch or (1 if self.predictor.device.type == "cpu" else 8)
        self._pool = ThreadPoolExecutor(options.workers * self.batch, thread_name_prefix="picture")

    def answer(self, questions: list[Question]) -> list[Answer | BaseException]:
        """Answers to questions of one key, in order; what is wrong with one stands in its place."""
        first = questions[0]
        target = self.predictor.bind(
            first.classes, first.calibration, background=first.background, threshold=first.threshold
        )
        read = (
            list(self._pool.map(self._read, questions))
            if len(questions) > 1
            else [self._read(first)]
        )
        pictures = [picture for picture in read if isinstance(picture, Tensor)]
        results = iter(
            segment_together(self.predictor, pictures, target, self._pool) if pictures else []
        )
        answers: list[Answer | BaseException] = []
        for question, picture in zip(questions, read, strict=True):
            result = next(results) if isinstance(picture, Tensor) else picture
            answers.append(
                result if isinstance(result, Exception) else self._write(question, picture, result)
            )
        return answers

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, question: Question) -> Tensor | Exception:
        try:
            return read_picture(question.file, self.options.max_pixels, self.predictor)
        except Exception as error:
            return error

    def _write(
        self, question: Question, picture: Any, result: Segmentation
    ) -> Answer | BaseException:
        try:
            return write_answer(result, picture, question.format)
        except Exception as error:
            return error


def read_words(text: str, limit: int) -> Vocabulary:
    """Class names from "cat, grass, sofa = couch; settee"; line breaks separate like commas. Never
    a file.

    Raises:
        ValueError: none, one twice, more than `limit` words, or too long.
    """
    if len(text) > LONGEST_TEXT:
        raise SettingError(
            f"the words have {len(text)} characters; {LONGEST_TEXT} at most are allowed"
        )
    entries = [
        entry for entry in text.replace("\n", ",").replace("\r", ",").split(",") if entry.strip()
    ]
    count = len(entries) + sum(entry.count(";") + entry.count("=") for entry in entries)
    if count > limit:
        raise SettingError(f"{count} words are given; {limit} at most are allowed")
    if not entries:
        raise SettingError("no words given; name at least one, separated by commas")
    return parse_classes(",".join(entries))


def read_question(
    file: bytes, classes: str, background: str, options: ServiceOptions, **rest: Any
) -> Question:
    """A question from what a client sent; `scenery` stands for the packaged background words,
    `none` for no background words where the model has some of its own.

    Raises:
        ValueError: words that are missing, doubled, or too many.
    """
    found = read_words(classes, options.max_words)
    words: Vocabulary | Literal["none"] | None = None
    if background.strip().casefold() == "none":
        words = "none"
    elif background.strip() == SCENERY_WORD:
        words = parse_classes(SCENERY)
    elif background.strip():
        words = read_words(background, options.max_words - sum(map(len, found.synonyms)))
    return Question(file, found, words, **rest)


def read_picture(file: bytes, limit: int, predictor: Predictor) -> Tensor:
    """The picture as a uint8 tensor (3, H, W), refused before it is decoded where it has more than
    `limit` pixels.

    Raises:
        TooLarge: too many pixels, or so narrow that the model would have to enlarge it beyond the
            limit.
        ValueError: no picture, or a damaged one.
    """
    try:
        opened = open_upload(io.BytesIO(file))
    except (OSError, struct.error, LookupError, ArithmeticError):
        # what Pillow's readers raise at damaged headers
        raise ImageError("this picture file is damaged; save it again") from None
    with opened as picture:
        width, height = picture.size
        if width * height > limit:
            raise TooLarge(
                f"the picture has {width} x {height} pixels, more than the limit of {limit}; make"
                " it smaller"
            )
        if predictor.settings.resize and min(width, height):
            rows, columns = short_side_shape(height, width, predictor.settings.window)
            if rows * columns > max(limit, predictor.settings.window**2):
                raise TooLarge(
                    f"a picture of {width} x {height} pixels is too narrow for this model; cut it"
                    " to pieces"
                )
        return load_image(picture).contiguous()


def write_answer(result: Segmentation, picture: Tensor, form: Format) -> Answer:
    """The answer in the wanted form."""
    if form == "json":
        return _as_json(result.to_json(), form)
    if form == "coco":
        height, width = result.labels.shape
        categories = [
            {"id": index + 1, "name": name} for index, name in enumerate(result.class_names)
        ]
        annotations = [
            {"id": number, "image_id": 1, **part}
            for number, part in enumerate(result.to_coco_rle(), start=1)
        ]
        image = {"id": 1, "width": width, "height": height}
        return _as_json(
            {"images": [image], "categories": categories, "annotations": annotations}, form
        )
    drawn = (
        result.index_image()
        if form == "png"
        else result.overlay(Image.fromarray(picture.permute(1, 2, 0).numpy()))
    )
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return Answer(file.getvalue(), MEDIA_TYPES[form])


def _as_json(values: dict[str, Any], form: Format) -> Answer:
    return Answer(
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode(), MEDIA_TYPES[form]
    )
