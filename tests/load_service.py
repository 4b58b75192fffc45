"""A bounded load on a service of one's own, on the loopback address: every answer is compared with
what the predictor says.

    python tests/load_service.py --requests 500 --connections 8
    python tests/load_service.py --requests 500 --connections 64 -- --queue 8

Words after `--` go to `cascade-clip serve`. Prints requests/s, p50 and p95, how often the service
said 429, memory before and after, and how many answers were wrong or lost; exit code 1 if there is
one.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from PIL import Image

from cascade_clip.inference.loading import load_predictor
from cascade_clip.sandbox.scenes import SceneConfig, make_scene

WORDS = ("water, snow, fabric, umbrella", "sky, sand", "tree = shrub; bush, road, cloud")
PATIENCE = 120.0
LEAST_AGREEMENT = 0.999
"""Share of pixels (or 1 less the error of a figure) below which an answer is wrong: batches add in
another order than single pictures."""


@dataclass(frozen=True)
class Case:
    """A request with its right answer."""

    data: dict[str, str]
    file: bytes
    png: np.ndarray | None
    values: dict[str, Any]

    def agreement(self, response: httpx.Response) -> float:
        """Share of right pixels; of a JSON answer 1 less the largest error of a coverage or mean
        score; 0 for anything else."""
        if response.status_code != 200:
            return 0.0
        if self.png is not None:
            found = np.array(Image.open(io.BytesIO(response.content)))
            return float((found == self.png).mean()) if found.shape == self.png.shape else 0.0
        values = response.json()
        pairs = list(zip(values.pop("classes"), self.values["classes"], strict=True))
        fixed = [
            {key: entry[key] for key in ("index", "name", "color")}
            for pair in pairs
            for entry in pair
        ]
        if fixed[::2] != fixed[1::2] or values != {
            key: value for key, value in self.values.items() if key != "classes"
        }:
            return 0.0
        return 1 - max(
            abs((one[key] or 0) - (other[key] or 0))
            for one, other in pairs
            for key in ("coverage", "mean_score")
        )


@dataclass
class Tally:
    """What came of the requests."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    equal: int = 0
    wrong: int = 0
    lost: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def build_cases(count: int) -> list[Case]:
    """Scenes of different sizes with different words, and what the predictor says of them."""
    predictor = load_predictor("mini", device="cpu")
    cases = []
    for number in range(count):
        scene = make_scene(7, number, SceneConfig(size=(96, 128, 160)[number % 3])).image[
            : 96 + number % 5
        ]
        words, form = WORDS[number % len(WORDS)], ("png", "json")[number % 2]
        result = predictor.segment(scene, words)
        file = io.BytesIO()
        Image.fromarray(scene).save(file, "PNG")
        png = np.array(result.index_image()) if form == "png" else None
        cases.append(
            Case({"classes": words, "format": form}, file.getvalue(), png, result.to_json())
        )
    return cases


@contextmanager
def start_service(flags: Sequence[str]) -> Iterator[str]:
    """A service of one's own; yields its address and stops it in the end."""
    command = [
        sys.executable,
        "-u",
        "-m",
        "cascade_clip",
        "serve",
        "--port",
        "0",
        "--device",
        "cpu",
        *flags,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://[\d.]+:\d+", process.stdout.readline())
        assert found, "the service did not start"
        try:
            end = time.monotonic() + PATIENCE
            while httpx.get(f"{found[0]}/health").status_code != 200:
                assert time.monotonic() < end, "the service did not become ready"
                time.sleep(0.1)
            yield found[0]
        finally:
            process.terminate()
            assert process.wait(60) == 0, "the service did not stop as it should"


def ask(client: httpx.Client, case: Case, tally: Tally) -> None:
    """Ask until there is an answer other than 429, and compare it."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        started = time.perf_counter()
        try:
            response = client.post("/segment", data=case.data, files={"image": case.file})
        except httpx.TransportError:
            break
        with tally.lock:
            tally.statuses[response.status_code] += 1
        if response.status_code == 429:
            time.sleep(float(response.headers["retry-after"]))
            continue
        with tally.lock:
            tally.seconds.append(time.perf_counter() - started)
            agreement = case.agreement(response)
            tally.equal += agreement == 1
            tally.wrong += agreement < LEAST_AGREEMENT
        return
    with tally.lock:
        tally.lost += 1


def load(
    address: str, cases: Sequence[Case], requests: int, connections: int
) -> tuple[Tally, float]:
    """Send so many requests over so many connections; returns what came of them and the seconds it
    took."""
    tally = Tally()
    limits = httpx.Limits(max_connections=connections)
    with (
        httpx.Client(base_url=address, timeout=PATIENCE, limits=limits) as client,
        ThreadPoolExecutor(connections) as pool,
    ):
        started = time.perf_counter()
        list(
            pool.map(lambda number: ask(client, cases[number % len(cases)], tally), range(requests))
        )
        return tally, time.perf_counter() - started


def resident(address: str) -> float:
    """Resident memory of the service, in MiB."""
    found = re.search(
        r"^process_resident_memory_bytes (\S+)", httpx.get(f"{address}/metrics").text, re.MULTILINE
    )
    assert found
    return float(found[1]) / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("flags", nargs="*", help="flags of cascade-clip serve")
    given = parser.parse_args()
    cases = build_cases(30)
    with start_service(given.flags) as address:
        load(address, cases, len(cases), 1)  # warm
        before = resident(address)
        tally, seconds = load(address, cases, given.requests, given.connections)
        after = resident(address)
    p50, p95 = np.percentile(tally.seconds or [float("nan")], [50, 95])
    print(
        f"{given.requests} requests over {given.connections} connections in {seconds:.1f} s:"
        f" {given.requests / seconds:.1f} requests/s"
    )
    print(f"time to the answer: p50 {1000 * p50:.0f} ms, p95 {1000 * p95:.0f} ms")
    print(f"answered 429 and asked again: {tally.statuses[429]}")
    print(
        f"right: {given.requests - tally.wrong - tally.lost} ({tally.equal} to the last bit);"
        f" wrong: {tally.wrong}; lost: {tally.lost}"
    )
    print(f"memory: {before:.0f} MiB before, {after:.0f} MiB after")
    return int(bool(tally.wrong or tally.lost))


if __name__ == "__main__":
    sys.exit(main())
