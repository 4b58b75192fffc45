"""The command that labels pictures."""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from cascade_clip.results import Output, Segmentation
from cascade_clip.terminal import DEFAULT_RUN, RunOptions, progress_bar, say, warn

if TYPE_CHECKING:
    from cascade_clip.batch import Done
    from cascade_clip.predictor import Predictor

REAL_MODELS = "for your own photos take --model clip:ViT-B-16-quickgelu/openai, or train a model (README, section Models)"


@dataclass(frozen=True)
class SegmentOptions:
    """How pictures are labelled and what is written."""

    calibration: float = 0.0
    """Subtracted from the scores of names that were seen in training."""
    background: str = ""
    """Background words ("sky, wall, tree"), a file of them, or `scenery`: they compete with the names and all mean `background`."""
    threshold: float | None = None
    """Pixels whose best score (0..1) lies below are unlabelled, or `background` where that is one of the names."""
    outputs: str = "overlay,index"
    """Files beside the JSON file of every picture, separated by commas: overlay, index, heatmaps, labelme, coco (also all in coco.json)."""
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

    Writes an overlay with legend, an index PNG and a JSON file per picture. Started again it leaves out what is done.
    Exit code 2 when a picture could not be segmented; the others are done all the same.

    Args:
        images: files, folders, patterns such as "photos/*.jpg", videos, or - for a list of paths on standard input.
        model: checkpoint folder or run folder; a packaged model of the built-in world (mini, mini-last); or CLIP alone, without
            training: clip:ViT-B-16-quickgelu/openai (open_clip model and weights tag or file), clip:local-dir:FOLDER, clip:mini.
        classes: class names, "cat, grass, sofa = couch; settee", or a file with one a line, or a packaged
            list by name (voc, coco-stuff, ...); by default those of the checkpoint.
        out: folder for the results.
        options: what to do.
        run: how to load and run.
    """
    from cascade_clip.batch import find_sources, segment_sources, write_coco
    from cascade_clip.vocabulary import load_words

    outputs = _parse_outputs(options.outputs)
    if options.every < 1:
        raise ValueError(f"--every must be at least 1, got {options.every}")
    sources = find_sources(images, sys.stdin, options.every)
    vocabulary = load_words(classes) if classes else None
    predictor = _load(model, options, run)
    target = predictor.bind(vocabulary, options.calibration, background=options.background, threshold=options.threshold)
    begin, done, failed, skipped = time.monotonic(), 0, 0, 0
    with progress_bar("segmenting") as step:
        for one in segment_sources(predictor, target, sources, out, outputs, overwrite=options.overwrite, progress=step):
            done, failed, skipped = done + (one.result is not None), failed + bool(one.error), skipped + one.skipped
            _tell(one, quiet=options.quiet)
    if "coco" in outputs:
        count = write_coco(out, sources, out / "coco.json")
        say(f"wrote {out / 'coco.json'}: {count} masks")
    if len(sources) > 1:
        seconds = time.monotonic() - begin
        speed = f", {done / seconds:.2f} pictures/s" if done else ""
        say(f"{done} pictures segmented{speed}, {skipped} done before, {failed} failed")
    elif skipped:
        say(f"{images[0]} is done already, see {out}; --overwrite does it again")
    return 2 if failed else 0


def _parse_outputs(text: str) -> tuple[Output, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    unknown = [word for word in words if word not in get_args(Output)]
    if unknown:
        raise ValueError(f"--outputs does not know {', '.join(unknown)}; choose from {', '.join(get_args(Output))}")
    return cast(tuple[Output, ...], words)


def _load(model: str, options: SegmentOptions, run: RunOptions) -> Predictor:
    from cascade_clip.predictor import load_predictor
    from cascade_clip.sandbox.scenes import CLASS_NAMES

    predictor = load_predictor(model, run.device, run.precision, run.clip_weights or None, run.last_block)
    config = predictor.checkpoint.config
    if config.data.name == "sandbox" or config.model.clip.name == "package:mini_clip":
        warn(f"{model} knows only the built-in world ({', '.join(CLASS_NAMES[:5])}, ...): {REAL_MODELS}")
    predictor.settings = dataclasses.replace(predictor.settings, flip=options.flip, max_memory=options.max_memory)
    return predictor


def _tell(one: Done, *, quiet: bool) -> None:
    if one.error:
        warn(f"cascade-clip: error: {one.error}")
    elif one.result is not None and not quiet:
        say(f"{one.source.path}{'' if one.source.frame is None else f' frame {one.source.frame}'}: {_describe(one.result)}")
        say(f"  wrote {', '.join(str(path) for path in one.files)}")


def _describe(result: Segmentation) -> str:
    shares = sorted(((share, name) for name, share in result.coverage.items() if share > 0), reverse=True)
    text = ", ".join(f"{name} {100 * share:.1f} %" for share, name in shares[:8])
    return text + (f" and {len(shares) - 8} more" if len(shares) > 8 else "")
