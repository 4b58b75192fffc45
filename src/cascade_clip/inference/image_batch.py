"""Find images, segment them one by one and write their results; an interrupted run can be resumed.

An image is done when its JSON file, which is written last, exists and holds the same request.
"""

import collections
import contextlib
import glob
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor

from cascade_clip.errors import (
    DataError,
    ImageError,
    MissingFileError,
    MissingPackageError,
    explain_error,
)
from cascade_clip.files import IMAGE_SUFFIXES, is_large, load_image, report_defect, write_whole
from cascade_clip.inference.class_binding import BoundClasses
from cascade_clip.inference.predictor import Predictor
from cascade_clip.results import Output, Segmentation

Outputs = tuple[Output, ...]

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
MEMORY_SETTINGS = ("class_chunk", "window_batch", "max_memory")
"""Settings that do not change the result."""

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RecursionError)
"""What reading a result file of an earlier run may raise."""

AHEAD = 4
"""Images that are read before their turn; a large one alone (see `is_large`)."""


class Source(NamedTuple):
    """An image to segment, and the name of its results below the output folder."""

    path: Path
    name: str
    frame: int | None = None
    """Number of the frame, counted from 0, of a video."""


class Item(NamedTuple):
    """An image that was read, or the reason why it could not be."""

    source: Source
    pixels: Tensor | None  # (3, H, W)
    error: Exception | None = None


@dataclass(frozen=True)
class Done:
    """What became of one image."""

    source: Source
    result: Segmentation | None = None
    files: tuple[Path, ...] = ()
    error: str = ""
    skipped: bool = False
    defect: bool = False
    """Whether the error is one of this program, and its traceback in a file."""


def find_sources(
    words: Iterable[str], stream: TextIO | None = None, every: int = 1
) -> list[Source]:
    """Return the images that files, folders, patterns and lists stand for, each once.

    Args:
        words: files; folders (searched to any depth); patterns with `*`, `?` or `[...]`; `-`.
        stream: where `-` reads paths from, one a line.
        every: for videos, process every N-th frame.

    Raises:
        FileNotFoundError: a folder or a pattern without images, an empty list.
    """
    found: list[Source] = []
    for word in words:
        found += _read_list(stream) if word == "-" else _expand(word)
    unique = {source.path.absolute(): source for source in reversed(found)}
    first = [source for source in found if unique.pop(source.path.absolute(), None) is not None]
    return [part for source in _distinct_names(first) for part in _frames(source, every)]


def _read_list(stream: TextIO | None) -> list[Source]:
    try:
        paths = [Path(line.strip()) for line in stream or () if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"the list of images on standard input: {error}") from error
    if not paths:
        raise MissingFileError("the list on standard input is empty; give one path a line")
    return [Source(path, path.stem) for path in paths]


def _expand(word: str) -> list[Source]:
    path = Path(word).expanduser()
    if path.is_dir():
        suffixes = IMAGE_SUFFIXES + VIDEO_SUFFIXES
        files = [file for file in path.rglob("*") if file.suffix.lower() in suffixes]
        files = sorted(file for file in files if file.is_file())
        if not files:
            raise MissingFileError(f"no images in the folder {path} ({', '.join(suffixes)})")
        return [Source(file, file.relative_to(path).with_suffix("").as_posix()) for file in files]
    if not path.exists() and any(letter in word for letter in "*?["):
        matches = map(Path, glob.glob(str(path), recursive=True))
        files = sorted(file for file in matches if file.is_file())
        if not files:
            raise MissingFileError(f"no file fits the pattern {word}")
        return [Source(file, file.stem) for file in files]
    return [Source(path, path.stem)]


def _distinct_names(sources: list[Source]) -> list[Source]:
    """Make the names distinct: by the folder in front, then by the suffix, then by a number."""
    named: dict[str, Source] = {}
    counts = collections.Counter(source.name for source in sources)
    for source in sources:
        name, path = source.name, source.path
        if counts[name] > 1:
            name = f"{path.absolute().parent.name}_{path.stem}"
        if name in named:
            name += f"_{path.suffix.lstrip('.').lower()}"
        number, base = 2, name
        while name in named:
            name, number = f"{base}_{number}", number + 1
        named[name] = source._replace(name=name)
    return list(named.values())


