"""Provenance of a run, kept in `run.json`: settings, data, code, machine and command line."""

import json
import logging
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from cascade_clip.checkpoints import read_versions
from cascade_clip.config import TrainConfig, config_to_dict
from cascade_clip.data import LabelledImages
from cascade_clip.evaluation import hash_dataset
from cascade_clip.files import write_json
from cascade_clip.training.launch import is_first_process
from cascade_clip.training.run_folder import Run

RUN_FILE = "run.json"

_logger = logging.getLogger(__name__)


def write_run_file(run: Run, dataset: LabelledImages) -> dict[str, Any]:
    """Return everything that decides the results of a run that starts or resumes, as plain values.

    The first process writes it to `run.json`. Starts that the file already lists are kept.
    """
    vocabulary, train = dataset.vocabulary, run.config.train
    data = {"sha256": hash_dataset(dataset), "images": len(dataset)}
    earlier = read_object(run.folder / RUN_FILE)
    if earlier.get("data", {}).get("sha256") not in (None, data["sha256"]):
        _logger.warning(
            "the training data is not what this run began with: other files, sizes or class names"
        )
    found = {
        "seed": train.seed,
        "protocol": train.protocol,
        "batch": describe_batch(train),
        "data": data,
        "split": {"seen": list(vocabulary.seen), "unseen": list(vocabulary.unseen)},
        "starts": [*earlier.get("starts", []), describe_start()],
        "vocabulary": {
            "names": list(vocabulary.names),
            "synonyms": [list(group) for group in vocabulary.synonyms],
        },
        "config": config_to_dict(run.config),
    }
    if is_first_process():
        write_json(run.folder / RUN_FILE, found)
    return found


def describe_start() -> dict[str, Any]:
    """Return time, command line, versions, git commit and machine of this process."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(),
        "versions": read_versions(),
        "git": read_git(),
        "hardware": {
            "platform": platform.platform(),
            "cpu": _processor_name(),
            "cpu_cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count())],
        },
    }


def command_line() -> str:
    """Return how this process was called, ready for a shell; the program without its folder."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def describe_batch(train: TrainConfig) -> dict[str, int]:
    """Return how the images of a step are shared: devices x images at once x accumulation."""
    return {
        "devices": train.processes,
        "per_device": train.images_at_once,
        "accumulation": train.accumulation,
        "effective": train.batch_size,
    }


def read_git(folder: Path | None = None) -> dict[str, Any] | None:
    """Return the commit of the git repository that holds `folder` (default: the working directory)
    and whether tracked files differ from it; None without repository, commit or git."""

    def ask(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {
            "commit": ask("rev-parse", "HEAD"),
            "dirty": bool(ask("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except (OSError, UnicodeDecodeError):
        pass  # not Linux
    return platform.processor() or platform.machine()


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a run folder; an empty one if it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
