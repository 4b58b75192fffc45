"""Random input for readers of files, and properties of transforms, windows and scores: only
documented errors, nothing executed."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scipy.io import savemat
from scipy.sparse import csc_matrix

import test_fuzz
from cascade_clip.checkpoints.checkpoint import load_checkpoint, load_config, save_checkpoint
from cascade_clip.checkpoints.released import read_released
from cascade_clip.config import Config
from cascade_clip.config.serialization import config_to_dict
from cascade_clip.data.prepare.masks import DetailMasks, context_mask, detail_mask, sbd_mask
from cascade_clip.results.rle import decode_mask, encode_mask
from children import start_child
from figures import Figure, main
from tiny_models import build_tiny

FULL_SECONDS, QUICK_SECONDS = 300.0, 1.0
"""Seconds that all readers are fuzzed for, together."""
SLOWEST = 10.0
"""Seconds of processor time of one case."""
SILENCE = 120
"""Seconds after which a case hangs, however busy the machine is; the system ends the process
then."""
MOST_DEATHS = 3

Read = Callable[[bytes], object]


class Target(NamedTuple):
    """A reader of bytes, and whole examples to begin from, which it reads without an error."""

    name: str
    read: Read
    seeds: list[bytes]

    def try_case(self, content: bytes) -> tuple[str, float]:
        """What came of one case, and the seconds of processor time it took."""
        begin = time.process_time()
        try:
            self.read(content)
            found = "read"
        except (ValueError, OSError):
            found = "refused"
        except Exception as error:
            found = f"{type(error).__name__}: {str(error)[:120]}"
        return found, time.process_time() - begin


def mutate(content: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """A few changes at random places: bits, bytes, runs, numbers, parts cut out, doubled, or taken
    from another example."""
    changed = bytearray(content)
    for _ in range(1 + int(generator.integers(4))):
        place = (
            int(generator.integers(len(changed) + 1))
            if generator.integers(3)
            else int(generator.integers(min(len(changed), 300) + 1))
        )
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
            words = (
                b"null",
                b"-1",
                b"1e999",
                b"9" * 30,
                b"[]",
                b"{}",
                b"true",
                b'"x"',
                b"&a",
                b"*a",
                b"!!python/name:os.system",
                b"NaN",
            )
            changed[place:place] = words[int(generator.integers(len(words)))]
    return bytes(changed)


def matlab(**values: Any) -> list[bytes]:
    """A `.mat` file, compressed as the originals are, and not, so that changes reach what is
    inside."""
    packed, plain = io.BytesIO(), io.BytesIO()
    savemat(packed, values, do_compression=True)
    savemat(plain, values)
    return [packed.getvalue(), plain.getvalue()]


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

    states, saved = (
        [],
        {
            "state_dict": {"a.b": torch.ones(3, 4), "c": torch.zeros(5).half()},
            "meta": {"step": 4},
        },
    )
    for kind in (True, False):
        buffer = io.BytesIO()
        torch.save(saved, buffer, _use_new_zipfile_serialization=kind)
        states.append(buffer.getvalue())
    settings_text = yaml.safe_dump(config_to_dict(Config())).encode()
    masks = np.random.default_rng(0).integers(0, 20, (12, 20, 30)).astype(np.uint8)
    edges = np.empty((2, 1), dtype=object)
    edges[:, 0] = [csc_matrix(mask > 17) for mask in masks[:2]]
    lengths = [
        {"size": [20, 30], "counts": counts}
        for counts in ([100, 50, 450], [0, 600], encode_mask(masks[0] > 9)["counts"])
    ]
    return [
        Target(
            "model.safetensors of a model folder",
            part_of_model("model.safetensors"),
            [(model / "model.safetensors").read_bytes()],
        ),
        Target(
            "config.yaml of a model folder",
            part_of_model("config.yaml"),
            [(model / "config.yaml").read_bytes()],
        ),
        Target(
            "checkpoint.json of a model folder",
            part_of_model("checkpoint.json"),
            [(model / "checkpoint.json").read_bytes()],
        ),
        Target(
            "settings in YAML",
            file("a.yaml", load_config),
            [settings_text, b"train: {steps: 3, optimizer: {learning_rate: 1e-3}}\n"],
        ),
        Target("released state dicts (.pth, zip and legacy)", file("a.pth", read_released), states),
        Target(
            "COCO run lengths", read_lengths, [json.dumps(values).encode() for values in lengths]
        ),
        Target(
            "SBD masks (.mat)",
            sbd_mask,
            matlab(GTcls={"Segmentation": masks[0], "Boundaries": edges}),
        ),
        Target(
            "PASCAL Context masks (.mat)", context_mask, matlab(LabelMap=masks[1].astype(np.uint16))
        ),
    ]


def try_cases(target: Target, seconds: float, seed: int, folder: Path) -> None:
    """Try cases for so long: most are mutations, the rest what hypothesis thinks of. A line of the
    journal is added after each."""
    for content in target.seeds:
        target.read(content)
    generator, begin = np.random.default_rng(seed), time.monotonic()
    with (folder / "journal").open("a", encoding="utf-8") as journal:

        def one(content: bytes) -> None:
            (folder / "case").write_bytes(content)
            signal.alarm(SILENCE)
            journal.write(json.dumps(target.try_case(content)) + "\n")
            journal.flush()

        while True:
            first, second = generator.integers(len(target.seeds), size=2)
            one(mutate(target.seeds[first], target.seeds[second], generator))
            if time.monotonic() > begin + 0.8 * seconds:
                break
        while time.monotonic() < begin + seconds:
            with_hypothesis(target, begin + seconds, one)


def with_hypothesis(target: Target, end: float, one: Callable[[bytes], None]) -> None:
    """A hundred cases that hypothesis makes: free bytes, and examples with a part replaced."""

    @settings(
        max_examples=100,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.sampled_from(target.seeds), st.integers(0, 2000), st.binary(max_size=60), st.booleans()
    )
    def case(seed: bytes, place: int, content: bytes, alone: bool) -> None:
        if time.monotonic() < end:
            one(content if alone else seed[:place] + content + seed[place + len(content) :])

    case()


def fuzz(target: Target, seconds: float, seed: int, folder: Path) -> Figure:
    """Try cases in a child process, which is started again when a case ends it, up to `MOST_DEATHS`
    times."""
    folder.mkdir()
    end, deaths = time.monotonic() + seconds, []
    while len(deaths) <= MOST_DEATHS:
        left, start = max(0.1, end - time.monotonic()), seed + 1000 * len(deaths)
        _, status = os.waitpid(start_child(lambda: try_cases(target, left, start, folder)), 0)  # noqa: B023 (called at once)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            break
        case = (folder / "case").read_bytes() if (folder / "case").exists() else b""
        deaths.append(
            f"{signal.Signals(-code).name if code < 0 else f'exit code {code}'} at {len(case)}"
            f" bytes {case[-40:]!r}"
        )
    journal = (
        (folder / "journal").read_text(encoding="utf-8").splitlines()
        if (folder / "journal").exists()
        else []
    )
    lines = [json.loads(line) for line in journal]
    results, slowest = (
        Counter(found for found, _ in lines),
        max((taken for _, taken in lines), default=0.0),
    )
    wrong = sorted(results.keys() - {"read", "refused"})
    text = (
        f"{len(lines) + len(deaths)} cases: {results['read']} read, {results['refused']} refused"
        f" with ValueError or OSError, {sum(results[name] for name in wrong)} other errors,"
        f" {len(deaths)} ended or stopped the process; the slowest took {slowest:.2f} s of"
        " processor time"
    )
    sound = (
        results["read"] + results["refused"] == len(lines) > 0 and not deaths and slowest <= SLOWEST
    )
    return Figure(
        f"random bytes for {target.name}", "; ".join([text, *wrong[:4], *deaths[:2]]), sound
    )


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
        many = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        error = ""
        try:
            many(
                given(**test.hypothesis._given_kwargs)(counting(test.hypothesis.inner_test, cases))
            )()
        except Exception as found:
            error = f"; {type(found).__name__}: {' '.join(str(found).split())[:200]}"
        about = (test.__doc__ or name).strip().rstrip(".")
        yield Figure(
            f"property: {about}",
            f"{len(cases)} cases, {int(bool(error))} failures{error}",
            not error,
        )


def measure(quick: bool) -> Iterator[Figure]:
    """Properties, then random bytes."""
    torch.set_num_threads(1)
    yield from properties(5 if quick else 300)
    with tempfile.TemporaryDirectory(prefix="trust-fuzzing-") as name:
        targets, seconds = build_targets(Path(name)), QUICK_SECONDS if quick else FULL_SECONDS
        for number, target in enumerate(targets):
            yield fuzz(target, seconds / len(targets), number, Path(name) / f"cases {number}")


if __name__ == "__main__":
    raise SystemExit(main(measure))