def _frames(source: Source, every: int) -> list[Source]:
    if source.path.suffix.lower() not in VIDEO_SUFFIXES or not source.path.is_file():
        return [source]
    frames, (path, name, _) = range(0, sum(1 for _ in read_frames(source.path)), every), source
    return [Source(path, f"{name}_frames/{frame:06d}", frame) for frame in frames]


def read_frames(path: Path) -> Iterator[Any]:
    """Frames (H, W, 3) of a video, 8-bit RGB.

    Raises:
        ImportError: PyAV is not installed.
        ValueError: not a video.
    """
    try:
        import av
    except ImportError as error:
        text = f"reading the video {path} needs PyAV: pip install 'cascade-clip[video]'"
        raise MissingPackageError(text) from error
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, IndexError) as error:
        raise ImageError(f"video {path} cannot be read: {error}") from error


def segment_sources(
    predictor: Predictor,
    bound: BoundClasses,
    sources: list[Source],
    out: Path,
    outputs: Outputs = ("overlay", "index"),
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    request: str = "",
) -> Iterator[Done]:
    """Segment images and write their results, skipping those done with the same request.

    Args:
        predictor: the model.
        bound: class names, bound.
        sources: the images (see `find_sources`).
        out: folder for the results.
        outputs: kinds of file beside the JSON file of every image.
        overwrite: do everything again.
        progress: called with (done, total) after every image.
        request: the request fingerprint, if it is known already.
    """
    request = request or request_fingerprint(predictor, bound, outputs)
    skipped, taken, waiting = [], [], []
    for source in sources:
        if not overwrite and is_done(source, out, request):
            skipped.append(Done(source, skipped=True))
        elif not overwrite and (other := other_image(source, out)):
            error = f"{source.path}: {out / source.name}.json holds the results of {other}"
            taken.append(Done(source, error=f"{error}; choose another --out, or --overwrite"))
        else:
            waiting.append(source)
    yield from (*taken, *skipped)
    for number, item in enumerate(_read_ahead(waiting), len(skipped) + 1):
        yield _segment_one(predictor, bound, item, out, outputs, request)
        del item  # its memory is free while the next one is read
        if progress is not None:
            progress(number, len(sources))


def _segment_one(
    predictor: Predictor, bound: BoundClasses, item: Item, out: Path, outputs: Outputs, request: str
) -> Done:
    if item.pixels is None:
        return _failed(item.source, item.error)
    source, file = item.source, out / f"{item.source.name}.json"
    try:
        result = predictor.segment_pixels(item.pixels, bound)
    except Exception as error:
        return _failed(source, error)
    extra = {"source": str(source.path), "bytes": source.path.stat().st_size}
    extra |= {"frame": source.frame, "request": request}
    pixels = item.pixels.permute(1, 2, 0).numpy()  # (H, W, 3)
    return Done(source, result, tuple(result.save(file.parent, file.stem, pixels, outputs, extra)))


def _failed(source: Source, error: Exception | None) -> Done:
    """Describe a failed image in one line; a defect of this program is written to a file."""
    assert error is not None
    text = explain_error(error)
    defect, text = not text, text or report_defect(error)
    named = text if str(source.path) in text else f"{source.path}: {text}"
    return Done(source, error=named, defect=defect)


def other_image(source: Source, out: Path) -> str:
    """Return the path of another image whose results have the name of this one's, or ""."""
    with contextlib.suppress(*_UNREADABLE):
        values = json.loads((out / f"{source.name}.json").read_text(encoding="utf-8"))
        elsewhere = Path(values["source"]).absolute() != source.path.absolute()
        if elsewhere and values["bytes"] != source.path.stat().st_size:
            return str(values["source"])
    return ""


