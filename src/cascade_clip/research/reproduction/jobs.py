"""The runs that entries need, which of them are done, and how processes make the others."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cascade_clip.config import Config, config_from_dict, config_to_dict
from cascade_clip.research.reproduction.entries import Entry
from cascade_clip.research.reproduction.keys import Choice, Inference, training_key
from cascade_clip.research.reproduction.runs import (
    Reproduction,
    is_trained,
    read_choice,
    read_result,
    training_seconds,
)
from cascade_clip.training import read_metrics

PARENT = "CASCADE_CLIP_REPRODUCE_PARENT"
"""Environment variable with the process that a run must not outlive."""
LOG = "log.txt"
_TRAINING_SHARE = 0.9
"""Part of a run that training takes, the rest being evaluation; for the progress bar only."""
_PATIENCE = 30.0
"""Seconds that a run gets to save its state when it is asked to stop."""


@dataclass(frozen=True)
class Job:
    """One training with one seed, and all that is asked of its model."""

    name: str  # of the first row that needs it
    folder: Path  # run folder
    config: Config  # settings of the training
    inferences: tuple[Inference, ...]  # ways of inference to score
    entries: tuple[str, ...] = ()  # keys of the entries that need it
    choices: tuple[Choice, ...] = ()  # choices of a calibration to make

    @property
    def done(self) -> bool:
        """Whether every score and every choice is there."""
        return is_trained(self.folder) and not self.to_score and not self.to_choose

    @property
    def to_score(self) -> list[Inference]:
        """Ways of inference without scores."""
        seed = self.config.train.seed
        return [one for one in self.inferences if read_result(self.folder, one, seed) is None]

    @property
    def to_choose(self) -> list[Choice]:
        """Choices that are not made."""
        return [one for one in self.choices if read_choice(self.folder, one) is None]

    @property
    def steps(self) -> int:
        """Steps of the training, of both halves where there are two."""
        train = self.config.train
        return train.steps * (2 if train.protocol == "transductive" and not train.init_from else 1)

    @property
    def steps_done(self) -> int:
        """Steps that were made already, by the last line of its log."""
        halves = (self.folder / "stage1", self.folder)
        rows = [read_metrics(half / "metrics.csv") for half in halves]
        return int(sum(found[-1]["step"] for found in rows if found))

    def to_json(self) -> str:
        """Describe the job to another process."""
        return json.dumps({**config_to_dict(self), "folder": str(self.folder)})

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is not the description of a run.
        """
        values: dict[str, Any] = json.loads(text)
        config = config_from_dict(Config, values["config"])
        inferences = tuple(config_from_dict(Inference, one) for one in values["inferences"])
        choices = tuple(config_from_dict(Choice, one) for one in values["choices"])
        folder = Path(values["folder"])
        return cls(values["name"], folder, config, inferences, choices=choices)


def plan_jobs(entries: Sequence[Entry], reproduction: Reproduction) -> list[Job]:
    """List each run that the entries need once, entry by entry, seed by seed. All new seeds of a
    training get one folder, even if different rows ask for them."""
    jobs: dict[tuple[str, int], Job] = {}
    folders: dict[str, Path] = {}
    for job in _jobs_of(entries, reproduction):
        training = training_key(job.config)
        key = training, job.config.train.seed
        parent = folders.setdefault(training, job.folder.parent)
        placed = job if job.folder.is_dir() else replace(job, folder=parent / job.folder.name)
        old = jobs.get(key, placed)
        jobs[key] = replace(
            old,
            inferences=tuple(dict.fromkeys(old.inferences + job.inferences)),
            entries=tuple(dict.fromkeys(old.entries + job.entries)),
            choices=tuple(dict.fromkeys(old.choices + job.choices)),
        )
    return list(jobs.values())


def _jobs_of(entries: Sequence[Entry], reproduction: Reproduction) -> Iterator[Job]:
    """Yield the training of every row and seed, and the one that chooses a row's calibration."""
    settings, folder = reproduction.settings, reproduction.seed_folder
    for entry in entries:
        for seed in reproduction.seeds[entry.key]:
            for row in entry.rows:
                inference, choice = settings.inference(row), settings.choice(row)
                config, keys = settings.training_config(row, seed), (entry.key,)
                values = tuple(inference.calibrated(one) for one in row.choices) or (inference,)
                yield Job(row.name, folder(row, config), config, values, keys)
                if choice is not None:
                    config, name = settings.hidden_config(row, seed), f"{row.name}: the choice"
                    yield Job(name, folder(row, config), config, (), keys, (choice,))


def estimate_seconds(jobs: Sequence[Job]) -> dict[Path, float]:
    """Estimate the remaining training seconds of unfinished jobs, by folder; empty before any ends.

    Another seed of the same training is the best guess, else the mean time of a step.
    """
    finished = [job for job in jobs if is_trained(job.folder)]
    paces = {job.folder: training_seconds(job.folder) / job.steps for job in finished}
    found = {}
    for job in jobs if finished else ():
        if not job.done:
            own = [pace for path, pace in paces.items() if path.parent == job.folder.parent]
            steps = 0 if is_trained(job.folder) else job.steps - job.steps_done
            found[job.folder] = steps * statistics.fmean(own or paces.values())
    return found


@dataclass(frozen=True)
class Failure:
    """A run that failed."""

    job: Job
    reason: str  # one line


def run_jobs(
    jobs: Sequence[Job],
    at_once: int,
    *,
    one_core: bool,
    failed: Callable[[Failure], None],
    moved: Callable[[float, int], None],
) -> list[Failure]:
    """Make runs in separate processes and return the failures, which do not stop the others. When
    this is interrupted, the processes save their state and stop.

    Args:
        jobs: the runs.
        at_once: number of processes.
        one_core: whether each is held to one core.
        failed: called with every failure.
        moved: called repeatedly with the runs made, parts of runs included, and the runs done.
    """
    waiting, failures = list(jobs), []
    running: dict[subprocess.Popen[bytes], tuple[Job, int]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                log = job.folder / LOG
                begin = log.stat().st_size if log.is_file() else 0
                running[_start(job, one_core=one_core)] = job, begin
            time.sleep(0.2)
            for process in [one for one in running if one.poll() is not None]:
                job, begin = running.pop(process)
                if process.returncode or not job.done:
                    failures.append(Failure(job, _last_line(job, begin)))
                    failed(failures[-1])
            done = len(jobs) - len(waiting) - len(running)
            parts = sum(min(1.0, job.steps_done / job.steps) for job, _ in running.values())
            moved(done + _TRAINING_SHARE * parts, done)
    finally:
        _stop(running)
    return failures


def _start(job: Job, *, one_core: bool) -> subprocess.Popen[bytes]:
    """Start a process that logs to the run folder, in a session that only `_stop` interrupts."""
    threads = {"OMP_NUM_THREADS": "1"} if one_core else {}
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", **threads, PARENT: str(os.getpid())}
    job.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", f"{__package__}.job_process", job.to_json()]
    with (job.folder / LOG).open("ab") as log:
        streams: Any = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env=environment, start_new_session=True, **streams)


def _stop(running: Mapping[subprocess.Popen[bytes], Any]) -> None:
    for process in running:
        process.terminate()
    end = time.monotonic() + _PATIENCE
    for process in running:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(job: Job, begin: int) -> str:
    text = (job.folder / LOG).read_bytes()[begin:].decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else f"it ended without a word; see {job.folder / LOG}"
