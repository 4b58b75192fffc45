"""Damaged and odd pictures, masks and class names: a right result or a one-line error, never a
crash, a hang, or more than 2 GiB."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cascade_clip.files import IMAGE_SUFFIXES
from figures import Figure, main
from odd_pictures import Case, all_cases, damaged, encode, odd_modes, scene

HANG = 10.0
"""Seconds of processor time that one file may take."""
SILENCE = 120.0
"""Seconds after which a process that says nothing hangs, however busy the machine is."""
MOST_MEMORY = 2048.0
"""MiB."""
CHILD = Path(__file__).with_name("picture_child.py")
CLASSES = "sky, sand, star"


class Child:
    """The process that is given the files, watched from outside; started again when it ends."""

    def __init__(self, folder: Path) -> None:
        """Start it."""
        self.folder, self.crashes, self.hangs, self.memory, self.seconds = folder, 0, 0, 0.0, 0.0
        self.process = self._start()

    def ask(self, kind: str, path: Path) -> dict[str, Any]:
        """What becomes of one file; `died` where the process ended or had to be ended."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([kind, str(path)]) + "\n")
        self.process.stdin.flush()
        line = self._line()
        if not line:
            self.process.kill()
            self.process.wait()
            self.process = self._start()
            return {"died": True}
        found: dict[str, Any] = json.loads(line)
        self.memory, self.seconds = (
            max(self.memory, found["memory"]),
            max(self.seconds, found["seconds"]),
        )
        return found

    def stop(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        words = [sys.executable, str(CHILD), str(self.folder)]
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.process = process
        assert self._line(), "the child process does not start"
        return process

    def _line(self) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], SILENCE)
        line = self.process.stdout.readline() if ready else ""
        self.hangs += not ready
        self.crashes += bool(ready) and not line
        return line


def judge_picture(case: Case, found: dict[str, Any]) -> str:
    """`right`, `error`, or what is wrong."""
    if "error" in found:
        lines = found["error"].splitlines()
        return (
            "error"
            if case.shape is None and len(lines) == 1
            else f"wrong: {found['error'][:120]!r}"
        )
    if "shape" not in found:
        return f"wrong: {found.get('defect', 'the process ended')}"
    wanted = case.shape is None or tuple(found["shape"]) == case.shape
    colored = (
        case.corner is None
        or max(abs(a - b) for a, b in zip(case.corner, found["corner"], strict=True)) <= 12
    )
    return (
        "right"
        if wanted
        and colored
        and not case.fails
        and 0 <= found["labels"][0] <= found["labels"][1] <= 2
        else f"wrong: {found}"
    )


def judge_mask(found: dict[str, Any]) -> str:
    """The same of a mask of the classes 0..2 in 40 x 56 pixels."""
    if "error" in found:
        return (
            "error" if len(found["error"].splitlines()) == 1 else f"wrong: {found['error'][:120]!r}"
        )
    if "shape" not in found:
        return f"wrong: {found.get('defect', 'the process ended')}"
    return (
        "right"
        if found["shape"] == [40, 56] and -1 <= found["labels"][0] <= found["labels"][1] <= 2
        else f"wrong: {found}"
    )


