"""Mutation check: do the tests notice when the numerical core is changed?

At most 200 mutants, sampled with a fixed seed and spread over these modules, each run against
its module's tests in a copied tree.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from figures import Figure, main
from mutants import Mutant, list_mutants, mutate

ROOT = Path(__file__).resolve().parents[2]
ALONE = "--noconftest"
"""Without the fixtures, whose imports take longer than the tests."""
TESTS = {
    "losses.mask_losses": [
        [ALONE, "tests/losses/test_losses.py"],
        [ALONE, "tests/test_mutants.py::TestLosses"],
    ],
    "evaluation.metrics": [
        [ALONE, "tests/evaluation/test_metrics.py"],
        [ALONE, "tests/test_mutants.py::TestMetrics"],
    ],
    "models.aggregation": [
        [ALONE, "tests/test_mutants.py::TestAggregation"],
        ["tests/models/test_segmenter.py"],
    ],
    "models.decoders.transformer": [
        [ALONE, "tests/test_mutants.py::TestDecoder"],
        ["tests/models/test_segmenter.py"],
    ],
    "inference.predictor": [
        [ALONE, "tests/test_mutants.py::TestPredictor"],
        ["tests/inference/test_predictor.py"],
    ],
    "inference.sliding": [
        [ALONE, "tests/test_mutants.py::TestPredictor"],
        ["tests/inference/test_predictor.py"],
    ],
}
"""The modules, each with the tests that must notice a change: the second where the first did
not."""

MUTANTS, PROMISED = 200, 0.85

EQUIVALENT = {
    "models.aggregation.BlockAttention.forward: need_weights=False -> need_weights=True": (
        "the weights are dropped; only the speed differs"
    ),
    "losses.mask_losses._check_labels: strict=True -> strict=False": (
        "reached only where labels have three axes, so both sides have two entries"
    ),
    "evaluation.metrics.Metrics.to_json: strict=True -> strict=False": (
        "__post_init__ has compared the four lengths"
    ),
    "inference.sliding.SlidingWindow.score_chunks: len(found) > 1 -> len(found) >= 1": (
        "a division by 1 changes no bit; only the speed differs"
    ),
    "inference.predictor.Predictor.best_rows: strict=True -> strict=False": (
        "one list was made from the other"
    ),
}
"""Mutants that no test can catch, with the reason."""


def measure(quick: bool) -> Iterator[Figure]:
    """Figures per module and over all; in quick mode three mutants of one module."""
    chosen = sample(3 if quick else MUTANTS, ["losses.mask_losses"] if quick else list(TESTS))
    with (
        tempfile.TemporaryDirectory(prefix="cascade-clip-mutants-") as folder,
        Workers(Path(folder), 1 if quick else 2, quick) as workers,
    ):
        for module in dict.fromkeys(mutant.module for mutant in chosen):
            code = workers.run(module, read(module), TESTS[module][: 1 if quick else 2])
            if code != 0:
                yield Figure(
                    f"tests of {module} on the module as it is", f"pytest ends with {code}", False
                )
                return

        def run(mutant: Mutant) -> int:
            return workers.run(
                mutant.module,
                mutate(read(mutant.module), mutant),
                TESTS[mutant.module][: 1 if quick else 2],
            )

        with ThreadPoolExecutor(workers.count) as pool:
            codes = list(pool.map(run, chosen))
    survivors = [mutant for mutant, code in zip(chosen, codes, strict=True) if code == 0]
    for module in dict.fromkeys(mutant.module for mutant in chosen):
        yield _figure(module, [mutant for mutant in chosen if mutant.module == module], survivors)
    share = 1 - len(survivors) / len(chosen)
    yield Figure(
        "mutants over all modules",
        f"{len(chosen) - len(survivors)} of {len(chosen)} caught, {share:.1%}",
        share >= (0.5 if quick else PROMISED),
    )


def _figure(module: str, chosen: list[Mutant], survivors: list[Mutant]) -> Figure:
    left = [mutant for mutant in survivors if mutant.module == module]
    unexplained = [mutant for mutant in left if mutant.name not in EQUIVALENT]
    counts = f"{len(left) - len(unexplained)} changes without effect, {len(unexplained)} missed"
    found = f"{len(chosen) - len(left)} of {len(chosen)} caught, {counts}"
    names = "; ".join(
        f"{module}.py:{mutant.line} {mutant.before} -> {mutant.after}" for mutant in unexplained
    )
    return Figure(f"mutants of {module}", f"{found}: {names}" if names else found, not unexplained)


def read(module: str) -> str:
    """The source of a module."""
    return (ROOT / "src" / "cascade_clip" / f"{module.replace('.', '/')}.py").read_text(
        encoding="utf-8"
    )


def sample(count: int, modules: list[str], seed: int = 0) -> list[Mutant]:
    """`count` mutants with equal shares for the modules, as far as each has so many; in a fixed
    random order within a module."""
    generator = random.Random(seed)
    shuffled = {}
    for module in modules:
        mutants = list_mutants(module, read(module))
        shuffled[module] = generator.sample(mutants, len(mutants))
    shares = dict.fromkeys(modules, 0)
    while sum(shares.values()) < count and any(
        shares[module] < len(shuffled[module]) for module in modules
    ):
        for module in modules:
            if sum(shares.values()) < count and shares[module] < len(shuffled[module]):
                shares[module] += 1
    return [mutant for module in modules for mutant in shuffled[module][: shares[module]]]


class Workers:
    """Processes that run tests, each in a copied tree of its own."""

    def __init__(self, folder: Path, count: int, quick: bool) -> None:
        """Copy the tree `count` times under `folder` and start the processes; `quick` imports few
        libraries beforehand."""
        self.count = count
        self._free: Queue[subprocess.Popen[str]] = Queue()
        self._all = []
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            "CUDA_VISIBLE_DEVICES": "",
        }
        # plugins of other packages take seconds to import
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        for number in range(count):
            tree = folder / str(number)
            for name in ("src", "tests", "configs"):
                shutil.copytree(
                    ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "trust")
                )
            shutil.copy(ROOT / "pyproject.toml", tree)
            command = [
                sys.executable,
                str(Path(__file__).with_name("mutants.py")),
                str(tree),
                *(["torch"] if quick else []),
            ]
            started = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                preexec_fn=lambda: os.nice(10),
            )
            self._all.append(started)
            self._free.put(started)
        for started in self._all:
            _answer(started)

    def run(self, module: str, source: str, tests: list[list[str]]) -> int:
        """Pytest's exit code with `source` in place of the module: of the first tests that notice
        it, else 0."""
        worker = self._free.get()
        try:
            for words in tests:
                worker.stdin.write(
                    json.dumps({"module": module, "source": source, "tests": words}) + "\n"
                )
                worker.stdin.flush()
                code = json.loads(_answer(worker))["code"]
                if code != 0:
                    return code
            return 0
        finally:
            self._free.put(worker)

    def __enter__(self) -> Workers:
        """The workers, ready."""
        return self

    def __exit__(self, *_: object) -> None:
        """End every process."""
        for worker in self._all:
            with contextlib.suppress(OSError):
                worker.stdin.close()
            worker.wait(timeout=60)
            worker.stdout.close()


def _answer(worker: subprocess.Popen[str]) -> str:
    line = worker.stdout.readline()
    if not line:
        raise OSError("the process that runs the tests ended early")
    return line


if __name__ == "__main__":
    raise SystemExit(main(measure))
