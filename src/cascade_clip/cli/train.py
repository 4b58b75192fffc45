"""The command that trains models."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.terminal import check_folder, progress_bar
from cascade_clip.config import (
    AugmentConfig,
    Config,
    InferenceConfig,
    ModelConfig,
    Resume,
    config_to_dict,
)
from cascade_clip.errors import SettingError
from cascade_clip.results import SUMMARY_METRICS, format_percent

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from cascade_clip.checkpoints import Checkpoint
    from cascade_clip.data import LabelledImages
    from cascade_clip.training import RunLog, RunScreen

_PICTURES = 6
"""Worst and best images on the evaluation's page."""


@dataclass(frozen=True)
class TrainOptions:
    """What is done with the settings, and what is shown."""

    init_from: str = ""
    """Checkpoint whose weights start the run on the data and class names given here (the same as
    --train.init_from). Model, augmentation and inference settings that are all left at their
    defaults are taken from it."""
    seeds: str = ""
    """Seeds such as 0,1,2: one run after the other into OUT/seed-0 and so on, then mean and
    standard deviation. Finished ones are not repeated and an interrupted one goes on, so the same
    command may be given again."""
    devices: int = 0
    """Devices (or CPU processes) of each node, the same as --train.devices; 0 leaves it to the
    settings."""
    num_nodes: int = 0
    """Machines, the same as --train.num_nodes; 0 leaves it to the settings."""
    dry_run: bool = False
    """Print parameters, memory, steps and data counts, do one step, and write nothing."""
    wandb: str = ""
    """Log to this project of Weights & Biases too (pip install wandb)."""
    quiet: bool = False
    """Show only warnings and the last lines."""
    json_lines: bool = False
    """Write one JSON object a line to standard output and nothing else there: every logged step and
    every event."""

    def __post_init__(self) -> None:
        if self.quiet and self.json_lines:
            raise SettingError("--quiet and --json-lines contradict each other; choose one")
        if self.dry_run and self.seeds:
            raise SettingError("--dry-run looks at one run; leave out --seeds")


DEFAULT_OPTIONS = TrainOptions()


def train(
    config: Config,
    *,
    out: Path,
    resume: Resume = "never",
    full: bool = False,
    options: TrainOptions = DEFAULT_OPTIONS,
) -> int:
    """Train a model; the first word may be a YAML file, and every setting is a flag.

    Writes the checkpoint folder OUT/model, OUT/metrics.csv, TensorBoard files, sheets of
    predictions, OUT/run.json, OUT/log.txt, OUT/report.html, and the states for --resume.

    Args:
        config: settings.
        out: run folder.
        resume: auto goes on from the last saved state of the run in OUT if there is one, always
            refuses to start a new one, never to go on.
        full: store CLIP's own weights in the checkpoint too, so that it needs no other file.
        options: what is done and shown.
    """
    from cascade_clip.training import RunScreen, quiet_engine

    quiet_engine()
    check_folder(out)
    screen = RunScreen("json" if options.json_lines else "quiet" if options.quiet else "normal")
    with screen.reporting():
        given = {
            name: value for name in ("devices", "num_nodes") if (value := getattr(options, name))
        }
        config = start_from(
            dataclasses.replace(config, train=dataclasses.replace(config.train, **given)),
            options.init_from,
        )
        if options.dry_run:
            return _look_ahead(config, screen)
        if options.seeds:
            return _train_seeds(config, out, screen, options, full=full)
        _train_one(config, out, screen, options, resume=resume, full=full)
    return ExitCode.DONE


