"""The command that trains models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.terminal import check_folder, progress_bar
from cascade_clip.config import AugmentConfig, Config, InferenceConfig, ModelConfig, Resume
from cascade_clip.errors import SettingError
from cascade_clip.results import SUMMARY_METRICS, format_percent

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from cascade_clip.checkpoints import Checkpoint
    from cascade_clip.data import LabelledImages
    from cascade_clip.training import RunLog, RunScreen, SeedRuns

_EXAMPLES = 6
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
    standard deviation. The same command resumes: finished runs are not repeated."""
    devices: int = 0
    """Devices (or CPU processes) of each node, as --train.devices; 0 leaves it to the settings."""
    num_nodes: int = 0
    """Machines, the same as --train.num_nodes; 0 leaves it to the settings."""
    dry_run: bool = False
    """Print parameters, memory, steps and data counts, do one step, and write nothing."""
    wandb: str = ""
    """Log to this project of Weights & Biases too (pip install wandb)."""
    quiet: bool = False
    """Show only warnings and the last lines."""
    json_lines: bool = False
    """Write standard output as one JSON object a line: every logged step and every event."""

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

    Writes the checkpoint folder OUT/model, OUT/metrics.csv, TensorBoard files, previews of
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
        sizes: dict[str, Any] = {"devices": options.devices, "num_nodes": options.num_nodes}
        given = {name: value for name, value in sizes.items() if value}
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, **given))
        config = start_from(config, options.init_from)
        session = TrainingSession(config, out, screen, options.wandb, full)
        if options.dry_run:
            session.look_ahead()
        elif options.seeds:
            session.train_seeds(options.seeds)
        else:
            session.train(resume)
    return ExitCode.DONE


def start_from(config: Config, source: str) -> Config:
    """Return the settings of a run that starts from `source`, else train.init_from, else nothing.

    Model and inference settings that are all left at their defaults are taken from the checkpoint.

    Raises:
        ValueError: two checkpoints are named, or model settings do not fit the weights; every one
            that differs is named.
        FileNotFoundError: no such checkpoint.
    """
    named = config.train.init_from
    if source and named and source != named:
        both = f"--init-from {source} and train.init_from {named}"
        raise SettingError(f"{both} name two checkpoints; leave one out")
    source = source or named
    if not source:
        return config
    from cascade_clip.checkpoints import find_checkpoint, read_config
    from cascade_clip.models import find_differences

    start = read_config(find_checkpoint(source))
    own = config.train.augment
    augment = start.train.augment if own == AugmentConfig() else own
    config = dataclasses.replace(
        config,
        model=start.model if config.model == ModelConfig() else config.model,
        inference=start.inference if config.inference == InferenceConfig() else config.inference,
        train=dataclasses.replace(config.train, init_from=source, augment=augment),
    )
    wrong = "; ".join(
        f"model.{name} is {ours}, the checkpoint has {theirs}"
        for name, (ours, theirs) in find_differences(config.model, start.model).items()
    )
    if wrong:
        fix = "Leave model settings out to take the checkpoint's"
        raise SettingError(f"{source} does not fit these settings: {wrong}. {fix}")
    return config