def mask_cases() -> list[Case]:
    """Masks that fit, damaged and odd ones."""
    values = np.random.default_rng(1).integers(0, 3, (40, 56)).astype(np.uint8)
    plain = encode(Image.fromarray(values), "PNG")
    wide = encode(Image.fromarray(values.astype(np.uint16)), "PNG")
    cases = [
        Case("fits.png", plain),
        Case("fits with 16 bits.png", wide),
        Case("another size.png", encode(Image.fromarray(values[1:]), "PNG")),
    ]
    generator = np.random.default_rng(2)
    for number in range(60):
        changed = bytearray(plain if number % 2 else wide)
        for place in generator.integers(0, len(changed), 1 + number % 4):
            changed[place] ^= 1 << int(generator.integers(8))
        cases += [
            Case(f"mask with flips {number}.png", bytes(changed)),
            Case(f"cut mask {number}.png", plain[: len(plain) * number // 60]),
        ]
    for kind in ("BMP", "TIFF", "GIF"):
        cases.append(Case(f"fits.{kind.lower()}", encode(Image.fromarray(values), kind)))
    return cases


def try_files(kind: str, cases: Iterable[Case], folder: Path) -> Figure:
    """Give every case to the child process."""
    child, results, wrong = Child(folder), Counter[str](), []
    for number, case in enumerate(cases):
        path = folder / f"{number:04d} {case.name}"
        path.write_bytes(case.content)
        found = child.ask(kind, path)
        verdict = judge_picture(case, found) if kind == "picture" else judge_mask(found)
        results[verdict.partition(":")[0]] += 1
        if verdict.startswith("wrong"):
            wrong.append(f"{case.name} ({verdict[7:]})")
        path.unlink()
    child.stop()
    count = sum(results.values())
    text = (
        f"{count} files: {results['right']} right results, {results['error']} one-line errors,"
        f" {results['wrong']} wrong, {child.crashes} crashes, {child.hangs} hangs; at most"
        f" {child.seconds:.1f} s of processor time a file and {child.memory:.0f} MiB"
    )
    sound = (
        not wrong
        and child.crashes == child.hangs == 0
        and child.seconds <= HANG
        and child.memory <= MOST_MEMORY
    )
    return Figure(f"damaged and odd {kind}s", "; ".join([text, *wrong[:5]]), sound)


def run_command(words: list[str], folder: Path) -> tuple[int, str, float]:
    """Exit code, error stream and most memory (MiB) of one `cascade-clip` command."""
    memory = folder / "memory.txt"
    words = [sys.executable, str(Path(__file__).with_name("measured.py")), str(memory), *words]
    run = subprocess.run(
        words,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=folder,
        check=False,
    )
    return run.returncode, run.stderr, float(memory.read_text())


def try_segment_command(cases: list[Case], folder: Path) -> Figure:
    """A folder of odd files with odd names through the real command: every file has its result or
    its line of error."""
    pictures, out = folder / "pictures", folder / "out"
    pictures.mkdir()
    for case in cases:
        (pictures / case.name).write_bytes(case.content)
    for name in (
        "con.png",
        "-.png",
        " .png",
        "a\nb.png",
        "...png",
        "名前.png",
        "~.png",
        "*?.png",
        "x.json.png",
        "%s {}.png",
    ):
        (pictures / name).write_bytes(encode(scene(), "PNG"))
    before = set(folder.iterdir())
    code, errors, memory = run_command(
        ["segment", str(pictures), "--classes", CLASSES, "--out", str(out)], folder
    )
    lines = [line for line in errors.splitlines() if line.startswith("cascade-clip: error: ")]
    results = [path for path in out.rglob("*.json")]
    count = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in pictures.iterdir())
    outside = set(folder.iterdir()) - before - {out, folder / "memory.txt"}
    found = (
        f"{count} files: {len(results)} results, {len(lines)} one-line errors, {memory:.0f} MiB,"
        f" {len(outside)} files elsewhere"
    )
    sound = (
        len(results) + len(lines) == count
        and code == 2
        and "Traceback" not in errors
        and memory <= MOST_MEMORY
        and not outside
    )
    if not sound:
        print(errors[-400:], file=sys.stderr)
    return Figure("the command segment on a folder of odd files and file names", found, sound)


def try_data_check(folder: Path) -> Figure:
    """The command data check on the odd masks: findings, no traceback."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    cases = [case for case in mask_cases() if case.name.endswith(".png")]
    for case in cases:
        (folder / "images" / case.name).write_bytes(encode(Image.new("RGB", (56, 40)), "PNG"))
        (folder / "masks" / case.name).write_bytes(case.content)
    words = [
        "data",
        "check",
        "--images",
        str(folder / "images"),
        "--masks",
        str(folder / "masks"),
        "--classes",
        CLASSES,
    ]
    code, errors, memory = run_command(words, folder)
    sound = (
        code in (1, 2)
        and "Traceback" not in errors
        and "defect" not in errors
        and memory <= MOST_MEMORY
    )
    text = f"{len(cases)} pairs, exit code {code}, {memory:.0f} MiB"
    return Figure(
        "the command data check on damaged masks",
        text if sound else f"{text}: {errors[-300:]!r}",
        sound,
    )


NAMES: dict[str, list[str]] = {
    "scripts": [
        "cat",
        "猫",
        "кошка",
        "قط",
        "חתול",
        "แมว",
        "고양이",
        "γάτα",
        "बिल्ली",
        "ねこ",
        "Ĉefurbo",
        "ﷺ",
    ],
    "emoji": ["🐈", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "☃️"],
    "paths": [
        "../../x",
        "a/b",
        "/etc/passwd",
        "..",
        ".",
        ".hidden",
        "con",
        "NUL",
        "aux.txt",
        "C:\\x",
        "~root",
        "$HOME",
        "`id`",
        "a;b",
        "*",
        "-rf",
    ],
    "zero width and direction": ["a\u200bb", "\u202etac", "a\u2028b", "\ufeffcat"],
    "quotes and braces": ["{}", "{0}", "%s", '"', "'", "\\", "<script>", "&amp;"],
    "1,000 names": [f"thing {number}" for number in range(1000)],
    "a name of 200 characters": ["x" * 200, "cat"],
    "a name of 10,000 characters": ["x" * 10_000, "cat"],
    "control characters": ["a\nb", "cat"],
    "escape": ["\x1b[31mred", "cat"],
    "nothing": ["", "cat"],
    "blank": [" \t", "cat"],
    "twice": ["cat", "CAT"],
    "half of a character": ["\ud800", "cat"],
    "NUL": ["a\0b", "cat"],
}
REFUSED = (
    "a name of 10,000 characters",
    "control characters",
    "escape",
    "nothing",
    "blank",
    "twice",
    "half of a character",
    "NUL",
)


def try_names(folder: Path, wanted: Iterable[str]) -> Figure:
    """Class names become file names and JSON: everything written stays in its folder, everything
    refused is one line."""
    from cascade_clip.inference.class_binding import as_vocabulary
    from cascade_clip.inference.loading import load_predictor
    from cascade_clip.results.segmentation import Segmentation

    predictor = load_predictor("mini", device="cpu")
    picture = np.array(scene(64, 80))
    wrong, written, refused, begin = [], 0, 0, time.process_time()
    for number, kind in enumerate(wanted):
        out = folder / f"names {number}" / "deep" / "out"
        try:
            result = predictor.segment(picture, as_vocabulary(NAMES[kind]))
            labels = np.arange(64 * 80).reshape(64, 80) % len(NAMES[kind])  # every class occurs
            result = Segmentation(
                labels, result.class_names, result.colors, result.scores, result.class_maps
            )
            files = result.save(
                out, "a", picture, ("overlay", "index", "coco", "labelme", "heatmaps")
            )
            again = Segmentation.load(out / "a.json")
            written += len(files)
            stray = [
                path
                for path in (folder / f"names {number}").rglob("*")
                if path.is_file() and path.parent != out
            ]
            if (
                kind in REFUSED
                or stray
                or again.class_names != tuple(NAMES[kind])
                or len(set(files)) != len(files)
            ):
                wrong.append(f"{kind}: {stray[:2] or 'accepted, or not read back as it was'}")
        except ValueError as error:
            refused += 1
            if kind not in REFUSED or len(str(error).splitlines()) > 1:
                wrong.append(f"{kind}: {error}")
    seconds = time.process_time() - begin
    text = (
        f"{number + 1} lists: {written} files written in their folders, {refused} lists refused in"
        f" one line, {seconds:.0f} s"
    )
    return Figure(
        "class names of any script, emoji, long, many, path-like, with control characters",
        "; ".join([text, *wrong]),
        not wrong,
    )


def measure(quick: bool) -> Iterator[Figure]:
    """Files in a child process, then the commands, then class names."""
    with tempfile.TemporaryDirectory(prefix="trust-inputs-") as name:
        folder = Path(name)
        if quick:
            yield try_files(
                "picture", [*odd_modes(), *damaged(np.random.default_rng(9))][::20], folder
            )
            yield try_names(folder, ("scripts", "paths", *REFUSED))
            return
        cases = all_cases()
        yield try_files("picture", cases, folder)
        yield try_files(
            "mask",
            [*mask_cases(), *(case for case in cases if "of black" not in case.name)],
            folder,
        )
        yield try_names(folder, NAMES)
        for step in ("command", "check"):
            (folder / step).mkdir()
        yield try_segment_command(
            [case for case in cases if "of black" in case.name] + cases[::12], folder / "command"
        )
        yield try_data_check(folder / "check")


if __name__ == "__main__":
    raise SystemExit(main(measure))
