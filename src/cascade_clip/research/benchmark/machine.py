"""Measurements of this machine: speed of loading training data, and of starting the program."""

import os
import platform
import re
import statistics
import subprocess
import sys
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
        """Write plain values."""
        return dict(vars(self))


def describe_machine() -> dict[str, Any]:
    """Processor, cores, devices and versions that a figure belongs to."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"^model name\s*:\s*(.*?)\s*$", info.read_text(), re.MULTILINE)
        model = found[1] if found else model
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {"torch": torch.__version__, "date": date.today().isoformat()}
    return {"processor": model, "cores": cores, "gpu": gpu, **versions}


def measure_data(
    seconds: float = 8.0, workers: int = 0, tell: Callable[[str], None] = lambda text: None
) -> list[Measurement]:
    """Measure augmented 512 px crops per second, from JPEG files of 640 x 480 pixels and PNG masks.

    The images are enlarged scenes of the sandbox with noise, so that decoding costs what a photo's
    does.

    Args:
        seconds: how long each setting runs.
        workers: loading processes to measure beside one process; 0 takes the number of cores.
        tell: told what is measured.
    """
    cores = int(describe_machine()["cores"] or 1)
    with tempfile.TemporaryDirectory() as folder:
        sizes = write_photos(Path(folder))
        names = parse_classes(", ".join(CLASS_NAMES))
        dataset = SegmentationFolder(Path(folder) / "images", Path(folder) / "masks", names)
        transform = TrainTransform(AugmentConfig(), IMAGENET_MEAN, IMAGENET_STD)
        training = TrainingSet(dataset, transform)
        tell("one process")
        rate, count = _crops_per_second(training, seconds), workers or cores
        note = f"JPEG of {statistics.mean(sizes) / 1000:.0f} kB on average"
        one = Measurement("crops, one process", rate, "crops/s", note)
        tell(f"{count} processes")
        rate = _loaded_per_second(training, count, seconds)
        note = f"{rate / min(count, cores):.1f} per core"
        return [one, Measurement(f"crops, {count} processes", rate, "crops/s", note)]


def write_photos(folder: Path, count: int = PHOTOS) -> list[int]:
    """Photo-like JPEG files with masks; returns their sizes in bytes."""
    sizes = []
    draw = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        scene = make_scene(0, index, SceneConfig(size=160))
        image = Image.fromarray(scene.image).resize(PHOTO_SIZE, Image.Resampling.BICUBIC)
        noise = draw.normal(0, 6, (PHOTO_SIZE[1], PHOTO_SIZE[0], 3))
        noisy = np.asarray(image, dtype=np.float32) + noise
        path = folder / "images" / f"{index:03d}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        mask = Image.fromarray(scene.mask.astype(np.uint8))
        mask = mask.resize(PHOTO_SIZE, Image.Resampling.NEAREST)
        mask.save(folder / "masks" / f"{index:03d}.png")
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
    """Crops per second from loading processes, in batches of 8, without each process's first."""
    sampler = StepSampler(len(training), 8)
    batches = iter(DataLoader(training, batch_size=8, sampler=sampler, num_workers=workers))
    for _ in range(workers):
        next(batches)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        count += len(next(batches)[0])
    return count / (time.perf_counter() - begin)


def measure_startup(rounds: int, tell: Callable[[str], None]) -> list[Measurement]:
    """Measure seconds of a cold `--help`, `import cascade_clip`, and one image with `mini`."""
    with tempfile.TemporaryDirectory() as folder:
        photo, out = Path(folder) / "scene.png", Path(folder) / "out"
        Image.fromarray(make_scene(0, 0, SceneConfig(size=128)).image).save(photo)
        segment = ["segment", str(photo), "--model", "mini", "--out", str(out)]
        commands = {
            "cascade-clip --help": ["-m", "cascade_clip", "--help"],
            "import cascade_clip": ["-c", "import cascade_clip"],
            "segment one image with mini": ["-m", "cascade_clip", *segment],
        }
        found = []
        for name, words in commands.items():
            wall, processor = [], []
            for turn in range(rounds):
                tell(f"{name}, round {turn + 1} of {rounds}")
                begin, used = time.perf_counter(), _children_seconds()
                subprocess.run([sys.executable, *words], check=True, capture_output=True)
                wall.append(time.perf_counter() - begin)
                processor.append(_children_seconds() - used)
            note = f"{statistics.median(processor):.2f} s of processor time"
            found.append(Measurement(name, statistics.median(wall), "s", note))
        return found


def _children_seconds() -> float:
    """Processor seconds of ended child processes, in user and system mode."""
    return sum(os.times()[2:4])
