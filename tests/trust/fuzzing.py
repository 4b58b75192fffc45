"""Random input for readers of files, and properties of transforms, windows and scores: only documented errors, nothing executed."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
import yaml
from figures import Figure, main
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

import test_fuzz
from cascade_clip.checkpoint import load_checkpoint, load_config, save_checkpoint
from cascade_clip.config import Config
from cascade_clip.datasets.prepare_masks import DetailMasks, context_mask, detail_mask, sbd_mask
from cascade_clip.importer import read_released
from cascade_clip.plain_values import config_to_dict
from cascade_clip.rle import decode_mask, encode_mask
from conftest import build_tiny

FULL_SECONDS, QUICK_SECONDS = 300.0, 2.0
"""Seconds that all readers are fuzzed for, together."""
SLOWEST = 10.0
"""Seconds of processor time of one case."""

Read = Callable[[bytes], object]


class Target:
    """A reader of bytes, whole examples to begin from, and what came of the cases."""

    def __init__(self, name: str, read: Read, seeds: list[bytes]) -> None:
        """Keep them; the examples must be read without an error."""
        self.name, self.read, self.seeds = name, read, seeds
        self.accepted = self.refused = 0
        self.slowest = 0.0
        self.wrong: list[str] = []

    def run(self, content: bytes) -> None:
        """Try one case."""
        begin = time.process_time()
        try:
            self.read(content)
            self.accepted += 1
        except (ValueError, OSError):
            self.refused += 1
        except Exception as error:
            self.wrong.append(f"{type(error).__name__}: {str(error)[:120]}")
        self.slowest = max(self.slowest, time.process_time() - begin)

    def figure(self) -> Figure:
        """What is found."""
        cases = self.accepted + self.refused + len(self.wrong)
        text = (
            f"{cases} cases: {self.accepted} read, {self.refused} refused with ValueError or OSError, {len(self.wrong)} other errors; the "
            f"slowest took {self.slowest:.2f} s of processor time"
        )
        some = sorted(set(self.wrong))[:4]
        return Figure(f"random bytes for {self.name}", "; ".join([text, *some]), cases > 0 and not self.wrong and self.slowest <= SLOWEST)


def mutate(content: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """A few changes at random places: bits, bytes, runs, numbers, parts cut out, doubled, or taken from another example."""
    changed = bytearray(content)
    for _ in range(1 + int(generator.integers(4))):
        place = int(generator.integers(len(changed) + 1)) if generator.integers(3) else int(generator.integers(min(len(changed), 300) + 1))
        length = int(2 ** generator.uniform(0, 8))
        kind = int(generator.integers(7))
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << int(generator.integers(8))
        elif kind == 1:
            changed[place : place + length] = generator.bytes(length)
        elif kind == 2:
            del changed[place : place + length]
        elif kind == 3:
            changed[place:place] = changed[place : place + length]
        elif kind == 4:
            start = int(generator.integers(len(other) + 1))
            changed[place : place + length] = other[start : start + length]
        elif kind == 5:
            number = (0, 1, 255, 2**15, 2**31 - 1, 2**32 - 1)[int(generator.integers(6))]
            changed[place : place + 4] = number.to_bytes(4, "little")
        else:
            words = (b"null", b"-1", b"1e999", b"9" * 30, b"[]", b"{}", b"true", b'"x"', b"&a", b"*a", b"!!python/name:os.system", b"NaN")
            changed[place:place] = words[int(generator.integers(len(words)))]
    return bytes(changed)


def matlab(**values: Any) -> bytes:
    """A `.mat` file, compressed as the originals are."""
    buffer = io.BytesIO()
    savemat(buffer, values, do_compression=True)
    return buffer.getvalue()


def read_lengths(content: bytes) -> object:
    """COCO's run lengths from JSON, as a list or a string."""
    values = json.loads(content.decode("utf-8"))
    return decode_mask(values), detail_mask(DetailMasks(20, 30, [(7, values)]))