def start_from(config: Config, source: str) -> Config:
    """The settings of a run that starts from a checkpoint's weights: `source`, else
    train.init_from, else none.

    Model and inference settings that are all left at their defaults are taken from the checkpoint.

    Raises:
        ValueError: two checkpoints are named, or model settings do not fit the weights; every one
            that differs is named.
        FileNotFoundError: no such checkpoint.
    """
    named = config.train.init_from
    if source and named and source != named:
        raise SettingError(
            f"--init-from {source} and train.init_from {named} name two checkpoints; leave one out"
        )
    source = source or named
    if not source:
        return config
    from cascade_clip.checkpoints import find_checkpoint, read_config

    start = read_config(find_checkpoint(source))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=source))
    if config.model == ModelConfig():
        config = dataclasses.replace(config, model=start.model)
    if config.train.augment == AugmentConfig():
        config = dataclasses.replace(
            config, train=dataclasses.replace(config.train, augment=start.train.augment)
        )
    if config.inference == InferenceConfig():
        config = dataclasses.replace(config, inference=start.inference)
    wrong = _shape_differences(config.model, start.model)
    if wrong:
        raise SettingError(
            f"{source} does not fit these settings: {'; '.join(wrong)}. Leave model settings out to"
            " take the checkpoint's"
        )
    return config


def _shape_differences(model: ModelConfig, start: ModelConfig) -> list[str]:
    """The settings because of which the weights of one model do not fit the other."""
    from cascade_clip.models import find_differences

    return [
        f"model.{name} is {ours}, the checkpoint has {theirs}"
        for name, (ours, theirs) in find_differences(model, start).items()
    ]


def _look_ahead(config: Config, screen: RunScreen) -> int:
    from cascade_clip.data import build_dataset
    from cascade_clip.training import describe_dry_run, dry_run

    found = dry_run(config)
    for line in describe_dry_run(found, build_dataset(config.data).vocabulary.unseen):
        screen.conclude(line)
    screen.event("dry_run", **found.to_json())
    return ExitCode.DONE


def _train_seeds(
    config: Config, out: Path, screen: RunScreen, options: TrainOptions, *, full: bool
) -> int:
    """Run every seed that is not finished, then sum up."""
    from cascade_clip.training import (
        claim_seeds,
        is_first_process,
        parse_seeds,
        read_figures,
        seed_folder,
        seeds_line,
        seeds_table,
        write_seeds,
    )

    seeds = parse_seeds(options.seeds)
    if config.evaluation is None:
        raise SettingError(
            "--seeds compares the figures of the evaluation after training; set evaluation (its"
            " images, masks and classes)"
        )
    settings = config_to_dict(config)
    settings["train"].pop("seed")
    if is_first_process():
        claim_seeds(out, settings)
    for number, seed in enumerate(seeds, 1):
        folder = seed_folder(out, seed)
        finished = read_figures(folder) is not None
        if is_first_process():
            screen.say(
                f"seed {seed} ({number} of {len(seeds)}){': finished already' if finished else ''}"
            )
            screen.event("seed", seed=seed, finished=finished, out=folder)
        if not finished:
            one = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
            _train_one(one, folder, screen, options, resume="auto", full=full)
    if not is_first_process():
        return ExitCode.DONE
    figures = {
        seed: found for seed in seeds if (found := read_figures(seed_folder(out, seed))) is not None
    }
    path = write_seeds(out, settings, figures)
    screen.console.print(seeds_table(figures))
    screen.conclude(
        f"mean +- standard deviation of {len(figures)} seeds, percent: {seeds_line(figures)}"
    )
    screen.event("seeds", path=path, figures={str(seed): found for seed, found in figures.items()})
    screen.conclude(f"wrote {path}")
    return ExitCode.DONE


def _train_one(
    config: Config,
    out: Path,
    screen: RunScreen,
    options: TrainOptions,
    *,
    resume: Resume,
    full: bool,
) -> None:
    """Train, evaluate and report one run; its messages go into its log file."""
    from cascade_clip.data import build_dataset
    from cascade_clip.training import (
        LOG_FILE,
        command_line,
        fit,
        is_first_process,
        stopping_at_once,
    )

    with stopping_at_once(), screen.logging_to(out / LOG_FILE) as log:
        # found before anything runs
        dataset = None if config.evaluation is None else build_dataset(config.evaluation, "val")
        callbacks = _build_callbacks(config, out, screen, options, log, dataset)
        screen.note(f"command: {command_line()}")
        checkpoint = fit(config, out, resume=resume, full=full, callbacks=callbacks)
        if not is_first_process():  # the first process of the run says and does the rest
            return
        log.open()
        screen.conclude(f"wrote {out / 'model'}")
        screen.event("wrote", kind="checkpoint", path=out / "model")
        if dataset is not None:
            _evaluate(config, checkpoint, dataset, out, screen, full=full)
        _write_run_report(out, screen)
        screen.event("end", out=out, steps=checkpoint.record["steps"])


