"""Faults: kill -9 at random moments, full disks, read-only folders and broken connections lose
nothing.

Whatever has its final name must be whole at the moment of the kill, and the next start must end
with the bytes of a run that was never stopped, with nothing left over.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
import yaml
from PIL import Image

import raw_data
from cascade_clip.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cascade_clip.config.serialization import config_to_dict
from cascade_clip.data.prepare.preparation import find_source, prepare_dataset
from cascade_clip.files.atomic import STALE_AFTER
from cascade_clip.inference.image_batch import find_sources, segment_sources
from cascade_clip.inference.loading import load_predictor
from cascade_clip.training.fit import fit
from children import (
    READ_ONLY,
    REMOUNT,
    Said,
    ask_child,
    finish,
    kill_after,
    mount_disk,
    own_namespace,
    run_command,
)
from figures import Figure, main
from hub_server import Hub, _Handler
from tiny_models import build_tiny
from tiny_runs import DROPOUT, tiny_config, write_folders

Files = dict[str, bytes]
SEED = 9
VARYING = (
    "metrics.csv",
    "run.json",
    "checkpoint.json",
    "train.log",
    "README.md",
    "events",
    "tensorboard",
    ".svg",
    "report",
)
"""Files of a run that hold times; their names are compared, not their bytes."""


class Fault(NamedTuple):
    """A kind of work that is killed."""

    name: str
    work: Callable[[Path], object]
    """Does the work, or goes on with it, in a folder."""
    trials: tuple[int, int]
    """Kills in full and in quick mode, where a kind without any is left out."""
    whole: Callable[[Path, Files], int]
    """How many things in a folder after a kill are not what they should be."""
    same: Callable[[str], bool] = lambda name: True
    """Whether the bytes of a file are the same in every run."""


def files_of(folder: Path) -> Files:
    """Everything below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def damaged(folder: Path, wanted: Files) -> int:
    """How many files under a final name are not whole."""
    return sum(
        content != wanted.get(name)
        for name, content in files_of(folder).items()
        if not is_partial(name)
    )


def is_partial(name: str) -> bool:
    """Whether a file says by its name that it is not finished."""
    return any(part.startswith(".") for part in Path(name).parts)


def let_an_hour_pass(folder: Path) -> None:
    """Make what a killed process has left so old that the next write removes it."""
    for left in folder.rglob(".unfinished-*"):
        for one in (left, *left.rglob("*")):
            os.utime(one, (time.time() - 2 * STALE_AFTER,) * 2)


