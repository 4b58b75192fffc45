"""From settings to a trained checkpoint: the stages of a run, with Lightning as the engine."""

import dataclasses
import logging
from pathlib import Path

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback

from cascade_clip.checkpoints import Checkpoint, load_checkpoint, load_strictly, save_checkpoint
from cascade_clip.config import Config, Resume, TrainConfig
from cascade_clip.data import LabelledImages, build_dataset, data_templates, describe_data
from cascade_clip.encoders import build_text_encoder, load_clip, load_embeddings
from cascade_clip.errors import SettingError
from cascade_clip.models import build_segmenter
from cascade_clip.training.data_module import TrainingBatches
from cascade_clip.training.engine import build_trainer, run_engine
from cascade_clip.training.launch import check_launch, is_first_process
from cascade_clip.training.protocols import build_protocol
from cascade_clip.training.provenance import write_run_file
from cascade_clip.training.resume import newest_state, saved_step
from cascade_clip.training.run_folder import Run
from cascade_clip.training.task import SegmentationTask

logger = logging.getLogger(__name__)


def fit(
    config: Config,
    out: Path,
    *,
    resume: Resume = "never",
    full: bool = False,
    callbacks: list[Callback] | None = None,
) -> Checkpoint:
    """Train as `config` says, write the checkpoint folder `out/model` and return the checkpoint.

    A transductive run without `train.init_from` first runs its inductive half into `out/stage1`.
    With `full`, CLIP's own weights are stored in the checkpoint too. `resume` is `never`: the
    folder must hold no run; `auto`: resume from the newest state if there is one, else start;
    `always`: resume, and refuse to start. A resumed run is bit for bit the uninterrupted one; a
    finished one is returned as it is.

    Raises:
        ValueError, FileNotFoundError: settings, data or weights that do not fit; `out` holds a run,
            or none, against `resume`.
        FloatingPointError: a loss or gradient is not finite.
        OSError: a training state cannot be written.
        Interrupted: a scheduler asked the run to end, and its state is saved.
    """
    check_launch(config.train)
    dataset = build_dataset(config.data)
    # a split that makes no sense is found before anything is written
    build_protocol(config.train, torch.tensor(dataset.vocabulary.seen_mask))
    run = Run(config, out)
    run.claim(resume)
    if config.train.has_first_half:
        _fit_first_half(run.first_half(), dataset, resume, callbacks or [])
        run = run.second_half()
    return _fit_stage(run, dataset, resume, callbacks or [], full=full)


def _fit_first_half(
    run: Run, dataset: LabelledImages, resume: Resume, callbacks: list[Callback]
) -> None:
    run.claim("never" if resume == "never" else "auto")
    train = run.config.train
    if is_first_process() and not run.has_ended():
        text = "transductive run: the inductive half (%d steps of a schedule of %d) comes first"
        logger.info(text, train.steps, train.schedule_steps)
    _fit_stage(run, dataset, resume, callbacks)
    if not run.has_ended():
        raise SettingError(
            f"the self-training stage needs all {train.steps} steps of stage 1 in {run.folder};"
            " go on with --resume auto"
        )


def _fit_stage(
    run: Run, dataset: LabelledImages, resume: Resume, callbacks: list[Callback], full: bool = False
) -> Checkpoint:
    """Train one protocol into a folder, from its newest state or from the start."""
    if resume != "never" and run.has_ended():
        logger.info("%s has been trained to its end already", run.folder)
        return load_checkpoint(run.checkpoint)
    checkpoint = prepare(run.config, dataset)
    task = SegmentationTask.of(checkpoint)
    state = newest_state(run.states) if resume != "never" else None
    used = saved_step(state) * run.config.train.batch_size if state else 0
    batches = TrainingBatches(run.config, dataset, used)
    trainer, saver = build_trainer(run, callbacks)
    if is_first_process():
        _announce(run, dataset)
    description = write_run_file(run, dataset)
    run_engine(trainer, saver, task, batches, state)
    for name in ("config", "vocabulary", "split"):  # the checkpoint has files of its own for them
        del description[name]
    record = {
        "protocol": run.config.train.protocol,
        "steps": task.global_step,
        "images": len(dataset),
        "run": description,
    }
    given = checkpoint.text_encoder is None or run.config.data.text_embeddings
    model, text = task.model.cpu().eval(), checkpoint.text if given else None
    finished = dataclasses.replace(checkpoint, model=model, text=text, record=record)
    if trainer.is_global_zero:
        save_checkpoint(run.checkpoint, finished, full=full)
    trainer.strategy.barrier("checkpoint")  # other processes may read it now
    return finished


def _announce(run: Run, dataset: LabelledImages) -> None:
    train = run.config.train
    logger.info("%s", describe_data(dataset))
    logger.info("%s", describe_batch(train))
    warm, steps = train.optimizer.warmup_steps, train.schedule_steps or train.steps
    if warm >= steps:
        text = "the warm-up (train.optimizer.warmup_steps %d) fills the whole run of %d steps"
        logger.warning(text + ": the learning rate stays low", warm, steps)


def describe_batch(train: TrainConfig) -> str:
    """Return in one line how the images of a step are shared."""
    return (
        f"a step of {train.batch_size} images = {train.num_nodes} nodes x {train.devices} devices x"
        f" {train.accumulation} passes x {train.images_at_once} images"
    )


def prepare(config: Config, dataset: LabelledImages) -> Checkpoint:
    """Return the model before the first step, with text embeddings of the dataset's class names.

    Raises:
        ValueError, FileNotFoundError: weights or text embeddings that do not fit or are missing.
    """
    lightning.seed_everything(config.train.seed, verbose=False)
    vocabulary, clip = dataset.vocabulary, load_clip(config.model.clip)
    encoder, model = build_text_encoder(clip), build_segmenter(config.model, clip)
    if config.train.init_from:
        first = load_checkpoint(config.train.init_from)
        if not first.clip_fingerprint:  # its own CLIP must embed the class names
            encoder, clip = first.text_encoder, dataclasses.replace(clip, fingerprint="")
        elif first.clip_fingerprint != clip.fingerprint:
            raise SettingError(
                f"{config.train.init_from} was trained with a different CLIP than"
                f" {config.model.clip.name} {config.model.clip.weights}"
            )
        load_strictly(model, first.model.state_dict(), Path(config.train.init_from))
    templates = data_templates(config.data)
    if config.data.text_embeddings:
        file, count = Path(config.data.text_embeddings), len(vocabulary.names)
        text = load_embeddings(file, count, model.joint_width)
    elif encoder is None:
        fix = "give text embeddings with data.text_embeddings"
        raise SettingError(f"this CLIP has no text tower here; {fix}")
    else:
        text = encoder.embed(vocabulary.synonyms, templates)
    return Checkpoint(
        model, encoder, config, vocabulary, templates, clip.fingerprint, clip.architecture, text
    )