def _build_callbacks(
    config: Config,
    out: Path,
    screen: RunScreen,
    options: TrainOptions,
    log: RunLog,
    evaluation: LabelledImages | None,
) -> list[Callback]:
    """What watches the run."""
    from cascade_clip.data import build_dataset
    from cascade_clip.training import SheetWriter, StepEvents, TrainingProgress, WandbRun

    def sheet_written(step: int, path: Path) -> None:
        screen.note(f"wrote {path}")
        screen.event("sheet", step=step, path=path)

    shown = (
        build_dataset(config.data)
        if evaluation is None or config.evaluation is None
        else evaluation
    )
    embeddings = "" if config.evaluation is None else config.evaluation.text_embeddings
    callbacks: list[Callback] = [
        StepEvents(screen, log),
        TrainingProgress(screen.console),
        SheetWriter(shown, config.train.sheet_every, embeddings, report=sheet_written),
    ]
    return (
        [*callbacks, WandbRun(options.wandb, out, silent=screen.mode != "normal")]
        if options.wandb
        else callbacks
    )


def _evaluate(
    config: Config,
    checkpoint: Checkpoint,
    dataset: LabelledImages,
    out: Path,
    screen: RunScreen,
    *,
    full: bool,
) -> None:
    """Score the trained model, and keep the figures beside it and in its record."""
    from cascade_clip.checkpoints import save_checkpoint
    from cascade_clip.cli.evaluate import print_report
    from cascade_clip.evaluation import (
        Origin,
        build_page,
        evaluate,
        evaluation_record,
        hash_checkpoint,
        summarise,
    )
    from cascade_clip.files import write_whole
    from cascade_clip.inference import Predictor, given_embeddings
    from cascade_clip.training import EVALUATION

    assert config.evaluation is not None
    predictor = Predictor(checkpoint, device=config.train.device)
    text = given_embeddings(config.evaluation, len(dataset.vocabulary), predictor)
    origin = Origin(str(out), hash_checkpoint(out), config.evaluation)
    with progress_bar("evaluating") if screen.mode == "normal" else nullcontext(None) as step:
        report = evaluate(
            predictor, dataset, text=text, progress=step, keep=_PICTURES, origin=origin
        )
    if screen.mode == "normal":
        print_report(report)
    summary = summarise(report.scores)
    line = "  ".join(
        f"{metric.short} {format_percent(summary[metric.key])}" for metric in SUMMARY_METRICS
    )
    _tell(screen, f"{report.images} images: {line}")
    for assumption in report.assumptions:
        screen.note(f"- {assumption}")
    screen.event("evaluation", images=report.images, **summary)
    pages = [report.save(out / "report.json"), write_whole(out / EVALUATION, build_page(report))]
    screen.say(f"wrote {pages[0]} and {pages[1]}")
    record = {**checkpoint.record, "evaluation": evaluation_record(report, config.evaluation)}
    save_checkpoint(out / "model", dataclasses.replace(checkpoint, record=record), full=full)


def _tell(screen: RunScreen, figures: str) -> None:
    """The figures in one line; people who saw the table have them already."""
    if screen.mode == "normal":
        screen.note(figures)
    else:
        screen.conclude(figures)


def _write_run_report(out: Path, screen: RunScreen) -> None:
    from cascade_clip.training import write_run_report

    path = write_run_report(out)
    screen.conclude(f"wrote {path}")
    screen.event("wrote", kind="report", path=path)
