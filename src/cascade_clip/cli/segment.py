"""The command that labels images."""

from __future__ import annotations

import operator
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, cast, get_args

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.options import DEFAULT_NAMES, NameOptions, read_classes
from cascade_clip.cli.terminal import check_folder, progress_bar, say, warn
from cascade_clip.errors import SettingError
from cascade_clip.inference import DEFAULT_LOADING, LoadOptions
from cascade_clip.results import Output, Segmentation

if TYPE_CHECKING:
    from collections.abc import Callable

    from cascade_clip.inference import BoundClasses, Done, Predictor, Source

REAL_MODELS = (
    "for your own photos take --model clip:ViT-B-16-quickgelu/openai, or train a model (README,"
    " section Models)"
)


@dataclass(frozen=True)
class SegmentOptions:
    """How images are labelled and what is written."""

    outputs: str = "overlay,index"
    """Files to write, comma-separated: overlay, index, heatmaps, labelme, coco (and coco.json)."""
    flip: bool = False
    """Average with the mirrored image: better, twice the time."""
    max_memory: int = 0
    """Mebibytes that the scores of all classes may take at once; 0 chooses."""
    every: int = 1
    """For videos: process every N-th frame."""
    overwrite: bool = False
    """Segment images again that have results already."""
    quiet: bool = False
    """Print errors and the last line only."""
    engine: Literal["local", "ray"] = "local"
    """`local`: this process; `ray`: a cluster (RAY_ADDRESS, else started here), with a manifest."""
    actors: int = 0
    """Actors of the engine `ray`; 0 takes one per GPU, or one per processor without GPUs."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise SettingError(f"--every must be at least 1, got {self.every}")
        if self.actors < 0 or (self.actors and self.engine != "ray"):
            given = f"got {self.actors} with --engine {self.engine}"
            message = "--actors is a positive number that goes with --engine ray"
            raise SettingError(f"{message}, {given}")


DEFAULT_OPTIONS = SegmentOptions()


def segment(
    images: list[str],
    *,
    model: str = "mini",
    classes: str = "",
    out: Path = Path("output"),
    names: NameOptions = DEFAULT_NAMES,
    options: SegmentOptions = DEFAULT_OPTIONS,
    loading: LoadOptions = DEFAULT_LOADING,
) -> int:
    """Label every pixel of images with your own class names.

    Writes an overlay with legend, an index PNG and a JSON file per image. Images that are done
    already are skipped. The exit code is 2 when an image could not be segmented; the others are
    done all the same.

    Args:
        images: files, folders, patterns such as "photos/*.jpg", videos, or - for a list of paths on
            standard input.
        model: checkpoint folder or run folder; a packaged model of the built-in world (mini,
            mini-last); or CLIP alone, without training: clip:ViT-B-16-quickgelu/openai (open_clip
            model and weights tag or file), clip:local-dir:FOLDER, clip:mini.
        classes: class names, "cat, grass, sofa = couch; settee", or a file with one a line, or a
            packaged list by name (voc, coco-stuff, ...); by default those of the checkpoint.
        out: folder for the results.
        names: which pixels get which class name.
        options: what to do.
        loading: how to load and run the model.
    """
    from cascade_clip.inference import find_sources, write_coco

    outputs = _parse_outputs(options.outputs, out)
    on_cluster = options.engine == "ray"
    if on_cluster:
        from cascade_clip.inference import require_ray

        require_ray()
    sources = find_sources(images, sys.stdin, options.every)
    vocabulary = read_classes(classes)  # before a model is loaded
    # the actors have the GPUs
    here = replace(loading, device="auto") if on_cluster and loading.device == "cuda" else loading
    predictor = _load(model, options, here)
    job = _Job(predictor, names.bind(predictor, vocabulary), sources, out, outputs, options)
    begin = time.monotonic()
    with progress_bar("segmenting") as step:
        counts = job.run_on_cluster(model, loading, step) if on_cluster else job.run_here(step)
    if "coco" in outputs:
        count = write_coco(out, sources, out / "coco.json")
        say(f"wrote {out / 'coco.json'}: {count} masks")
    _summarise(counts, time.monotonic() - begin, images[0], out)
    if counts.defects:
        return ExitCode.DEFECT
    return ExitCode.BAD_INPUT if counts.failed else ExitCode.DONE


class _Counts(NamedTuple):
    """Images by what became of them."""

    done: int = 0
    skipped: int = 0
    failed: int = 0
    defects: int = 0
    """How many failed by a defect of this program."""

    def plus(self, *more: int) -> _Counts:
        return _Counts(*map(operator.add, self, more))


class _Job(NamedTuple):
    """Images to segment, and how."""

    predictor: Predictor
    bound: BoundClasses
    sources: list[Source]
    out: Path
    outputs: tuple[Output, ...]
    options: SegmentOptions

    def run_here(self, step: Callable[[int, int], None]) -> _Counts:
        from cascade_clip.inference import segment_sources

        counts, work = _Counts(), (self.predictor, self.bound, self.sources, self.out, self.outputs)
        for one in segment_sources(*work, overwrite=self.options.overwrite, progress=step):
            counts = counts.plus(one.result is not None, one.skipped, bool(one.error), one.defect)
            _tell(one, quiet=self.options.quiet)
            del one  # its memory is free while the next one is segmented
        return counts

    def run_on_cluster(
        self, model: str, loading: LoadOptions, step: Callable[[int, int], None]
    ) -> _Counts:
        from cascade_clip.inference import FOLDER, Recipe, request_fingerprint, segment_on_cluster

        recipe = Recipe(
            model,
            loading,
            self.predictor.settings,
            self.bound.on_cpu(),
            self.outputs,
            self.out.absolute(),
            request_fingerprint(self.predictor, self.bound, self.outputs),
            self.options.overwrite,
            Path.cwd(),
        )
        counts = _Counts()
        for report in segment_on_cluster(recipe, self.sources, self.options.actors, step):
            counts = counts.plus(report.done, report.skipped, len(report.errors), report.defects)
            for error in report.errors:
                warn(f"cascade-clip: error: {error}")
        if not self.options.quiet:
            say(f"wrote {recipe.out / FOLDER}: {len(self.sources)} rows")
        return counts


def _summarise(counts: _Counts, seconds: float, first: str, out: Path) -> None:
    if counts.done + counts.skipped + counts.failed > 1:
        speed = f", {counts.done / seconds:.2f} images/s" if counts.done else ""
        others = f"{counts.skipped} done before, {counts.failed} failed"
        say(f"{counts.done} images segmented{speed}, {others}")
    elif counts.skipped:
        say(f"{first} is done already, see {out}; --overwrite does it again")


def _parse_outputs(text: str, out: Path) -> tuple[Output, ...]:
    check_folder(out)
    words, known = [word.strip() for word in text.split(",") if word.strip()], get_args(Output)
    if unknown := ", ".join(word for word in words if word not in known):
        raise SettingError(f"--outputs does not know {unknown}; choose from {', '.join(known)}")
    return cast(tuple[Output, ...], tuple(words))


def _load(model: str, options: SegmentOptions, loading: LoadOptions) -> Predictor:
    from cascade_clip.sandbox import CLASS_NAMES

    predictor = loading.load(model)
    config = predictor.checkpoint.config
    small = config.data.name == "sandbox" or config.model.clip.name == "package:mini_clip"
    if small and not options.quiet:
        world = f"the built-in world ({', '.join(CLASS_NAMES[:5])}, ...)"
        warn(f"{model} knows only {world}: {REAL_MODELS}")
    return predictor.with_settings(flip=options.flip, max_memory=options.max_memory)


def _tell(one: Done, *, quiet: bool) -> None:
    if one.error:
        warn(f"cascade-clip: error: {one.error}")
    elif one.result is not None and not quiet:
        frame = "" if one.source.frame is None else f" frame {one.source.frame}"
        say(f"{one.source.path}{frame}: {_describe(one.result)}")
        say(f"  wrote {', '.join(map(str, one.files))}")


def _describe(result: Segmentation) -> str:
    covered = result.coverage.items()
    shares = sorted(((share, name) for name, share in covered if share > 0), reverse=True)
    unlabelled = 1 - sum(share for share, _ in shares)
    if unlabelled > 0.0005:
        shares.append((unlabelled, "unlabelled"))
    text = ", ".join(f"{name} {100 * share:.1f} %" for share, name in shares[:8])
    return text + (f" and {len(shares) - 8} more" if len(shares) > 8 else "")
