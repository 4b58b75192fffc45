"""The command that trains models."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from cascade_clip.config import Config
from cascade_clip.plain_values import config_to_dict
from cascade_clip.terminal import console, progress_bar


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
    dataset = None if config.evaluation is None else build_dataset(config.evaluation, "val")  # found before anything runs
    checkpoint = fit(config, out, resume=resume, full=full, callbacks=[TrainingProgress(console)])
    if os.environ.get("LOCAL_RANK", "0") != "0":  # the first process of the run says and does the rest
        return 0
    console.print(f"wrote {out / 'model'}", markup=False, highlight=False, soft_wrap=True)
    if config.evaluation is not None and dataset is not None:
        from cascade_clip.evaluate import evaluate as run_evaluation
        from cascade_clip.evaluate import summarise
        from cascade_clip.evaluate_commands import given_embeddings, print_report
        from cascade_clip.predictor import Predictor

        predictor = Predictor(checkpoint, device=config.train.device)
        with progress_bar("evaluating") as step:
            text = given_embeddings(config.evaluation, len(dataset.vocabulary), predictor)
            report = run_evaluation(predictor, dataset, text=text, progress=step)
        print_report(report)
        console.print(f"wrote {report.save(out / 'report.json')}", markup=False, highlight=False)
        record = {**checkpoint.record, "evaluation": {"data": config_to_dict(config.evaluation), "summary": summarise(report.scores)}}
        save_checkpoint(out / "model", dataclasses.replace(checkpoint, record=record), full=full)
    return 0
