"""What the web page computes: models by name, and segmentations with their files.

Nothing here knows the page; every function runs without a browser. Letters: C classes, H x W
pixels, h x w of a coarse score map.
"""

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cascade_clip.checkpoints import PACKAGED, find_checkpoint, read_record
from cascade_clip.config import MEBIBYTE, check_limit
from cascade_clip.errors import SettingError
from cascade_clip.inference import DEFAULT_LOADING, PREFIX, LoadOptions, Predictor, parse_clip
from cascade_clip.sandbox import CLASS_NAMES
from cascade_clip.serving.uploads import read_class_names, read_upload
from cascade_clip.serving.web.drawing import ResultView, shrink, view_result
from cascade_clip.vocabulary import Vocabulary

MOST_NAMES = 300
"""Class names of one request; their coarse score maps are kept for the heat maps."""

Progress = Callable[[float, str], object]


@dataclass(frozen=True)
class PageRequest:
    """What a visitor asks for."""

    model: str
    image: str | None
    """Path of the uploaded image."""
    classes: str
    """Class names, separated by commas or line breaks."""
    calibration: float = 0.0
    threshold: float = 0.0
    """Pixels whose best score is lower stay without a name; 0 turns it off."""


@dataclass(frozen=True, eq=False)
class PageResponse:
    """A segmentation as the page shows it, and its files to download."""

    view: ResultView
    overlay: Image.Image
    """The image under the colours, without a legend, its longer side at most PREVIEW_SIDE."""
    overlay_file: Path
    index_file: Path
    json_file: Path
    summary: str


class WebService:
    """Models by name, with the limits of the page; safe to call from several threads."""

    def __init__(
        self,
        sources: Sequence[str],
        folder: Path,
        max_pixels: int = 16_000_000,
        max_upload: int = 20,
        loading: LoadOptions = DEFAULT_LOADING,
    ) -> None:
        """Offer models from `sources` (as `load_predictor` takes them) and the packaged ones.

        Args:
            sources: models; the first is chosen when the page opens.
            folder: results are written into it.
            max_pixels: most pixels of an image.
            max_upload: largest upload, in MiB.
            loading: how to load and run the models.

        Raises:
            MissingFileError, CheckpointError: a folder that is no checkpoint.
            SettingError: a limit out of range.
        """
        check_limit("max_pixels", max_pixels)
        check_limit("max_upload", max_upload)
        self.folder, self.max_pixels, self.loading = folder, max_pixels, loading
        self.max_upload = max_upload * MEBIBYTE  # bytes
        self.sources = _name_models([*sources, *(name for name in PACKAGED if name not in sources)])
        self._loaded: dict[str, Predictor] = {}
        self._lock = threading.Lock()

    @property
    def first_classes(self) -> str:
        """Class names to begin with: those of the first model's training, or of the examples."""
        vocabulary = self.predictor(next(iter(self.sources))).vocabulary
        names = vocabulary.names if vocabulary.seen else CLASS_NAMES
        return ", ".join(names[:MOST_NAMES]) if all("," not in name for name in names) else ""

    def predictor(self, name: str) -> Predictor:
        """Return the model of that name, loaded at its first use.

        Raises:
            SettingError: a name that is not offered.
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

    def segment(self, request: PageRequest, progress: Progress | None = None) -> PageResponse:
        """Segment the image and write the files to download.

        Raises:
            SettingError: class names that are missing or doubled, or no image.
            ImageError: an image that is damaged or too large.
            OSError: the files cannot be written.
        """
        report = progress or (lambda part, text: None)
        started = time.perf_counter()
        if not request.image:
            raise SettingError("no image yet: upload one, or choose an example")
        vocabulary = read_class_names(request.classes, MOST_NAMES, count_synonyms=False)
        report(0.1, "loading the model")
        predictor = self.predictor(request.model)
        vocabulary = with_known_colors(vocabulary, predictor.vocabulary)
        upload = Path(request.image)
        pixels = read_upload(upload, self.max_pixels, predictor.settings)  # (3, H, W)
        report(0.3, "comparing pixels with names")
        threshold = request.threshold if request.threshold > 0 else None
        target = predictor.bind(vocabulary, request.calibration, threshold=threshold)
        result = predictor.segment_pixels(pixels, target)
        report(0.8, "drawing")
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())  # (H, W, 3)
        stem = upload.stem.strip(". ")[:60] or "image"
        overlay_file, index_file, json_file = result.save(
            self.folder / f"result-{secrets.token_hex(8)}", stem, image
        )
        seconds = time.perf_counter() - started
        size, count = f"{image.width} x {image.height} pixels", len(result.class_names)
        summary = f"{size}, {count} names, {seconds:.1f} s with {request.model}."
        config = predictor.checkpoint.config
        if config.data.name == "sandbox" or config.model.clip.name == "package:mini_clip":
            summary += " This model knows only drawn scenes like the examples."
        view = view_result(result, image, predictor.vocabulary.seen)
        overlay = shrink(result.overlay(image, legend=False))
        return PageResponse(view, overlay, overlay_file, index_file, json_file, summary)


def with_known_colors(vocabulary: Vocabulary, trained: Vocabulary) -> Vocabulary:
    """Return the names with their colours of training if it knew all; else two could share one."""
    known = dict(zip(trained.names, trained.colors, strict=True))
    if not all(name in known for name in vocabulary.names):
        return vocabulary
    return dataclasses.replace(vocabulary, colors=tuple(known[name] for name in vocabulary.names))


def _name_models(sources: Sequence[str]) -> Mapping[str, str]:
    """Give models short, distinct names: a folder gives its last part, never the whole path."""
    named: dict[str, str] = {}
    for source in sources:
        if source.startswith(PREFIX):
            parse_clip(source)
            parts = [part for part in source.removeprefix(PREFIX).split("/") if part]
            short = parts[0] if len(parts) == 1 else f"{parts[0].partition(':')[0]}/{parts[-1]}"
            name = base = PREFIX + short
        else:
            read_record(find_checkpoint(source))
            name = base = source if source in PACKAGED else Path(source).expanduser().resolve().name
        count = 1
        while name in named:
            count += 1
            name = f"{base} ({count})"
        named[name] = source
    return named
