"""One run in a process of its own, which `jobs` starts with the description of the run as JSON.

Trains unless that is done, then makes missing scores and calibration choices. Results that exist
are never made twice, and a run that another process is making is waited for. Ends when the process
that started it ends.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cascade_clip.errors import explain_error
from cascade_clip.files import report_defect
from cascade_clip.research.reproduction.jobs import PARENT, Job
from cascade_clip.research.reproduction.keys import Choice, Inference
from cascade_clip.research.reproduction.runs import is_trained, write_choice, write_result

if TYPE_CHECKING:
    from torch import Tensor

    from cascade_clip.data import LabelledImages
    from cascade_clip.inference import Predictor


def main(words: Sequence[str] | None = None) -> int:
    """Run one job; its exit code is 0, or 1 with one line on standard error that says why."""
    from cascade_clip.training import quiet_engine, watch_parent

    if parent := os.environ.get(PARENT):
        watch_parent(int(parent))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cascade_clip").setLevel(logging.INFO)
    quiet_engine()
    job = Job.from_json((sys.argv[1:] if words is None else words)[0])
    try:
        run_job(job)
    except Exception as error:
        text = explain_error(error) or report_defect(error)
        sys.stderr.write(" ".join(text.split())[:500] + "\n")
        return 1
    return 0


def run_job(job: Job) -> None:
    """Train and score one run, as far as that is not done yet.

    Raises:
        ValueError, OSError, FloatingPointError: what training and evaluation raise.
    """
    from filelock import FileLock

    from cascade_clip.training import fit

    job.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(job.folder / ".lock"):
        if not is_trained(job.folder):
            fit(job.config, job.folder, resume="auto")
        _score(job)


def _score(job: Job) -> None:
    """Make the scores and choices that are missing."""
    import numpy as np

    from cascade_clip.data import build_dataset
    from cascade_clip.evaluation import collect_tallies, sweep_calibration
    from cascade_clip.inference import given_embeddings, load_predictor

    if job.done:
        return
    trained = load_predictor(job.folder / "model", device=job.config.train.device)

    def prepare(one: Inference | Choice) -> tuple[Predictor, LabelledImages, Tensor | None]:
        dataset = build_dataset(one.data, "val")
        text = given_embeddings(one.data, len(dataset.vocabulary), trained)
        return trained.with_settings(one.settings), dataset, text

    for inference in job.to_score:
        predictor, dataset, text = prepare(inference)
        tallies, vocabulary = collect_tallies(predictor, dataset, inference.calibration, text)
        write_result(job.folder, inference, tallies, np.array(vocabulary.seen_mask))
    for choice in job.to_choose:
        predictor, dataset, text = prepare(choice)
        hidden = choice.held_out
        sweep = sweep_calibration(predictor, dataset, choice.values, held_out=hidden, text=text)
        # an error where there is nothing to choose by
        chosen = sweep.values[sweep.best]
        write_choice(job.folder, choice, {**sweep.to_json(), "chosen": chosen})


if __name__ == "__main__":
    sys.exit(main())