def pictures(folder: Path, count: int) -> Path:
    """Some small pictures."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(generator.integers(0, 256, (64, 80, 3)).astype(np.uint8)).save(
            folder / f"{number:02}.png"
        )
    return folder


def broken_states(folder: Path, wanted: Files) -> int:
    """Damaged states and checkpoints of a run."""
    from cascade_clip.training.resume import find_damage, list_states

    broken = sum(find_damage(state) is not None for state in list_states(folder / "state"))
    return broken + (
        (folder / "model").exists()
        and (folder / "model" / "model.safetensors").read_bytes()
        != wanted["model/model.safetensors"]
    )


def kinds(base: Path) -> list[Fault]:
    """The kinds of work, with their input below `base`."""
    data = base / "data"
    data.mkdir()
    config = tiny_config(write_folders(data), DROPOUT, steps=10, save_every=2, preview_every=0)
    raw = base / "raw"
    raw_data.write_voc(raw)
    recipe = raw_data.SMALL["voc"]
    model = save_checkpoint(base / "model", build_tiny())
    images = pictures(base / "images", 12)
    first, second = build_tiny(), changed(build_tiny())
    contents = [
        files_of(save_checkpoint(base / f"written{number}", one))
        for number, one in enumerate((first, second))
    ]

    def prepare(out: Path) -> None:
        out.mkdir(exist_ok=True)
        sources = [source for choices in recipe.needs if (source := find_source(choices, raw))]
        prepare_dataset(recipe, sources, out, workers=1, step=lambda done, total: None)

    def segment(out: Path) -> None:
        predictor = load_predictor(model, "cpu")
        target = predictor.bind("cat, dog, grass")
        for one in segment_sources(
            predictor, target, find_sources([str(images)]), out, ("overlay", "index", "labelme")
        ):
            assert one.result is not None or one.skipped, one.error

    def write(out: Path) -> None:
        for number in range(8):
            save_checkpoint(out / "model", (first, second)[number % 2])
            (out / "begun").touch()

    def wrong_checkpoint(out: Path, wanted: Files) -> int:
        if not (out / "model").exists():
            return int((out / "begun").exists())  # there was one under this name before
        weights = (out / "model" / "model.safetensors").read_bytes()
        return int(
            weights not in [one["model.safetensors"] for one in contents]
            or load_checkpoint(out / "model") is None
        )

    timeless: Callable[[str], bool] = lambda name: not any(word in name for word in VARYING)  # noqa: E731
    return [
        Fault(
            "training",
            lambda out: fit(config, out, resume="auto"),
            (12, 0),
            broken_states,
            lambda name: "model.safetensors" in name,
        ),
        Fault("data preparation", prepare, (6, 2), damaged),
        Fault("batch segmentation", segment, (6, 1), damaged),
        Fault("checkpoint writing", write, (6, 1), wrong_checkpoint, timeless),
    ]


def changed(checkpoint: Checkpoint) -> Checkpoint:
    """The same model with other numbers."""
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            parameter.mul_(1.01)
    return checkpoint


def kill_often(fault: Fault, base: Path, *, quick: bool, moments: random.Random) -> Figure:
    """Kill a kind of work at random moments and start it again."""
    reference = base / "whole"
    ended, seconds = finish(lambda: fault.work(reference))
    wanted = files_of(reference)
    killed = broken = lost = 0
    left: list[str] = []
    trials = fault.trials[quick]
    for number in range(trials):
        out = base / f"trial{number}"
        share = moments.random()
        while not kill_after(share * seconds, lambda: fault.work(out)):  # noqa: B023 (called at once)
            share *= 0.7
        killed += 1
        broken += fault.whole(out, wanted) if out.exists() else 0
        let_an_hour_pass(out)
        again, _ = finish(lambda: fault.work(out))  # noqa: B023
        found = files_of(out)
        lost += not again or any(
            found.get(name) != content for name, content in wanted.items() if fault.same(name)
        )
        # every start begins one
        left += sorted(name for name in found.keys() - wanted.keys() if "tfevents" not in name)
    text = (
        f"{killed} kills within {seconds:.1f} s of work: {broken} half-written files taken for"
        f" whole, {lost} losses, {len(left)} leftovers"
    )
    text += f" ({', '.join(left[:5])})" if left else ""
    return Figure(
        f"kill -9 during {fault.name}",
        text,
        ended and bool(wanted) and killed == trials and broken == lost == len(left) == 0,
    )


def commands(base: Path) -> dict[str, tuple[list[str], int]]:
    """Commands that write to `{base}/disk/out`, and the size of a disk, in KiB, that is full in
    their middle."""
    config = tiny_config(base / "data", DROPOUT, steps=4, save_every=2, preview_every=0)
    (base / "run.yaml").write_text(yaml.safe_dump(config_to_dict(config)))
    out = str(base / "disk" / "out")
    images, model = str(base / "images"), str(base / "model")
    prepare = [
        "data",
        "prepare",
        "voc",
        "--raw",
        str(base / "raw"),
        "--out",
        out,
        "--workers",
        "1",
        "--no-verify",
    ]
    return {
        "segment": (
            [
                "segment",
                images,
                "--model",
                model,
                "--classes",
                "cat, grass",
                "--out",
                out,
                "--quiet",
            ],
            60,
        ),
        "train": (["train", str(base / "run.yaml"), "--out", out, "--resume", "auto"], 900),
        "data prepare": (prepare, 40),
    }


def try_disk(words: list[str], base: Path, size: int) -> dict[str, Any] | None:
    """A command on a read-only disk, on one that is too small, and again after it has been made
    larger; None without such a disk."""
    disk = base / "disk"
    disk.mkdir(exist_ok=True)
    out = disk / "out"

    def work() -> dict[str, Any] | None:
        if not own_namespace():
            return None
        with raw_data.use_small_recipes():
            mount_disk(disk, size)
            mount_disk(disk, size, READ_ONLY | REMOUNT)
            read_only = run_command(words)
            mount_disk(disk, size, REMOUNT)
            full = run_command(words)
            partial = files_of(out) if out.exists() else {}
            mount_disk(disk, 100_000, REMOUNT)
            again = run_command(words)
            found = files_of(out)
        kept = sum(
            found.get(name) != content
            for name, content in partial.items()
            if Path(name).suffix in (".png", ".jpg", ".ckpt")
        )
        left = [name for name in found if ".unfinished" in name]
        return {
            "read_only": read_only,
            "full": full,
            "again": again.code,
            "changed": kept,
            "left": left,
            "files": len(found),
        }

    found = ask_child(work)
    return (
        None
        if found is None
        else {**found, "read_only": Said(*found["read_only"]), "full": Said(*found["full"])}
    )


def fill_disks(base: Path, *, quick: bool) -> Iterator[Figure]:
    """Full and read-only disks under several commands."""
    for name, (words, size) in commands(base).items():
        if quick and name != "segment":
            continue
        found = try_disk(words, base, size)
        if found is None:
            yield full_by_limit(base)
            return
        full, refused = found["full"], found["read_only"]
        text = f"exit code {refused.code}: {len(refused.errors)} lines of error"
        yield Figure(f"{name} into a read-only folder", text, refused.is_one_line)
        goes_on = found["again"] == 0 and found["changed"] == 0 and not found["left"]
        text = (
            f"disk of {size} KiB: exit code {full.code}; with room again exit code"
            f" {found['again']}, {found['files']} files, {found['changed']} of those written before"
            f" had been half-written, {len(found['left'])} leftovers"
        )
        yield Figure(
            f"{name} on a full disk",
            text,
            full.code == 2 and not any("Traceback" in line for line in full.errors) and goes_on,
        )


def full_by_limit(base: Path) -> Figure:
    """Where no disk can be mounted: a limit on the size of files, which fails a write in its middle
    as a full disk does."""
    words, _ = commands(base)["segment"]

    def work() -> tuple[int, int, int]:
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (4000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        )
        full = run_command(words).code
        resource.setrlimit(
            resource.RLIMIT_FSIZE,
            (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]),
        )
        return (
            full,
            run_command(words).code,
            len([name for name in files_of(base / "disk" / "out") if ".unfinished" in name]),
        )

    full, again, left = ask_child(work) or (0, 1, 0)
    text = f"exit code {full}; without the limit exit code {again}, {left} leftovers"
    return Figure(
        "segment with a limit on the size of files", text, (full, again, left) == (2, 0, 0)
    )


@contextlib.contextmanager
def small_hub(cache: Path) -> Iterator[Hub]:
    """A hub on this machine, which the hub client asks, with an empty cache."""
    import huggingface_hub.constants as constants

    hub = Hub()
    values = {
        "ENDPOINT": hub.address, "HF_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": str(cache / "token"), "HF_HUB_OFFLINE": False,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }  # fmt: skip
    try:
        with mock.patch.multiple(constants, **values):
            yield hub
    finally:
        hub.stop()


def cut_downloads(base: Path, *, quick: bool) -> Figure:
    """The connection breaks off in the middle of the weights, at several places; then it does
    not."""
    model = base / "model"
    weights = (model / "model.safetensors").read_bytes()
    send = _Handler._send
    right = refused = half = 0
    trials = 1 if quick else 8
    moments = random.Random(SEED)
    for number in range(trials):
        place = moments.randrange(1, len(weights))

        def cut(
            self: Any, status: int, data: bytes, kind: str, head: dict[str, str], place: int = place
        ) -> None:
            if self.command == "HEAD" or len(data) != len(weights):
                send(self, status, data, kind, head)
                return
            self.send_response(status)
            for name, value in {
                "Content-Type": kind,
                "Content-Length": str(len(data)),
                **head,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[:place])
            self.close_connection = True

        with (
            small_hub(base / f"cache{number}") as hub,
            mock.patch("time.sleep", lambda seconds: None),
        ):
            hub.add("someone/tiny", {path.name: path.read_bytes() for path in model.iterdir()})
            with mock.patch.object(_Handler, "_send", cut):
                try:
                    load_checkpoint("hub:someone/tiny")
                except FileNotFoundError as error:
                    refused += "\n" not in str(error)
            cache = Path(base / f"cache{number}")
            half += sum(
                path.exists() and path.read_bytes() != weights
                for path in cache.rglob("snapshots/*/model.safetensors")
            )
            right += all(
                torch.equal(value, other)
                for value, other in zip(
                    load_checkpoint("hub:someone/tiny").model.state_dict().values(),
                    load_checkpoint(model).model.state_dict().values(),
                    strict=True,
                )
            )
    text = (
        f"{trials} cut: {refused} one-line errors, {half} half files taken for whole, {right} right"
        " at the next start"
    )
    return Figure(
        "network cut in the middle of a download", text, refused == right == trials and half == 0
    )


def measure(quick: bool) -> Iterator[Figure]:
    """All faults."""
    torch.set_num_threads(1)
    moments = random.Random(SEED)
    with tempfile.TemporaryDirectory(prefix="cascade-clip-faults-") as folder:
        base = Path(folder)
        faults = [fault for fault in kinds(base) if fault.trials[quick]]
        found = []
        for number, fault in enumerate(faults):
            place = base / f"fault{number}"
            place.mkdir()
            found.append(kill_often(fault, place, quick=quick, moments=moments))
            yield found[-1]
        total = sum(fault.trials[quick] for fault in faults)
        yield Figure(
            "kill -9 in all",
            f"{total} trials, {sum(not figure.passed for figure in found)} kinds of work with"
            " losses",
            all(figure.passed for figure in found),
        )
        yield from fill_disks(base, quick=quick)
        yield cut_downloads(base, quick=quick)


if __name__ == "__main__":
    raise SystemExit(main(measure))
