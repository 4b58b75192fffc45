"""What the web page computes: models by name, limits on what comes in, a segmentation with its
files, the legend and the heat maps.

Nothing here knows the page; every function runs without a browser. Letters: C classes, H x W
pixels, h x w of a coarse score map.
"""

from __future__ import annotations

import dataclasses
import html
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cascade_clip.checkpoints import PACKAGED, find_checkpoint, read_record
from cascade_clip.errors import SettingError
from cascade_clip.files import load_image
from cascade_clip.inference import (
    DEFAULT_LOADING,
    PREFIX,
    LoadOptions,
    Predictor,
    parse_clip,
)
from cascade_clip.ops import short_side_shape
from cascade_clip.results import Segmentation
from cascade_clip.sandbox import CLASS_NAMES, SceneConfig, make_scene
from cascade_clip.vocabulary import Vocabulary, parse_classes

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Kinds of picture that are read; the other readers of Pillow stay closed to strangers."""
LONGEST_TEXT = 10_000
"""Characters of the class names together."""
MOST_NAMES = 300
"""Class names of one question; their coarse score maps are kept for the heat maps."""
PREVIEW_SIDE = 1280
"""Longer side of the pictures that the page shows; the files to download have the full size."""
MOST_MAX_PIXELS = 100_000_000
"""Upper bound of the pixel limit."""
EXAMPLES = ((2, 74), (4, 36), (5, 82), (2, 10))
"""Seed and index of the scenes of the built-in world that the page offers."""

Progress = Callable[[float, str], object]


@dataclass(frozen=True)
class Question:
    """What a visitor asks."""

    model: str
    image: str | None
    """Path of the uploaded picture."""
    words: str
    """Class names, separated by commas or line breaks."""
    calibration: float = 0.0
    threshold: float = 0.0
    """Pixels whose best score lies below stay without a name; 0 turns it off."""


@dataclass(frozen=True, eq=False)
class Shown:
    """What stays in memory of an answer, so that a click on the legend needs no network: small,
    whatever the size of the picture."""

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    coverage: tuple[float, ...]
    unlabelled: float
    unseen: frozenset[str]
    """Names of which the model saw no mask in training; empty for models that saw none at all."""
    maps: NDArray[np.floating]
    """Scores of all classes at low resolution, (C, h, w)."""
    picture: Image.Image
    """The image, its longer side at most PREVIEW_SIDE."""

    @property
    def largest(self) -> int:
        """Index of the class with the most pixels."""
        return int(np.argmax(self.coverage))


@dataclass(frozen=True, eq=False)
class Answer:
    """A segmentation as the page shows it and gives it away."""

    shown: Shown
    overlay: Image.Image
    """The picture under the colours of the classes, no legend, its longer side at most
    PREVIEW_SIDE."""
    overlay_file: Path
    index_file: Path
    json_file: Path
    summary: str


class Studio:
    """Models by name and the limits under which they answer; safe to call from several threads."""

    def __init__(
        self,
        sources: Sequence[str],
        folder: Path,
        max_pixels: int,
        loading: LoadOptions = DEFAULT_LOADING,
    ) -> None:
        """Offer models from `sources` (as `load_predictor` takes them) and the packaged ones; write
        results into `folder`.

        Raises:
            FileNotFoundError, ValueError: a folder that is no checkpoint; a pixel limit out of
                range.
        """
        if not 1 <= max_pixels <= MOST_MAX_PIXELS:
            raise SettingError(
                f"the pixel limit must lie in 1..{MOST_MAX_PIXELS}, got {max_pixels}"
            )
        self.folder, self.max_pixels, self.loading = folder, max_pixels, loading
        self.sources = _name_models([*sources, *(name for name in PACKAGED if name not in sources)])
        self._loaded: dict[str, Predictor] = {}
        self._lock = threading.Lock()

    @property
    def words(self) -> str:
        """Class names to begin with: those that the first model was trained with, or those of the
        example scenes."""
        vocabulary = self.predictor(next(iter(self.sources))).vocabulary
        names = vocabulary.names if vocabulary.seen else CLASS_NAMES
        return ", ".join(names[:MOST_NAMES]) if all("," not in name for name in names) else ""

    def predictor(self, name: str) -> Predictor:
        """The model of that name, loaded at its first use.

        Raises:
            ValueError: a name that is not offered.
        """
        if name not in self.sources:
            raise SettingError(f"no model {name!r}; choose one of {', '.join(self.sources)}")
        with self._lock:
            if name not in self._loaded:
                source, loading = self.sources[name], self.loading
                if not source.startswith(PREFIX):
                    loading = dataclasses.replace(loading, last_block=None)
                self._loaded[name] = loading.load(source)
            return self._loaded[name]

    def answer(self, question: Question, progress: Progress | None = None) -> Answer:
        """Segment the picture and write the files to take away.

        Raises:
            ValueError, OSError: no picture, a broken or too big one, names that are missing or
                doubled; one line each.
        """
        report = progress or (lambda part, text: None)
        started = time.perf_counter()
        if not question.image:
            raise SettingError("no picture yet: upload one, or choose an example")
        vocabulary = parse_words(question.words)
        report(0.1, "loading the model")
        predictor = self.predictor(question.model)
        vocabulary = with_known_colors(vocabulary, predictor.vocabulary)
        pixels = self._read(question.image, predictor)
        report(0.3, "comparing pixels with names")
        threshold = question.threshold if question.threshold > 0 else None
        result: Segmentation = predictor.segment(
            pixels, vocabulary, question.calibration, threshold=threshold
        )
        report(0.8, "drawing")
        picture = Image.fromarray(pixels)
        files = result.save(
            self.folder / f"result-{secrets.token_hex(8)}", _stem(question.image), pixels
        )
        found = {path.name.rpartition("_")[2]: path for path in files}
        json_file = next(path for path in files if path.suffix == ".json")
        seconds = time.perf_counter() - started
        summary = (
            f"{picture.width} x {picture.height} pixels, {len(result.class_names)} names,"
            f" {seconds:.1f} s with {question.model}."
        )
        config = predictor.checkpoint.config
        if config.data.name == "sandbox" or config.model.clip.name == "package:mini_clip":
            summary += " This model knows only drawn scenes like the examples."
        overlay = _shrink(result.overlay(pixels, legend=False))
        shown = _shown(result, _shrink(picture), predictor.vocabulary)
        return Answer(shown, overlay, found["overlay.png"], found["index.png"], json_file, summary)

    def _read(self, path: str, predictor: Predictor) -> NDArray[np.uint8]:
        """The uploaded picture as (H, W, 3), refused before it is decoded where it has too many
        pixels."""
        with open_upload(path) as picture:
            width, height = picture.size
            limit = self.max_pixels
            if width * height > limit:
                raise SettingError(
                    f"the picture has {width} x {height} pixels, more than the limit of {limit:,};"
                    " make it smaller"
                )
            if predictor.settings.resize and min(width, height):
                side = short_side_shape(height, width, predictor.settings.window)
                if side[0] * side[1] > max(limit, predictor.settings.window**2):
                    raise SettingError(
                        f"a picture of {width} x {height} pixels is too narrow for this model; cut"
                        " it to pieces"
                    )
            return load_image(picture).permute(1, 2, 0).contiguous().numpy()  # (H, W, 3)


def open_upload(path: str | IO[bytes]) -> Image.Image:
    """Open a picture of a common kind; its pixels are not decoded yet.

    Raises:
        ValueError: the file is none.
    """
    Image.init()
    try:
        return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError:
        raise SettingError("the picture has far too many pixels; make it smaller") from None
    except (UnidentifiedImageError, SyntaxError, ValueError, EOFError):
        raise SettingError(
            "this file is not a picture that can be read: give a PNG, JPEG, WebP, GIF, BMP or TIFF"
            " file"
        ) from None


def parse_words(text: str) -> Vocabulary:
    """Class names from what a visitor typed: commas or line breaks between names, `sofa = couch;
    settee` for synonyms.

    Raises:
        ValueError: no name, too many, or one twice.
    """
    if len(text) > LONGEST_TEXT:
        raise SettingError(
            f"the class names have {len(text):,} characters; {LONGEST_TEXT:,} at most are allowed"
        )
    entries = [entry for entry in text.replace("\n", ",").split(",") if entry.strip()]
    if not entries:
        raise SettingError("no class names yet: type some, separated by commas")
    if len(entries) > MOST_NAMES:
        raise SettingError(
            f"{len(entries)} class names are given; {MOST_NAMES} at most are allowed here"
        )
    return parse_classes(",".join(entries))


def with_known_colors(vocabulary: Vocabulary, trained: Vocabulary) -> Vocabulary:
    """The colours of the training vocabulary, if it knows every name; otherwise two classes could
    get one colour."""
    known = dict(zip(trained.names, trained.colors, strict=True))
    if not all(name in known for name in vocabulary.names):
        return vocabulary
    return dataclasses.replace(vocabulary, colors=tuple(known[name] for name in vocabulary.names))


def heat_map(shown: Shown, index: int) -> tuple[Image.Image, str]:
    """Where the model sees a class: its scores over the grey picture, and a line that describes
    them.

    Dark is 0; the brightest is the highest score of any class in this picture, so that the maps of
    its classes can be compared.

    Raises:
        ValueError: there is no such class.
    """
    if not 0 <= index < len(shown.names):
        raise SettingError("no such class in this result; press Segment again")
    scores = shown.maps[index].astype(np.float32)  # (h, w)
    full = Image.fromarray(scores).resize(shown.picture.size, Image.Resampling.BILINEAR)
    # (256, 3)
    table = (matplotlib.colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.uint8)
    brightest = max(float(shown.maps.max()), 1e-6)
    # (H, W, 3)
    colors = table[
        (np.asarray(full).clip(0, brightest) * (255 / brightest)).round().astype(np.uint8)
    ]
    picture = Image.blend(shown.picture.convert("L").convert("RGB"), Image.fromarray(colors), 0.75)
    return picture, f"Heat map of {shown.names[index]}: scores up to {scores.max():.2f}"


def legend(shown: Shown, selected: int) -> str:
    """The classes as HTML buttons: those found first, by coverage; data-class holds the index.
    Names are escaped."""
    order = sorted(range(len(shown.names)), key=lambda index: (-shown.coverage[index], index))
    rows = [_legend_row(shown, index, pressed=index == selected) for index in order]
    found = sum(share > 0 for share in shown.coverage)
    parts = ['<div class="legend">', *rows[:found]]
    if shown.unlabelled > 0:
        parts.append(
            '<div class="entry"><i style="background:#808080"></i><b>unlabelled</b>'
            f"<span>{_percent(shown.unlabelled)}</span></div>"
        )
    parts.append("</div>")
    if rows[found:]:
        parts += ['<div class="legend absent"><em>not found:</em>', *rows[found:], "</div>"]
    if shown.unseen:
        parts.append('<div class="note">* the model saw no mask of it in training</div>')
    return "".join(parts)


def make_examples(folder: Path) -> list[Path]:
    """Draw the example scenes of the built-in world as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, (seed, index) in enumerate(EXAMPLES, start=1):
        files.append(folder / f"scene{number}.png")
        Image.fromarray(make_scene(seed, index, SceneConfig(size=384)).image).save(files[-1])
    return files


