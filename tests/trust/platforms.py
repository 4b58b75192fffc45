"""Other places: supported Pythons, the oldest dependencies, no extras, no graphics card, no home
folder, no network.

The environments of other Pythons and of the oldest dependencies come from tests/environments.py
(make environments).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bare import STANDALONE
from figures import Figure, main

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from environments import PYTHONS, environment_python, find_python  # noqa: E402

HERE = Path(__file__).parent
PHOTO = ROOT / "tests" / "photos" / "images" / "0001.jpg"
SAME = 1e-5
"""Largest relative difference of float32 results."""
PORTABLE = (
    *(
        "arguments",
        "batch",
        "check",
        "checkpoint",
        "cli",
        "clip",
        "config",
        "datasets_folder",
        "engine",
        "evaluate",
        "layouts",
        "losses",
    ),
    *(
        "metrics",
        "model",
        "objective",
        "parity",
        "predictor",
        "prepare",
        "protocols",
        "results",
        "rle",
        "sandbox",
        "text",
        "transforms",
    ),
    "vocabulary",
)
"""Tests that run under every Python."""
NEEDS_EXTRA = "pip install 'cascade-clip["
UNREACHABLE = "/proc/no-home"
"""A home folder that nobody can make, not even root."""


def measure(quick: bool) -> Iterator[Figure]:
    """Figures of the syntax, of runs with something taken away and, unless `quick`, of other
    environments."""
    yield check_syntax(PYTHONS[:1] if quick else PYTHONS)
    with tempfile.TemporaryDirectory(prefix="cascade-clip-platforms-") as folder:
        yield from (run_all_at_once if quick else run_one_by_one)(Path(folder))
        if quick:
            return
        for version in PYTHONS:
            yield run_tests(
                f"Python {version}",
                None if is_own(version) else version,
                find_python(version) is not None,
            )
        yield run_tests("oldest supported dependencies", "oldest", True)
        yield compare_numbers(Path(folder))


def is_own(version: str) -> bool:
    """Whether this process runs under that version."""
    return version == f"{sys.version_info.major}.{sys.version_info.minor}"


COMPILE = """
import pathlib, sys
paths = [path for folder in sys.argv[1:] for path in sorted(pathlib.Path(folder).rglob("*.py"))]
wrong = []
for path in paths:
    try:
        compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        wrong.append("%s:%s" % (path.name, error.lineno))