def build_targets(folder: Path) -> list[Target]:
    """All readers with their examples."""
    model = save_checkpoint(folder / "model", build_tiny(), full=True)
    work = Path(shutil.copytree(model, folder / "work"))

    def part_of_model(name: str) -> Read:
        def read(content: bytes) -> object:
            (work / name).write_bytes(content)
            try:
                return load_checkpoint(work)
            finally:
                shutil.copy(model / name, work / name)

        return read

    def file(name: str, reader: Callable[[Path], object]) -> Read:
        def read(content: bytes) -> object:
            (folder / name).write_bytes(content)
            return reader(folder / name)

        return read

    states, saved = [], {"state_dict": {"a.b": torch.ones(3, 4), "c": torch.zeros(5).half()}, "meta": {"step": 4}}
    for kind in (True, False):
        buffer = io.BytesIO()
        torch.save(saved, buffer, _use_new_zipfile_serialization=kind)
        states.append(buffer.getvalue())
    settings_text = yaml.safe_dump(config_to_dict(Config())).encode()
    masks = np.random.default_rng(0).integers(0, 20, (12, 20, 30)).astype(np.uint8)
    lengths = [{"size": [20, 30], "counts": counts} for counts in ([100, 50, 450], [0, 600], encode_mask(masks[0] > 9)["counts"])]
    return [
        Target("model.safetensors of a model folder", part_of_model("model.safetensors"), [(model / "model.safetensors").read_bytes()]),
        Target("config.yaml of a model folder", part_of_model("config.yaml"), [(model / "config.yaml").read_bytes()]),
        Target("checkpoint.json of a model folder", part_of_model("checkpoint.json"), [(model / "checkpoint.json").read_bytes()]),
        Target("settings in YAML", file("a.yaml", load_config), [settings_text, b"train: {steps: 3, optimizer: {learning_rate: 1e-3}}\n"]),
        Target("released state dicts (.pth, zip and legacy)", file("a.pth", read_released), states),
        Target("COCO run lengths", read_lengths, [json.dumps(values).encode() for values in lengths]),
        Target("SBD masks (.mat)", sbd_mask, [matlab(GTcls={"Segmentation": mask, "Boundaries": mask}) for mask in masks[:3]]),
        Target("PASCAL Context masks (.mat)", context_mask, [matlab(LabelMap=mask.astype(np.uint16)) for mask in masks[:3]]),
    ]


def fuzz(targets: list[Target], seconds: float) -> None:
    """Share the time between the readers; half of it is mutation, the rest what hypothesis thinks of."""
    share = seconds / len(targets)
    for number, target in enumerate(targets):
        for seed in target.seeds:
            target.read(seed)
        generator = np.random.default_rng(number)
        end = time.monotonic() + share * 0.8
        while time.monotonic() < end:
            first, second = generator.integers(len(target.seeds), size=2)
            target.run(mutate(target.seeds[first], target.seeds[second], generator))
        end = time.monotonic() + share * 0.2
        while time.monotonic() < end:
            with_hypothesis(target, end)


def with_hypothesis(target: Target, end: float) -> None:
    """A hundred cases that hypothesis makes: free bytes, and examples with a part replaced."""

    @settings(max_examples=100, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(target.seeds), st.integers(0, 2000), st.binary(max_size=60), st.booleans())
    def one(seed: bytes, place: int, content: bytes, alone: bool) -> None:
        if time.monotonic() < end:
            target.run(content if alone else seed[:place] + content + seed[place + len(content) :])

    one()


def counting(test: Callable[..., None], cases: list[dict[str, Any]]) -> Callable[..., None]:
    """The test, which notes what it was called with."""

    def counted(**named: Any) -> None:
        cases.append(named)
        test(**named)

    return counted


def properties(examples: int) -> Iterator[Figure]:
    """The property tests of tests/test_fuzz.py with more examples, not the same ones every time."""
    for name, test in sorted(vars(test_fuzz).items()):
        if not name.startswith("test_") or not hasattr(test, "hypothesis"):
            continue
        cases: list[dict[str, Any]] = []
        many = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        error = ""
        try:
            many(given(**test.hypothesis._given_kwargs)(counting(test.hypothesis.inner_test, cases)))()
        except Exception as found:
            error = f"; {type(found).__name__}: {' '.join(str(found).split())[:200]}"
        about = (test.__doc__ or name).strip().rstrip(".")
        yield Figure(f"property: {about}", f"{len(cases)} cases, {int(bool(error))} failures{error}", not error)


def measure(quick: bool) -> Iterator[Figure]:
    """Properties, then random bytes."""
    torch.set_num_threads(1)
    yield from properties(5 if quick else 300)
    with tempfile.TemporaryDirectory(prefix="trust-fuzzing-") as name:
        targets = build_targets(Path(name))
        fuzz(targets, QUICK_SECONDS if quick else FULL_SECONDS)
        yield from (target.figure() for target in targets)


if __name__ == "__main__":
    raise SystemExit(main(measure))