def _name_models(sources: Sequence[str]) -> Mapping[str, str]:
    """Short, distinct names of models: packaged ones by theirs, folders by their last part, never
    the whole path."""
    named: dict[str, str] = {}
    for source in sources:
        if source.startswith(PREFIX):
            parse_clip(source)
            parts = [part for part in source.removeprefix(PREFIX).split("/") if part]
            name = base = PREFIX + (
                parts[0] if len(parts) == 1 else f"{parts[0].partition(':')[0]}/{parts[-1]}"
            )
        else:
            read_record(find_checkpoint(source))
            name = base = source if source in PACKAGED else Path(source).expanduser().resolve().name
        count = 1
        while name in named:
            count += 1
            name = f"{base} ({count})"
        named[name] = source
    return named


def _shown(result: Segmentation, picture: Image.Image, trained: Vocabulary) -> Shown:
    assert result.class_maps is not None
    seen = {name.casefold() for name in trained.seen}
    unseen = {name for name in result.class_names if name.casefold() not in seen} if seen else set()
    shares = tuple(result.coverage.values())
    missing = float((result.labels < 0).mean())
    return Shown(
        result.class_names,
        result.colors,
        shares,
        missing,
        frozenset(unseen),
        result.class_maps,
        picture,
    )


def _shrink(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return small


def _stem(path: str) -> str:
    """A name for result files from that of the upload."""
    return Path(path).stem.strip(". ")[:60] or "image"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "&lt; 0.1 %"


def escape(text: str) -> str:
    """Text that stays text in HTML, and in the template language of the page ($ and braces)."""
    return html.escape(text).translate({ord(letter): f"&#{ord(letter)};" for letter in "${}`"})


def _legend_row(shown: Shown, index: int, *, pressed: bool) -> str:
    name, share = shown.names[index], shown.coverage[index]
    text = escape(name) + ("*" if name in shown.unseen else "")
    red, green, blue = shown.colors[index]
    number = f"<span>{_percent(share)}</span>" if share > 0 else ""
    return (
        f'<button type="button" class="entry" data-class="{index}"'
        f' aria-pressed="{str(pressed).lower()}" title="heat map of {escape(name)}"><i'
        f' style="background:rgb({red},{green},{blue})"></i><b>{text}</b>{number}</button>'
    )