print("%d.%d.%d" % sys.version_info[:3], len(paths), *wrong)
"""


def check_syntax(versions: Sequence[str]) -> Figure:
    """Compile every file with the interpreters that are here; they need no packages for it."""
    found = {version: find_python(version) for version in versions}
    texts, passed = [], True
    for version, python in found.items():
        if python is None:
            texts.append(f"{version} is not here")
            continue
        command = [python, "-c", COMPILE, str(ROOT / "src"), str(ROOT / "tests")]
        label, count, *wrong = subprocess.run(
            command, capture_output=True, text=True
        ).stdout.split() or (version, "0")
        texts.append(" ".join([f"{label}: {count} files, {len(wrong)} do not compile", *wrong]))
        passed = passed and int(count) > 0 and not wrong
    return Figure("source files under each Python", "; ".join(texts), passed)


def run_bare(conditions: str, commands: list[list[str]], **environment: str) -> dict:
    """Run commands in a process of their own with something taken away (see bare.py); what was
    printed where it ended early."""
    command = [sys.executable, str(HERE / "bare.py"), conditions, json.dumps(commands)]
    surroundings = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CASCADE_CLIP", "XDG_", "MPL", "HF_"))
    }
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**surroundings, **environment},
        timeout=900,
    )
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {
            "modules": {},
            "answers": [],
            "refused": [],
            "ended": (done.stderr.strip().splitlines() or ["nothing printed"])[-1],
        }


def work(folder: Path) -> list[list[str]]:
    """Commands of everyday work."""
    return [
        ["env"],
        [
            "segment",
            str(PHOTO),
            "--classes",
            "sky, grass, dog",
            "--out",
            str(folder / "segmented"),
            "--device",
            "cpu",
        ],
    ]


REFUSED = [
    ["web"],
    ["serve"],
    ["export", "onnx", "mini", "--out", "mini.onnx"],
    ["segment", str(PHOTO), "--engine", "ray"],
]
"""Commands that need an extra."""


def run_all_at_once(folder: Path) -> Iterator[Figure]:
    """Everything taken away in one process."""
    found = run_bare(
        "import,no-extras,offline,no-cuda", [*work(folder), *REFUSED], HOME=UNREACHABLE
    )
    yield judge_imports(found)
    yield judge_work(
        "no extras, graphics card, home folder and network at once",
        found,
        folder,
        len(work(folder)),
    )
    yield judge_refusals(found)


def run_one_by_one(folder: Path) -> Iterator[Figure]:
    """A process for each thing that is taken away."""
    found = run_bare("import,no-extras", REFUSED)
    yield judge_imports(found)
    yield judge_refusals(found)
    cuda = ["segment", str(PHOTO), "--device", "cuda", "--out", str(folder / "cuda")]
    trials = {
        "extras": "no-extras",
        "graphics card": "no-cuda",
        "network": "offline",
        "user name and home folder": "no-home",
    }
    for number, (what, condition) in enumerate(trials.items()):
        place = folder / str(number)
        yield judge_work(
            f"work without {what}", run_bare(condition, work(place)), place, len(work(place))
        )
    place = folder / "unwritable"
    yield judge_work(
        "work with a home folder that cannot be made",
        run_bare("offline", work(place), HOME=UNREACHABLE),
        place,
        len(work(place)),
    )
    answer = run_bare("no-cuda", [cuda])["answers"]
    line = answer[0]["err"].strip() if answer else "ended early"
    yield Figure(
        "--device cuda without a graphics card",
        line,
        bool(answer) and answer[0]["code"] == 2 and "\n" not in line,
    )


def judge_imports(found: dict) -> Figure:
    """Every module imports, or says which extra it needs."""
    wrong = {name: text for name, text in found["modules"].items() if name}
    named = [name for name, text in wrong.items() if NEEDS_EXTRA in text]
    silent = [
        f"{name} ({text})"
        for name, text in wrong.items()
        if name not in named and name not in STANDALONE
    ]
    count, behind = int(found["modules"].get("", 0)), len(wrong) - len(named) - len(silent)
    text = (
        f"{count} modules: {count - len(wrong)} import, {len(named)} name their extra, {behind} are"
        f" behind these, {len(silent)} fail"
    )
    return Figure(
        "modules without any extra",
        found.get("ended", " ".join([text, *silent])),
        count > 0 and not silent,
    )


def judge_work(tried: str, found: dict, folder: Path, count: int) -> Figure:
    """Every command ends well, overlay, labels and JSON are written, and no connection is
    opened."""
    answers = found["answers"][:count]
    wrong = [
        f"{' '.join(answer['words'][:1])}: {answer['err'].strip()}"
        for answer in answers
        if answer["code"] != 0
    ]
    written = len(
        [
            path
            for path in (folder / "segmented").rglob("*")
            if path.is_file() and path.stat().st_size
        ]
    )
    text = (
        f"{len(answers) - len(wrong)} of {count} commands, {written} files written,"
        f" {len(found['refused'])} connections tried"
    )
    passed = len(answers) == count and not wrong and written >= 3 and not found["refused"]
    return Figure(tried, found.get("ended", " ".join([text, *wrong, *found["refused"]])), passed)


def judge_refusals(found: dict) -> Figure:
    """Commands that need an extra end with one line that names it."""
    answers = found["answers"][-len(REFUSED) :]
    good = [
        answer
        for answer in answers
        if answer["code"] == 2
        and NEEDS_EXTRA in answer["err"]
        and answer["err"].strip().count("\n") == 0
    ]
    bad = [
        f"{' '.join(answer['words'])}: {answer['code']} {answer['err'].strip()}"
        for answer in answers
        if answer not in good
    ]
    text = f"{len(good)} of {len(REFUSED)} say in one line which extra to install"
    return Figure(
        "commands that need an extra",
        found.get("ended", " ".join([text, *bad])),
        len(good) == len(REFUSED),
    )


def run_tests(tried: str, name: str | None, there: bool) -> Figure:
    """Run the portable tests in an environment; None is this one."""
    python = Path(sys.executable) if name is None else environment_python(name)
    if not there:
        return Figure(tried, "not run, this interpreter is not here", True)
    if python is None:
        return Figure(tried, f"not run, .venv-{name} is not there (make environments)", False)
    versions = (
        "import sys, torch; print('Python %d.%d.%d, torch' % sys.version_info[:3],"
        " torch.__version__)"
    )
    label = subprocess.run(
        [str(python), "-c", versions], capture_output=True, text=True
    ).stdout.strip()
    paths = [
        f"tests/test_{name}.py"
        for name in PORTABLE
        if (ROOT / "tests" / f"test_{name}.py").exists()
    ]
    command = [
        str(python),
        "-m",
        "pytest",
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        "--tb=no",
        *paths,
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )
    counts = {
        word: int(number)
        for number, word in re.findall(
            r"(\d+) (passed|failed|skipped|errors?)", done.stdout.strip().rpartition("\n")[2]
        )
    }
    wrong = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    text = (
        ", ".join(f"{number} {word}" for word, number in counts.items())
        or f"pytest ends with {done.returncode}"
    )
    return Figure(
        tried,
        " ".join([f"{label}: {text} of {len(paths)} test files", *wrong]),
        done.returncode == 0 and counts.get("passed", 0) > 0,
    )


def compare_numbers(folder: Path) -> Figure:
    """Compare what the packaged model computes here and with the oldest dependencies."""
    tried = "float32 numbers of the oldest and this torch"
    other = environment_python("oldest")
    if other is None:
        return Figure(tried, "not compared, .venv-oldest is not there (make environments)", False)
    dumps, versions = [], []
    for python in (other, Path(sys.executable)):
        file = folder / f"{len(dumps)}.npz"
        subprocess.run(
            [str(python), str(HERE / "same_numbers.py"), str(file)],
            check=True,
            cwd=ROOT,
            capture_output=True,
        )
        versions.append(
            subprocess.run(
                [str(python), "-c", "import torch; print(torch.__version__)"],
                capture_output=True,
                text=True,
            ).stdout.strip()
        )
        with np.load(file) as arrays:
            dumps.append(dict(arrays))
    same = dumps[0].keys() == dumps[1].keys()
    apart = {
        name: difference(dumps[0][name], dumps[1][name])
        for name in dumps[0].keys() & dumps[1].keys()
    }
    worst = max(apart, key=lambda name: apart[name])
    text = (
        f"torch {versions[0]} and {versions[1]}: {len(apart)} arrays, largest relative difference"
        f" {apart[worst]:.1e} ({worst})"
    )
    return Figure(tried, text, same and apart[worst] <= SAME)


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Largest difference over the largest value; infinite where something is no number."""
    scale = max(float(np.abs(first).max()), 1e-30)
    found = float(np.abs(first.astype(np.float64) - second).max()) / scale
    return found if np.isfinite(found) else float("inf")


if __name__ == "__main__":
    raise SystemExit(main(measure))
