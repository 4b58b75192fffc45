"""What the commands do: typed functions over the library that print for people."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from cascade_clip.config import Config, DataConfig, Device, ModelConfig, Precision, PromptConfig
from cascade_clip.plain_values import config_to_dict
from cascade_clip.results import Segmentation

if TYPE_CHECKING:
    from torch import Tensor

    from cascade_clip.evaluate import Report
    from cascade_clip.predictor import Predictor

console = Console()

REAL_MODELS = "for your own photos train one on CLIP weights (README, section Models) and give it with --model"


@dataclass(frozen=True)
class RunOptions:
    """How a model is loaded and run."""

    device: Device = "auto"
    """Where to run: auto takes CUDA, then Apple's MPS, then the CPU."""
    precision: Precision = "fp32"
    """Number format of the network; similarities and scores stay float32."""
    clip_weights: str = ""
    """Place of CLIP's weights (file or tag) instead of the recorded one; their hash must agree with the checkpoint's."""


@dataclass(frozen=True)
class FolderOptions:
    """A labelled data set in two folders."""

    data: Literal["folder", "sandbox"] = "folder"
    """`folder`: the two folders below; `sandbox`: fresh scenes of the built-in world, which need no files."""
    images: str = ""
    """Folder of images."""
    masks: str = ""
    """Folder of index masks with the same file stems."""
    classes: str = ""
    """Class list in label order: a file, or a packaged list by name (voc, coco-stuff, context, ade20k, cityscapes)."""
    unseen: str = ""
    """Unseen class names: a file, names separated by commas, or a packaged split by name."""
    text_embeddings: str = ""
    """File (.npy) of text embeddings, one row a class, to use instead of the text tower."""
    limit: int = 0
    """Use the first N images only; 0 means all (300 of the sandbox)."""
    ignore: int | None = None
    """Mask value of pixels without a label; by default the one of the class list, mostly 255."""
    seed: int = 2
    """Which scenes of the sandbox."""


