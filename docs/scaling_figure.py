"""Measures how fast pictures are done by one process, by one and two actors, and by two of which one is killed; draws scaling-out.png.

    python docs/scaling_figure.py --count 300 --folder scaling

Times are those at which the JSON file of a picture appeared, counted from the start of the command.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import psutil

from cascade_clip.inference import read_manifest

COMMAND = [sys.executable, "-m", "cascade_clip"]
RUNS = {
    "local engine": ([], False),
    "ray, 1 actor": (["--engine", "ray", "--actors", "1"], False),
    "ray, 2 actors": (["--engine", "ray", "--actors", "2"], False),
    "ray, 2 actors, one killed": (["--engine", "ray", "--actors", "2"], True),
}


def find_actors(parent: psutil.Process) -> list[psutil.Process]:
    """The actors below a command."""
    found = []
    for process in parent.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ray::MapWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


@dataclass
class Measured:
    """One command: moments in seconds from its start."""

    times: list[float]
    killed: float | None
    total: float
    cpu: float
    """Processor seconds of the processes that segment, from the first picture on."""


def run(pictures: Path, out: Path, words: list[str], kill_at: int) -> Measured:
    """Run one command, and kill an actor when so many pictures are done (0: never)."""
    begin = time.time()
    process = subprocess.Popen([*COMMAND, "segment", str(pictures), "--out", str(out), "--quiet", *words], stderr=subprocess.DEVNULL)
    this, killed = psutil.Process(process.pid), None
    used: dict[int, list[float]] = {}
    while process.poll() is None:
        done = len(list(out.rglob("*.json")))
        with contextlib.suppress(psutil.Error):
            workers = find_actors(this) if words else [this]
            for worker in workers:
                now = sum(worker.cpu_times()[:2])
                used.setdefault(worker.pid, [now, now])[0 if not done else 1] = now
            if 0 < kill_at <= done and killed is None:
                os.kill(workers[0].pid, signal.SIGKILL)
                killed = time.time() - begin
        time.sleep(0.1)
    times = sorted(file.stat().st_mtime - begin for file in out.rglob("*.json"))
    return Measured(times, killed, time.time() - begin, sum(last - first for first, last in used.values()))


def main() -> None:
    """Measure, print a table and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    pictures = given.folder / "scenes" / "images"
    subprocess.run([*COMMAND, "sandbox", "export", "--out", str(pictures.parent), "--train", str(given.count), "--val", "0"], check=True)
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    print("| engine | start | pictures/s from then on | CPU s per picture | whole command | load | pictures | rows | distinct |")
    for number, (title, (words, kill)) in enumerate(RUNS.items()):
        out = given.folder / f"out{number}"
        found = run(pictures, out, words, given.count // 3 if kill else 0)
        rows = [str(row["name"]) for row in read_manifest(out)] if words else []
        times = found.times
        speed = (len(times) - 1) / (times[-1] - times[0])
        cells = [title, f"{times[0]:.1f} s", f"{speed:.1f}", f"{found.cpu / len(times):.3f}", f"{found.total:.1f} s"]
        print("|", " | ".join([*cells, f"{os.getloadavg()[0]:.1f}", str(len(times)), str(len(rows)), str(len(set(rows)))]), "|", flush=True)
        (line,) = axes.plot([moment - times[0] for moment in times], range(1, len(times) + 1), label=title)
        if found.killed is not None:
            axes.axvline(found.killed - times[0], color=line.get_color(), linestyle=":", label="kill -9")
    axes.set(xlabel="seconds since the first picture", ylabel="pictures done", ylim=(0, None), xlim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(Path(__file__).with_name("scaling-out.png"), dpi=120)


if __name__ == "__main__":
    main()
