"""The command that labels pictures."""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.terminal import check_folder, progress_bar, say, warn
from cascade_clip.errors import SettingError
from cascade_clip.inference import DEFAULT_RUN, RunOptions
from cascade_clip.results import Output, Segmentation

if TYPE_CHECKING:
    from collections.abc import Callable

    from cascade_clip.inference import Done, Predictor, Recipe, Source, Target

REAL_MODELS = (
    "for your own photos take --model clip:ViT-B-16-quickgelu/openai, or train a model (README,"
    " section Models)"
)


@dataclass(frozen=True)
class SegmentOptions:
    """How pictures are labelled and what is written."""

    calibration: float = 0.0
    """Subtracted from the scores of names that were seen in training."""
    background: str = ""
    """Background words ("sky, wall, tree"), a file of them, or `scenery`: they compete with the
    names and all mean `background`; `none`: no background words; by default the checkpoint's."""
    threshold: float | Literal["none"] | None = None
    """Pixels whose best score (0..1) lies below are unlabelled, or `background` where that is one
    of the names; `none`: every pixel gets a name; by default the checkpoint's."""
    outputs: str = "overlay,index"
    """Files beside the JSON file of every picture, separated by commas: overlay, index, heatmaps,
    labelme, coco (also all in coco.json)."""
    flip: bool = False
    """Average with the mirrored picture: better, twice the time."""
    max_memory: int = 0
    """Mebibytes that the scores of all classes may take at once; 0 chooses."""
    every: int = 1
    """Of a video, take one frame in so many."""
    overwrite: bool = False
    """Do pictures again whose results are there."""
    quiet: bool = False
    """Print errors and the last line only."""
    engine: Literal["local", "ray"] = "local"
    """`local` works in this process; `ray` in the actors of a Ray cluster (RAY_ADDRESS, else one on
    this machine), with a manifest."""
    actors: int = 0
    """Of the engine `ray`: number of actors; 0 takes one per GPU, or one per processor without
    GPUs."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise SettingError(f"--every must be at least 1, got {self.every}")
        if self.actors < 0 or (self.actors and self.engine != "ray"):
            raise SettingError(
                f"--actors is a positive number that goes with --engine ray, got {self.actors} with"
                f" --engine {self.engine}"
            )


DEFAULT_OPTIONS = SegmentOptions()


def segment(
    images: list[str],
    *,
    model: str = "mini",
    classes: str = "",
    out: Path = Path("output"),
    options: SegmentOptions = DEFAULT_OPTIONS,
    run: RunOptions = DEFAULT_RUN,
) -> int:
    """Label every pixel of pictures with your own class names.

    Writes an overlay with legend, an index PNG and a JSON file per picture. Started again it leaves
    out what is done. Exit code 2 when a picture could not be segmented; the others are done all the
    same.

    Args:
        images: files, folders, patterns such as "photos/*.jpg", videos, or - for a list of paths on
            standard input.
        model: checkpoint folder or run folder; a packaged model of the built-in world (mini,
            mini-last); or CLIP alone, without training: clip:ViT-B-16-quickgelu/openai (open_clip
            model and weights tag or file), clip:local-dir:FOLDER, clip:mini.
        classes: class names, "cat, grass, sofa = couch; settee", or a file with one a line, or a
            packaged list by name (voc, coco-stuff, ...); by default those of the checkpoint.
        out: folder for the results.
        options: what to do.
        run: how to load and run.
    """
    from cascade_clip.inference import find_sources, write_coco
    from cascade_clip.vocabulary import load_words

    outputs = _parse_outputs(options.outputs, out)
    on_cluster = options.engine == "ray"
    if on_cluster:
        from cascade_clip.inference import require_ray

        require_ray()
    sources = find_sources(images, sys.stdin, options.every)
    vocabulary = load_words(classes) if classes else None
    # the actors have the GPUs
    here = dataclasses.replace(run, device="auto") if on_cluster and run.device == "cuda" else run
    predictor = _load(model, options, here)
    target = predictor.bind(
        vocabulary,
        options.calibration,
        background=options.background or None,
        threshold=options.threshold,
    )
    begin = time.monotonic()
    with progress_bar("segmenting") as step:
        if on_cluster:
            recipe = _write_recipe(
                predictor, target, outputs, model, run, out, overwrite=options.overwrite
            )
            counts = _segment_on_cluster(recipe, sources, options, step)
        else:
            counts = _segment_here(predictor, target, sources, out, outputs, options, step)
    if "coco" in outputs:
        count = write_coco(out, sources, out / "coco.json")
        say(f"wrote {out / 'coco.json'}: {count} masks")
    _summarise(counts, time.monotonic() - begin, images[0], out)
    if counts.defects:
        return ExitCode.DEFECT
    return ExitCode.BAD_INPUT if counts.failed else ExitCode.DONE


@dataclasses.dataclass
class _Counts:
    """Pictures by what became of them."""

    done: int = 0
    skipped: int = 0
    failed: int = 0
    defects: int = 0
    """How many failed by a defect of this program."""


def _segment_here(
    predictor: Predictor,
    target: Target,
    sources: list[Source],
    out: Path,
    outputs: tuple[Output, ...],
    options: SegmentOptions,
    step: Callable[[int, int], None],
) -> _Counts:
    from cascade_clip.inference import segment_sources

    counts = _Counts()
    for one in segment_sources(
        predictor, target, sources, out, outputs, overwrite=options.overwrite, progress=step
    ):
        counts.done += one.result is not None
        counts.skipped += one.skipped
        counts.failed += bool(one.error)
        counts.defects += one.defect
        _tell(one, quiet=options.quiet)
        del one  # its memory is free while the next one is segmented
    return counts


def _segment_on_cluster(
    recipe: Recipe, sources: list[Source], options: SegmentOptions, step: Callable[[int, int], None]
) -> _Counts:
    from cascade_clip.inference import FOLDER, segment_on_cluster

    counts = _Counts()
    for report in segment_on_cluster(recipe, sources, options.actors, step):
        counts.done += report.done
        counts.skipped += report.skipped
        counts.failed += len(report.errors)
        counts.defects += report.defects
        for error in report.errors:
            warn(f"cascade-clip: error: {error}")
    if not options.quiet:
        say(f"wrote {recipe.out / FOLDER}: {len(sources)} rows")
    return counts


def _write_recipe(
    predictor: Predictor,
    target: Target,
    outputs: tuple[Output, ...],
    model: str,
    run: RunOptions,
    out: Path,
    *,
    overwrite: bool,
) -> Recipe:
    """What the actors need to do the same as this process would."""
    from cascade_clip.inference import Recipe, request_fingerprint

    request = request_fingerprint(predictor, target, outputs)
    labels = None if target.labels is None else target.labels.cpu()
    moved = dataclasses.replace(
        target, text=target.text.cpu(), seen=target.seen.cpu(), labels=labels
    )
    return Recipe(
        model,
        run,
        predictor.settings,
        moved,
        outputs,
        out.absolute(),
        request,
        overwrite,
        Path.cwd(),
    )


def _summarise(counts: _Counts, seconds: float, first: str, out: Path) -> None:
    if counts.done + counts.skipped + counts.failed > 1:
        speed = f", {counts.done / seconds:.2f} pictures/s" if counts.done else ""
        say(
            f"{counts.done} pictures segmented{speed}, {counts.skipped} done before,"
            f" {counts.failed} failed"
        )
    elif counts.skipped:
        say(f"{first} is done already, see {out}; --overwrite does it again")


def _parse_outputs(text: str, out: Path) -> tuple[Output, ...]:
    check_folder(out)
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    unknown = [word for word in words if word not in get_args(Output)]
    if unknown:
        raise SettingError(
            f"--outputs does not know {', '.join(unknown)}; choose from"
            f" {', '.join(get_args(Output))}"
        )
    return cast(tuple[Output, ...], words)


def _load(model: str, options: SegmentOptions, run: RunOptions) -> Predictor:
    from cascade_clip.inference import load_predictor
    from cascade_clip.sandbox import CLASS_NAMES

    predictor = load_predictor(
        model, run.device, run.precision, run.clip_weights or None, run.last_block
    )
    config = predictor.checkpoint.config
    if not options.quiet and (
        config.data.name == "sandbox" or config.model.clip.name == "package:mini_clip"
    ):
        warn(
            f"{model} knows only the built-in world ({', '.join(CLASS_NAMES[:5])}, ...):"
            f" {REAL_MODELS}"
        )
    predictor.settings = dataclasses.replace(
        predictor.settings, flip=options.flip, max_memory=options.max_memory
    )
    return predictor


def _tell(one: Done, *, quiet: bool) -> None:
    if one.error:
        warn(f"cascade-clip: error: {one.error}")
    elif one.result is not None and not quiet:
        say(
            f"{one.source.path}{'' if one.source.frame is None else f' frame {one.source.frame}'}:"
            f" {_describe(one.result)}"
        )
        say(f"  wrote {', '.join(str(path) for path in one.files)}")


def _describe(result: Segmentation) -> str:
    shares = sorted(
        ((share, name) for name, share in result.coverage.items() if share > 0), reverse=True
    )
    unlabelled = 1 - sum(share for share, _ in shares)
    if unlabelled > 0.0005:
        shares.append((unlabelled, "unlabelled"))
    text = ", ".join(f"{name} {100 * share:.1f} %" for share, name in shares[:8])
    return text + (f" and {len(shares) - 8} more" if len(shares) > 8 else "")