def segment(
    images: list[str],
    *,
    model: str = "mini",
    classes: str = "",
    out: Path = Path("output"),
    calibration: float = 0.0,
    run: RunOptions = RunOptions(),
) -> int:
    """Label every pixel of images with your own class names.

    Writes an overlay with legend, an index PNG and a JSON file per image.

    Args:
        images: image files.
        model: checkpoint folder or run folder, or a packaged model of the built-in world: mini, mini-last.
        classes: class names, "cat, grass, sofa = couch; settee", or a file with one a line, or a packaged
            list by name (voc, coco-stuff, ...); by default those of the checkpoint.
        out: folder for the results.
        calibration: subtracted from the scores of names that were seen in training.
        run: how to load and run.
    """
    from cascade_clip.predictor import load_predictor
    from cascade_clip.transforms import load_image
    from cascade_clip.vocabulary import load_words

    vocabulary = load_words(classes) if classes else None
    predictor = load_predictor(model, run.device, run.precision, run.clip_weights or None)
    if predictor.checkpoint.config.data.name == "sandbox":
        warn(f"{model} knows only the built-in world ({', '.join(predictor.vocabulary.names[:5])}, ...): {REAL_MODELS}")
    target = predictor.bind(vocabulary, calibration)
    stems = _result_names(images)
    failed = 0
    for source, stem in zip(images, stems, strict=True):
        try:
            pixels = load_image(source)  # (3, H, W)
            labels, scores = predictor.label_map(pixels, target)
        except (ValueError, OSError) as error:
            failed += 1
            warn(f"cascade-clip: error: {error}")
            continue
        result = Segmentation(labels.cpu().numpy(), target.names, target.colors, scores.cpu().numpy())
        written = result.save(out, stem, pixels.permute(1, 2, 0).numpy())
        console.print(f"{source}: {_describe(result)}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"  wrote {', '.join(str(path) for path in written)}", markup=False, highlight=False, soft_wrap=True)
    return 2 if failed else 0


def train(config: Config, *, out: Path, resume: bool = False, full: bool = False) -> int:
    """Train a model; the first word may be a YAML file, and every setting is a flag.

    Writes the checkpoint folder OUT/model, the log OUT/metrics.csv and the state for --resume.

    Args:
        config: settings.
        out: run folder.
        resume: go on from the last saved state of the run in `out`.
        full: store CLIP's own weights in the checkpoint too, so that it needs no other file.
    """
    from cascade_clip.checkpoint import save_checkpoint
    from cascade_clip.data import build_dataset
    from cascade_clip.progress import TrainingProgress, quiet_engine
    from cascade_clip.train import fit

    quiet_engine()
    dataset = None if config.evaluation is None else build_dataset(config.evaluation)  # found before anything runs
    checkpoint = fit(config, out, resume=resume, full=full, callbacks=[TrainingProgress(console)])
    if os.environ.get("LOCAL_RANK", "0") != "0":  # the first process of the run says and does the rest
        return 0
    console.print(f"wrote {out / 'model'}", markup=False, highlight=False, soft_wrap=True)
    if config.evaluation is not None and dataset is not None:
        from cascade_clip.evaluate import evaluate as run_evaluation
        from cascade_clip.evaluate import summarise
        from cascade_clip.predictor import Predictor

        predictor = Predictor(checkpoint, device=config.train.device)
        with _progress("evaluating") as step:
            text = _given_embeddings(config.evaluation, len(dataset.vocabulary), predictor)
            report = run_evaluation(predictor, dataset, text=text, progress=step)
        _print_report(report)
        console.print(f"wrote {report.save(out / 'report.json')}", markup=False, highlight=False)
        record = {**checkpoint.record, "evaluation": {"data": config_to_dict(config.evaluation), "summary": summarise(report.scores)}}
        save_checkpoint(out / "model", dataclasses.replace(checkpoint, record=record), full=full)
    return 0


def evaluate(
    checkpoint: str, *, data: FolderOptions, run: RunOptions = RunOptions(), calibration: float | None = None, out: Path | None = None
) -> int:
    """Score a model on a folder of images and a folder of index masks.

    Prints S, U, hIoU and pixel accuracy with the assumptions they rest on, and every class.

    Args:
        checkpoint: checkpoint folder, run folder, or a packaged model: mini, mini-last.
        data: the data set.
        run: how to load and run.
        calibration: subtracted from scores of seen classes; by default 0.1 after inductive training, else 0.
        out: where to write report.json; by default nowhere.
    """
    from cascade_clip.data import build_dataset
    from cascade_clip.evaluate import evaluate as run_evaluation
    from cascade_clip.predictor import load_predictor

    chosen = {name: value for name, value in dataclasses.asdict(data).items() if name != "data"}
    config = DataConfig(name=data.data, **chosen)
    if data.data == "sandbox":
        config = dataclasses.replace(config, limit=data.limit or 300)
    dataset = build_dataset(config)
    predictor = load_predictor(checkpoint, run.device, run.precision, run.clip_weights or None)
    text = _given_embeddings(config, len(dataset.vocabulary), predictor)
    with _progress("evaluating") as step:
        report = run_evaluation(predictor, dataset, calibration, text, step)
    _print_report(report)
    if out is not None:
        console.print(f"wrote {report.save(out)}", markup=False, highlight=False)
    return 0


def import_file(file: Path, *, config: Path, out: Path, match_clip: bool = False) -> int:
    """Turn a state dict of the released Cascade-CLIP or ZegCLIP program into a checkpoint folder.

    The YAML file says what a state dict cannot: model.clip, stages, heads, prompt tokens, data.classes, data.unseen, inference.window.

    Args:
        file: released .pth (read without executing anything) or .safetensors file.
        config: YAML file of settings.
        out: checkpoint folder to write.
        match_clip: store only a reference to CLIP when the file's CLIP equals the weights that model.clip names.
    """
    from cascade_clip.importer import import_released

    checkpoint = import_released(file, config, out, match_clip=match_clip)
    trained = sum(parameter.numel() for parameter in checkpoint.model.parameters() if parameter.requires_grad)
    console.print(f"imported {file}: stages {[list(s) for s in checkpoint.model.stages]}, {trained:,} trained parameters", markup=False)
    console.print(f"wrote {out}", markup=False, highlight=False)
    return 0


def cost(*, settings: Path | None = None, classes: int = 171, side: int = 512) -> int:
    """Print parameters and operations of a model, our way and the published way.

    Weights are not loaded; only their number matters.

    Args:
        settings: YAML file; by default the published COCO-Stuff model (ViT-B/16, 50 prompt tokens).
        classes: number of class names.
        side: side of the image, in pixels.
    """
    from cascade_clip.checkpoint import load_config
    from cascade_clip.cost import count_cost

    model = load_config(settings).model if settings else ModelConfig(prompts=PromptConfig(tokens=50))
    found = count_cost(model, classes, side)
    table = Table(title=f"{model.clip.name}, {classes} classes, {side} x {side}")
    for heading in ("", "ours", "published way"):
        table.add_column(heading, justify="right" if heading else "left")
    ours = found.parameters + found.text_parameters
    table.add_row("parameters", f"{ours:,}", f"{found.published_parameters:,}")
    table.add_row("  of which text tower", f"{found.text_parameters:,}", f"{found.text_parameters:,}")
    table.add_row("trained parameters", f"{found.trained:,}", f"{found.published_trained:,}")
    table.add_row("GFLOP per image", f"{found.flops / 1e9:.1f}", f"{found.published_flops / 1e9:.1f}")
    console.print(table)
    dead = f"{found.dead_parameters:,} weights and {found.dead_flops / 1e9:.1f} GFLOP"
    console.print(f"The published way counts {dead} that reach no output.", highlight=False)
    return 0


def env() -> int:
    """Print versions and devices, for bug reports."""
    import platform

    import torch

    from cascade_clip.checkpoint import read_versions

    rows = {**read_versions(), "platform": platform.platform(), "processors": str(torch.get_num_threads())}
    cuda = torch.cuda.is_available()
    rows["cuda"] = f"{torch.version.cuda}, {torch.cuda.get_device_name(0)}" if cuda else "not available"
    rows["mps"] = "available" if torch.backends.mps.is_available() else "not available"
    for name, value in rows.items():
        console.print(f"{name:<16} {value}", markup=False, highlight=False, soft_wrap=True)
    return 0


def warn(text: str) -> None:
    """Say something on standard error, as it is."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def _given_embeddings(config: DataConfig, classes: int, predictor: Predictor) -> Tensor | None:
    """Text embeddings from the file that the settings name, if any."""
    from cascade_clip.text import load_embeddings

    if not config.text_embeddings:
        return None
    return load_embeddings(Path(config.text_embeddings), classes, predictor.model.joint_width)


def _result_names(images: list[str]) -> list[str]:
    """One file stem per image; images of the same name in different folders get their folder in front."""
    stems = [Path(image).stem for image in images]
    names = []
    for image, stem in zip(images, stems, strict=True):
        name = stem if stems.count(stem) == 1 else f"{Path(image).resolve().parent.name}_{stem}"
        while name in names:
            name += "_2"
        names.append(name)
    return names


def _describe(result: Segmentation) -> str:
    shares = sorted(((share, name) for name, share in result.coverage.items() if share > 0), reverse=True)
    text = ", ".join(f"{name} {100 * share:.1f} %" for share, name in shares[:8])
    return text + (f" and {len(shares) - 8} more" if len(shares) > 8 else "")


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _print_report(report: Report) -> None:
    found = report.scores
    table = Table(title=f"{report.images} images")
    for heading in ("class", "IoU %", "accuracy %"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name, seen, iou, accuracy in zip(found.names, found.seen, found.iou, found.accuracy, strict=True):
        mark = "" if seen else " (unseen)"
        table.add_row(name + mark, _percent(float(iou)), _percent(float(accuracy)))
    console.print(table)
    line = f"S {_percent(found.seen_miou)}  U {_percent(found.unseen_miou)}  hIoU {_percent(found.hiou)}"
    console.print(f"{line}  mIoU {_percent(found.miou)}  pixel accuracy {_percent(found.pixel_accuracy)}", highlight=False)
    for assumption in report.assumptions:
        console.print(f"- {assumption}", markup=False, highlight=False)


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.2f}"