@dataclass(frozen=True)
class TrainingSession:
    """One call of the command: what is trained, where to, and what is shown."""

    config: Config
    out: Path
    screen: RunScreen
    wandb: str = ""
    full: bool = False

    def look_ahead(self) -> None:
        """Do one step and print what the run would be; write nothing."""
        from cascade_clip.data import build_dataset
        from cascade_clip.training import describe_dry_run, dry_run

        found = dry_run(self.config)
        unseen = build_dataset(self.config.data).vocabulary.unseen
        for line in describe_dry_run(found, unseen):
            self.screen.conclude(line)
        self.screen.event("dry_run", **found.to_json())

    def train_seeds(self, text: str) -> None:
        """Run every seed of a list such as `0,1,2` that is not finished, then summarise."""
        from cascade_clip.training import SeedRuns, is_first_process, parse_seeds

        seeds = parse_seeds(text)
        if self.config.evaluation is None:
            needed = "set evaluation (its images, masks and classes)"
            raise SettingError(f"--seeds compares figures of the evaluation; {needed}")
        runs = SeedRuns(self.config, self.out)
        if is_first_process():
            runs.claim()
        for number, seed in enumerate(seeds, 1):
            run = runs.run(seed)
            finished = runs.results(seed) is not None
            if is_first_process():
                state = ": finished already" if finished else ""
                self.screen.say(f"seed {seed} ({number} of {len(seeds)}){state}")
                self.screen.event("seed", seed=seed, finished=finished, out=run.folder)
            if not finished:
                one = dataclasses.replace(self, config=run.config, out=run.folder)
                one.train("auto")
        if is_first_process():
            self._summarise(runs, seeds)

    def _summarise(self, runs: SeedRuns, seeds: Sequence[int]) -> None:
        from cascade_clip.training import seeds_line, seeds_table

        figures = {seed: found for seed in seeds if (found := runs.results(seed)) is not None}
        path = runs.write(figures)
        self.screen.console.print(seeds_table(figures))
        title = f"mean +- standard deviation of {len(figures)} seeds, percent"
        self.screen.conclude(f"{title}: {seeds_line(figures)}")
        self.screen.event("seeds", path=path, figures={str(key): figures[key] for key in figures})
        self.screen.conclude(f"wrote {path}")

    def train(self, resume: Resume) -> None:
        """Train, evaluate and report one run; its messages go into its log file."""
        from cascade_clip.data import build_dataset
        from cascade_clip.training import (
            LOG_FILE,
            command_line,
            fit,
            is_first_process,
            stopping_at_once,
            write_run_report,
        )

        config, out, screen = self.config, self.out, self.screen
        with stopping_at_once(), screen.logging_to(out / LOG_FILE) as log:
            # found before anything runs
            dataset = None if config.evaluation is None else build_dataset(config.evaluation, "val")
            callbacks = self._build_callbacks(log, dataset)
            screen.note(f"command: {command_line()}")
            checkpoint = fit(config, out, resume=resume, full=self.full, callbacks=callbacks)
            if not is_first_process():  # the first process of the run says and does the rest
                return
            log.open()
            screen.conclude(f"wrote {out / 'model'}")
            screen.event("wrote", kind="checkpoint", path=out / "model")
            if dataset is not None:
                self._evaluate(checkpoint, dataset)
            path = write_run_report(out)
            screen.conclude(f"wrote {path}")
            screen.event("wrote", kind="report", path=path)
            screen.event("end", out=out, steps=checkpoint.record["steps"])

    def _build_callbacks(self, log: RunLog, evaluation: LabelledImages | None) -> list[Callback]:
        """Return what watches the run."""
        from cascade_clip.data import build_dataset
        from cascade_clip.training import PreviewWriter, StepEvents, TrainingProgress, WandbRun

        def preview_written(step: int, path: Path) -> None:
            self.screen.note(f"wrote {path}")
            self.screen.event("preview", step=step, path=path)

        settings = self.config.evaluation
        dataset = build_dataset(self.config.data) if evaluation is None else evaluation
        every, text = self.config.train.preview_every, settings.text_embeddings if settings else ""
        callbacks: list[Callback] = [
            StepEvents(self.screen, log),
            TrainingProgress(self.screen.console),
            PreviewWriter(dataset, every, text, report=preview_written),
        ]
        if self.wandb:
            callbacks.append(WandbRun(self.wandb, self.out, silent=self.screen.mode != "normal"))
        return callbacks

    def _evaluate(self, checkpoint: Checkpoint, dataset: LabelledImages) -> None:
        """Score the trained model, and keep the results beside it and in its record."""
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

        settings, out, screen = self.config.evaluation, self.out, self.screen
        assert settings is not None
        normal = screen.mode == "normal"
        predictor = Predictor(checkpoint, device=self.config.train.device)
        text = given_embeddings(settings, len(dataset.vocabulary), predictor)
        origin = Origin(str(out), hash_checkpoint(out), settings)
        with progress_bar("evaluating") if normal else nullcontext(None) as step:
            report = evaluate(
                predictor, dataset, text=text, progress=step, keep=_EXAMPLES, origin=origin
            )
        summary = summarise(report.scores)
        figures = [f"{one.short} {format_percent(summary[one.key])}" for one in SUMMARY_METRICS]
        if normal:
            print_report(report)
        # people who saw the table have these values already
        tell = screen.note if normal else screen.conclude
        tell(f"{report.images} images: {'  '.join(figures)}")
        for assumption in report.assumptions:
            screen.note(f"- {assumption}")
        screen.event("evaluation", images=report.images, **summary)
        path = report.save(out / "report.json")
        screen.say(f"wrote {path} and {write_whole(out / EVALUATION, build_page(report))}")
        record = {**checkpoint.record, "evaluation": evaluation_record(report, settings)}
        scored = dataclasses.replace(checkpoint, record=record)
        save_checkpoint(out / "model", scored, full=self.full)
