"""Measurements of this machine: how fast training data come, how long inference and training take,
against a textbook variant."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from cascade_clip.config import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig
from cascade_clip.data import SegmentationFolder, StepSampler, TrainingSet, TrainTransform
from cascade_clip.sandbox import CLASS_NAMES, SceneConfig, make_scene
from cascade_clip.vocabulary import parse_classes

PHOTOS = 24
PHOTO_SIZE = (640, 480)


@dataclass(frozen=True)
class Measurement:
    """One figure with what it was measured on."""

    name: str
    value: float
    unit: str
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"name": self.name, "value": self.value, "unit": self.unit, "note": self.note}


def describe_machine() -> dict[str, Any]:
    """Processor, cores, devices and versions that a figure belongs to."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": model,
        "cores": cores,
        "gpu": gpu,
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def measure_data(
    seconds: float = 8.0, workers: int = 0, progress: Callable[[str], None] | None = None
) -> list[Measurement]:
    """Augmented 512 px crops per second and core, from JPEG photos of 640 x 480 pixels with PNG
    masks.

    The photos are scenes of the built-in world, enlarged, with sensor-like noise, so that decoding
    them costs what a photo costs.

    Args:
        seconds: how long each setting runs.
        workers: loading processes to measure beside one process; 0 takes the number of cores.
        progress: told what is measured.
    """
    cores = int(describe_machine()["cores"] or 1)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        sizes = write_photos(Path(folder))
        dataset = SegmentationFolder(
            Path(folder) / "images", Path(folder) / "masks", parse_classes(", ".join(CLASS_NAMES))
        )
        training = TrainingSet(
            dataset, TrainTransform(AugmentConfig(), IMAGENET_MEAN, IMAGENET_STD)
        )
        note = f"JPEG of {statistics.mean(sizes) / 1000:.0f} kB on average"
        if progress is not None:
            progress("one process")
        found.append(
            Measurement("crops, one process", _crops_per_second(training, seconds), "crops/s", note)
        )
        count = workers or cores
        if progress is not None:
            progress(f"{count} processes")
        rate = _loaded_per_second(training, count, seconds)
        found.append(
            Measurement(
                f"crops, {count} processes",
                rate,
                "crops/s",
                f"{rate / min(count, cores):.1f} per core",
            )
        )
    return found


def write_photos(folder: Path, count: int = PHOTOS) -> list[int]:
    """Photo-like JPEG files with masks; returns their sizes in bytes."""
    sizes = []
    draw = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        scene = make_scene(0, index, SceneConfig(size=160))
        picture = Image.fromarray(scene.image).resize(PHOTO_SIZE, Image.Resampling.BICUBIC)
        noisy = np.asarray(picture, dtype=np.float32) + draw.normal(
            0, 6, (PHOTO_SIZE[1], PHOTO_SIZE[0], 3)
        )
        path = folder / "images" / f"{index:03d}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        Image.fromarray(scene.mask.astype(np.uint8)).resize(
            PHOTO_SIZE, Image.Resampling.NEAREST
        ).save(folder / "masks" / f"{index:03d}.png")
        sizes.append(path.stat().st_size)
    return sizes


def _crops_per_second(training: TrainingSet, seconds: float) -> float:
    """Crops of one process with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        training[0, 0]
        count, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            training[count, count % len(training)]
            count += 1
        return count / (time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)


def _loaded_per_second(training: TrainingSet, workers: int, seconds: float) -> float:
    """Crops that arrive from loading processes in batches of 8, from the second batch of every
    process on."""
    loader = DataLoader(
        training, batch_size=8, sampler=StepSampler(len(training), 8), num_workers=workers
    )
    batches = iter(loader)
    for _ in range(workers):
        next(batches)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        count += len(next(batches)[0])
    return count / (time.perf_counter() - begin)