def is_done(source: Source, out: Path, request: str) -> bool:
    """Whether the results of an image are there, for the same image and the same request."""
    with contextlib.suppress(*_UNREADABLE):
        values = json.loads((out / f"{source.name}.json").read_text(encoding="utf-8"))
        stored = [values["request"], values["bytes"], values["frame"]]
        same = stored == [request, source.path.stat().st_size, source.frame]
        folder = (out / source.name).parent
        return same and all((folder / name).is_file() for name in values["files"])
    return False


def request_fingerprint(predictor: Predictor, bound: BoundClasses, outputs: Outputs) -> str:
    """Return a hash of what decides the result files: weights, settings, class names, outputs."""
    digest, settings = hashlib.sha256(), asdict(predictor.settings)
    for name in MEMORY_SETTINGS:
        del settings[name]
    words: list[Any] = [bound.names, bound.colors, bound.calibration, bound.threshold, bound.below]
    digest.update(json.dumps([*words, sorted(outputs), settings], sort_keys=True).encode())
    digest.update((bound.text * 1000).detach().cpu().round().short().numpy().tobytes())
    for tensor in (bound.seen, torch.arange(0) if bound.labels is None else bound.labels):
        digest.update(tensor.numpy().tobytes())
    digest.update(predictor.checkpoint.clip_fingerprint.encode())
    for name, parameter in predictor.model.named_parameters():
        if not predictor.checkpoint.clip_fingerprint or not name.startswith("backbone.tower."):
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_coco(out: Path, sources: Iterable[Source], file: Path) -> int:
    """Gather `coco` outputs into one COCO file (RLE masks); return the number of annotations."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: list[dict[str, Any]] = []
    for source in sources:
        record, parts = out / f"{source.name}.json", out / f"{source.name}_coco.json"
        if not (record.is_file() and parts.is_file()):
            continue
        values = json.loads(record.read_text(encoding="utf-8"))
        names = [entry["name"] for entry in values["classes"]]
        categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
        size = {"width": values["width"], "height": values["height"]}
        images.append({"id": len(images) + 1, "file_name": str(source.path), **size})
        for part in json.loads(parts.read_text(encoding="utf-8")):
            annotations.append({"id": len(annotations) + 1, "image_id": len(images), **part})
    whole = {"images": images, "categories": categories, "annotations": annotations}
    write_whole(file, json.dumps(whole) + "\n")
    return len(annotations)


def _read_ahead(sources: list[Source]) -> Iterator[Item]:
    """Read images in order, a few ahead; frames of a video are decoded in one pass."""
    runs = itertools.groupby(sources, lambda one: None if one.frame is None else one.path)
    with ThreadPoolExecutor(2) as pool:
        # and whether it is large
        waiting: collections.deque[tuple[Future[Item], bool]] = collections.deque()
        for video, group in runs:
            if video is not None:
                yield from _finish(waiting, 0)
                yield from _read_video(video, group)
                continue
            for source in group:
                large = is_large(source.path)
                yield from _finish(waiting, 1 if large else AHEAD)
                waiting.append((pool.submit(_read, source), large))
                yield from _finish(waiting, 1 if any(large for _, large in waiting) else AHEAD)
        yield from _finish(waiting, 0)


def _finish(waiting: collections.deque[tuple[Future[Item], bool]], left: int) -> Iterator[Item]:
    """Give out the first images until so many are left."""
    while len(waiting) > left:
        yield waiting.popleft()[0].result()


def _read(source: Source) -> Item:
    try:
        return Item(source, load_image(source.path))
    except Exception as error:
        return Item(source, None, error)


def _read_video(path: Path, sources: Iterable[Source]) -> Iterator[Item]:
    wanted = {source.frame: source for source in sources}
    try:
        for number, frame in enumerate(read_frames(path)):
            if number in wanted:
                yield Item(wanted.pop(number), load_image(frame))
            if not wanted:
                return
    except Exception as error:
        yield from (Item(source, None, error) for source in wanted.values())
