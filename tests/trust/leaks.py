"""Leaks: many predictions, many requests to the service and many answers of the web page leave
memory, files and threads as they were.

The slope of the memory is a line of least squares through the resident memory after the warm-up, of
the lowest value of each of twenty stretches: memory that is taken for a moment does not count,
memory that is not given back does. What must lie below the limit is the upper end of its 95 %
interval. Nothing is given back by force (no `malloc_trim`, no collection in between). In quick mode
the calls are too few for a slope; there the number of Python's objects, which one lost object per
call raises, says more.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import httpx
import numpy as np
import psutil
import torch
from PIL import Image

from cascade_clip.inference.loading import load_predictor
from cascade_clip.sandbox.scenes import SceneConfig, make_scene
from cascade_clip.serving.web.drawing import heat_map
from cascade_clip.serving.web.service import PageRequest, WebService
from figures import Figure, main
from load_service import start_service

MOST = 1024.0
"""Bytes that the memory may grow per call."""
STRETCHES = 20
STUDENT = 2.101
"""Student's t for 95 % and STRETCHES - 2 degrees of freedom."""
WORDS = ("water, snow, fabric, umbrella", "sky, sand", "tree = shrub; bush, road, cloud")


class State(NamedTuple):
    """What a process holds."""

    memory: int
    files: int
    threads: int


def state_of(process: psutil.Process) -> State:
    """What a process holds now."""
    return State(process.memory_info().rss, process.num_fds(), process.num_threads())


def slope(values: np.ndarray) -> tuple[float, float]:
    """Growth per call, from the lowest value of each stretch, and half the width of its 95 %
    interval."""
    stretches = np.array_split(values, STRETCHES)
    ends = np.cumsum([len(part) for part in stretches])
    places = [
        end - len(part) + int(part.argmin()) for end, part in zip(ends, stretches, strict=True)
    ]
    (growth, _), spread = np.polyfit(places, [part.min() for part in stretches], 1, cov=True)
    return float(growth), STUDENT * float(np.sqrt(spread[0, 0]))


def count_objects() -> int:
    """Objects that Python's collector follows, once it has run."""
    gc.collect()
    return len(gc.get_objects()) + gc.get_freeze_count()


def watch(
    what: str, call: Callable[[int], object], process: psutil.Process, calls: int, warm: int
) -> Figure:
    """Call something many times and look at a process after each."""
    for number in range(warm):
        call(number)
    own = process.pid == os.getpid()
    objects = count_objects() if own else 0
    states = np.zeros((calls, 3), dtype=np.int64)  # filled in place: what this keeps must not count
    for number in range(calls):
        call(warm + number)
        states[number] = state_of(process)
    kept = count_objects() - objects if own else 0
    first, last, half = State(*states[0].tolist()), State(*states[-1].tolist()), calls // 2
    _, handles, threads = (states[half:].max(axis=0) - states[:half].max(axis=0)).tolist()
    total = (last.memory - first.memory) / 2**20
    flat, said = total < 8, ""
    if calls >= 200:  # in fewer a single page of the allocator is a steep slope
        growth, margin = slope(states[:, 0])
        flat, said = growth + margin < MOST, f"{growth:+.0f} +- {margin:.0f} bytes per call, "
    text = (
        f"{calls} after {warm} to warm up: {said}{total:+.1f} MiB in all,"
        f" {f'{kept:+d} objects, ' if own else ''}file handles {first.files} to {last.files},"
        f" threads {first.threads} to {last.threads}"
    )
    return Figure(what, text, flat and kept < calls and handles <= 0 and threads <= 0)


def pictures(count: int) -> list[np.ndarray]:
    """Scenes of several sizes."""
    sizes = (64, 96, 80, 112)
    return [
        make_scene(7, number, SceneConfig(size=sizes[number % 4])).image[
            : sizes[number % 4] - number % 9
        ]
        for number in range(count)
    ]


def as_png(picture: np.ndarray) -> bytes:
    """A picture as a file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def watch_service(calls: int, warm: int) -> Figure:
    """Requests to a service that is a process of its own."""
    files = [as_png(picture) for picture in pictures(8)]
    with (
        start_service(["--queue", "8"]) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        port = int(address.rpartition(":")[2])
        process = next(
            child
            for child in psutil.Process().children()
            if any(one.laddr.port == port for one in child.net_connections())
        )

        def ask(number: int) -> None:
            data = {
                "classes": WORDS[number % 3],
                "format": ("png", "json", "overlay", "coco")[number % 4],
            }
            client.post(
                "/segment", data=data, files={"image": files[number % 8]}
            ).raise_for_status()

        return watch("requests to the service", ask, process, calls, warm)


def watch_page(calls: int, warm: int) -> Figure:
    """Answers of the web page with a heat map each, as `web.answer` makes them; the files of old
    answers are removed as the page does."""
    with tempfile.TemporaryDirectory(prefix="cascade-clip-leaks-") as folder:
        service = WebService(["mini"], Path(folder), 1_000_000)
        paths = []
        for number, picture in enumerate(pictures(8)):
            paths.append(str(Path(folder) / f"{number}.png"))
            Image.fromarray(picture).save(paths[-1])

        def ask(number: int) -> Any:
            found = service.segment(PageRequest("mini", paths[number % 8], WORDS[number % 3]))
            heat_map(found.view, found.view.largest)
            shutil.rmtree(found.json_file.parent)

        return watch("answers of the web page", ask, psutil.Process(), calls, warm)


def measure(quick: bool) -> Iterator[Figure]:
    """All figures about leaks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        stack.callback(gc.unfreeze)
        predictor, scenes = load_predictor("mini", device="cpu"), pictures(8 if quick else 24)
        gc.collect()
        gc.freeze()  # what is there already need not be looked through again and again

        def predict(number: int) -> None:
            predictor.segment(scenes[number % len(scenes)], WORDS[number % 3])

        yield watch("predictions", predict, psutil.Process(), *((12, 8) if quick else (2000, 200)))
        if not quick:  # a few calls say nothing about these
            yield watch_page(300, 150)  # the folders it remembers to have cleaned are 64
            yield watch_service(500, 200)


if __name__ == "__main__":
    raise SystemExit(main(measure))
