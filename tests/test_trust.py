"""The scripts of tests/trust keep their promises in quick mode, and what collects their figures
loses none."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import audit
import collect
import environments
import figures
import mutation
import platforms
from figures import Figure
from mutants import list_mutants, mutate
from paths import ROOT

SCRIPTS = collect.find_scripts()


def test_every_part_has_a_script() -> None:
    assert set(collect.ORDER) >= set(SCRIPTS)
    assert {"platforms", "mutation", "audit"} <= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_figures_are_as_promised(name: str) -> None:
    found = list(importlib.import_module(name).measure(True))
    assert found
    assert [f"{figure.tried}: {figure.found}" for figure in found if not figure.passed] == []


def test_figures_are_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def measure(quick: bool) -> list[Figure]:
        asked.append(quick)
        return [Figure("one", "1 of 1", True), Figure("two", "1 of 2 ✓", False)]

    assert figures.main(measure, ["--quick", "--json", str(tmp_path / "a.json")]) == 1
    assert asked == [True]
    assert capsys.readouterr().out == "ok   one: 1 of 1\nFAIL two: 1 of 2 ✓\n"
    assert json.loads((tmp_path / "a.json").read_text())[1] == {
        "tried": "two",
        "found": "1 of 2 ✓",
        "passed": False,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert figures.main(lambda quick: [Figure("one", "", True)], []) == 0
    assert figures.main(lambda quick: [], []) == 1  # nothing measured is nothing shown


SCRIPT = '''"""About {name}.

More.
"""
import sys, time, os, subprocess
sys.path.insert(0, {folder!r})
from figures import Figure, main

def measure(quick):
    yield Figure("size | <b> [x]", "quick" if quick else "full", True)
    {body}

if __name__ == "__main__":
    raise SystemExit(main(measure))
'''


def write_script(folder: Path, name: str, body: str = "") -> Path:
    path = folder / f"{name}.py"
    path.write_text(SCRIPT.format(name=name, folder=str(ROOT / "tests" / "trust"), body=body))
    return path


class TestCollect:
    def test_the_page(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        page = tmp_path / "docs" / "trust.md"
        page.parent.mkdir()
        for name in ("zebra", "faults", "inputs"):
            write_script(tmp_path, name)
        (tmp_path / "helper.py").write_text("def measured(): ...\n")
        assert collect.main(["--folder", str(tmp_path), "--page", str(page), "--quick"]) == 0
        text = page.read_text()
        assert [text.index(f"## {name}") for name in ("inputs", "faults", "zebra")] == sorted(
            text.index(f"## {name}") for name in ("inputs", "faults", "zebra")
        )
        assert "About faults." in text and "More." not in text and "helper" not in text
        assert text.count("| size \\| &lt;b> \\[x] | quick | yes |") == 3
        assert "| [faults](#faults) | 1 of 1 |" in text
        assert f"Python {sys.version_info.major}.{sys.version_info.minor}" in text
        assert "[2/3] faults" in capfd.readouterr().out

    def test_some_are_renewed_and_the_rest_kept(self, tmp_path: Path) -> None:
        page = tmp_path / "trust.md"
        where = ["--folder", str(tmp_path), "--page", str(page)]
        for name in ("faults", "inputs", "leaks"):
            write_script(tmp_path, name)
        assert collect.main([*where, "--quick"]) == 0
        write_script(tmp_path, "faults", "yield Figure('a kill', '1 of 9 lost', False)")
        (tmp_path / "leaks.py").unlink()
        assert collect.main([*where, "faults"]) == 1
        runs = json.loads(page.with_suffix(".json").read_text())
        assert {
            name: [figure["found"] for figure in run["figures"]] for name, run in runs.items()
        } == {
            "faults": ["full", "1 of 9 lost"],
            "inputs": ["quick"],
        }
        assert "| [faults](#faults) | **1 of 2** |" in page.read_text()
        assert "| a kill | 1 of 9 lost | **no** |" in page.read_text()
        assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".part") == []

    def test_an_unknown_name_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_script(tmp_path, "faults")
        with pytest.raises(SystemExit):
            collect.main(["--folder", str(tmp_path), "--page", str(tmp_path / "trust.md"), "fault"])
        assert "no script is called fault; choose from faults" in capsys.readouterr().err
        assert not (tmp_path / "trust.md").exists()

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ("raise OSError('no disk')", "ended with exit code 1: OSError: no disk"),
            ("os._exit(9)", "ended with exit code 9: nothing on the error stream"),
            ("os.kill(os.getpid(), 9)", "ended with exit code -9: nothing on the error stream"),
        ],
    )
    def test_a_script_that_does_not_finish_has_failed(
        self, body: str, said: str, tmp_path: Path
    ) -> None:
        run = collect.run_script(write_script(tmp_path, "faults", body))
        assert run["figures"] == [
            {"tried": "tests/trust/faults.py", "found": said, "passed": False}
        ]

    def test_a_script_that_hangs_is_ended_with_what_it_started(self, tmp_path: Path) -> None:
        body = (
            f"subprocess.Popen(['sh', '-c', 'sleep 2; touch {tmp_path / 'late'}']); time.sleep(60)"
        )
        began = time.monotonic()
        run = collect.run_script(write_script(tmp_path, "faults", body), limit=1)
        assert time.monotonic() - began < 20
        assert run["figures"][-1]["found"].startswith("took longer than 1 s")
        time.sleep(2.5)
        assert not (tmp_path / "late").exists()


class TestMutants:
    SOURCE = '''"""Text 1."""
LIMIT = 3


def clip(value: int, top: int = 5) -> int:
    """At most 7."""
    if value < 0 and not top:
        raise ValueError(f"{value + 1} is too small")
    value += 1
    print(value)
    return min(value, top)
'''

    def test_every_kind(self) -> None:
        found = [(mutant.line, mutant.name) for mutant in list_mutants("m", self.SOURCE)]
        assert found == [
            (2, "m.module: LIMIT = 3 -> LIMIT = 4"),
            (7, "m.clip: value < 0 and (not top) -> value < 0 or not top"),
            (7, "m.clip: value < 0 -> value <= 0"),
            (7, "m.clip: value < 0 -> value < 1"),
            (7, "m.clip: not top -> top"),
            (9, "m.clip: value += 1 -> value -= 1"),
            (9, "m.clip: value += 1 -> value += 2"),
            (10, "m.clip: print(value) -> pass"),
            (11, "m.clip: return min(value, top) -> return None"),
            (5, "m.clip: 5 -> 6"),
        ]

    def test_each_is_one_change(self) -> None:
        mutants = list_mutants("m", self.SOURCE)
        sources = [mutate(self.SOURCE, mutant) for mutant in mutants]
        assert len(set(sources)) == len(mutants)
        names: dict[str, object] = {"print": lambda value: None}
        exec(sources[2], names)
        assert names["LIMIT"] == 3
        with pytest.raises(ValueError, match="1 is too small"):  # <= in place of <
            names["clip"](0, 0)  # type: ignore[operator]
        assert "raise ValueError(f'{value + 1} is too small')" in sources[2]

    def test_the_sample_is_spread_and_fixed(self) -> None:
        chosen = mutation.sample(60, list(mutation.TESTS))
        assert [sum(mutant.module == module for mutant in chosen) for module in mutation.TESTS] == [
            10
        ] * 6
        assert chosen == mutation.sample(60, list(mutation.TESTS))
        assert len({(mutant.module, mutant.index) for mutant in chosen}) == 60
        modules = ["evaluation.metrics", "models.decoders.transformer"]
        whole = [len(list_mutants(module, mutation.read(module))) for module in modules]
        assert len(mutation.sample(10**6, modules)) == sum(whole)
        modules = ["evaluation.metrics", "models.decoders.transformer"]
        whole = [len(list_mutants(module, mutation.read(module))) for module in modules]
        assert len(mutation.sample(10**6, modules)) == sum(whole)

    def test_explanations_belong_to_mutants(self) -> None:
        """A change of the source must not leave an explanation behind."""
        names = {mutant.name for mutant in mutation.sample(10**6, list(mutation.TESTS))}
        assert set(mutation.EQUIVALENT) <= names


class TestAudit:
    @pytest.mark.parametrize(
        ("row", "tight"),
        [
            ("torch>=2.10", True),
            ("torch>=2.9.1", False),
            ("torch", False),
            ("lightning>=2.4", False),
            ("lightning>=2.4,!=2.6.2", False),
            ("lightning>=2.4,!=2.6.2,!=2.6.3", True),
            ("python_multipart==0.0.31", True),
        ],
    )
    def test_bounds(self, row: str, tight: bool) -> None:
        assert audit.check_bounds([Requirement(row), Requirement("rich")]).passed is tight

    @pytest.mark.parametrize(
        ("call", "objection"),
        [
            ("pickle.loads(data)", "pickle.loads"),
            ("torch.load(path)", "torch.load without weights_only=True"),
            ("torch.load(path, weights_only=False)", "torch.load without weights_only=True"),
            ("torch.load(path, weights_only=True)", ""),
            ("np.load(path, allow_pickle=True)", "np.load with allow_pickle=True"),
            ("np.load(path, allow_pickle=False)", ""),
            ("yaml.safe_load(text)", ""),
            ("yaml.load(text)", "yaml.load"),
            ("model.eval()", ""),
        ],
    )
    def test_calls(self, call: str, objection: str, tmp_path: Path) -> None:
        path = tmp_path / "module.py"
        path.write_text(f"\n{call}\n")
        figure = audit.check_calls([path])
        assert figure.passed is not bool(objection)
        assert f"module.py:2 {objection}" in figure.found or not objection

    def test_a_file_that_is_no_python_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "module.py").write_text("f(1)\nx = = 2\n")
        assert "module.py:2 is no Python" in audit.check_calls([tmp_path / "module.py"]).found


class TestPlatforms:
    def test_the_oldest_versions_are_those_of_the_bounds(self) -> None:
        assert environments.OLDEST.read_text().split() == environments.lowest_versions()

    def test_lowest_versions(self, tmp_path: Path) -> None:
        extras = "\n".join(f"{name} = []" for name in environments.EXTRAS if name != "serve")
        core = '[project]\ndependencies = ["B>=1.2,!=1.3", "c"]\n[project.optional-dependencies]\n'
        (tmp_path / "pyproject.toml").write_text(
            f'{core}{extras}\nserve = ["a[x]>=2"]\nweb = ["d>=3"]\n'
        )
        assert environments.lowest_versions(tmp_path / "pyproject.toml") == ["a==2", "B==1.2"]

    def test_the_supported_pythons_are_those_of_the_project(self) -> None:
        text = (ROOT / "pyproject.toml").read_text()
        assert [
            version for version in environments.PYTHONS if f"Python :: {version}" in text
        ] == list(environments.PYTHONS)
        assert f'requires-python = ">={environments.PYTHONS[0]}"' in text

    def test_extras_that_hide(self) -> None:
        found = {
            "modules": {
                "": "3",
                "cascade_clip.a": "ModuleNotFoundError: No module named 'av'",
                "cascade_clip.export.runner": "x",
            }
        }
        figure = platforms.judge_imports(found)
        assert not figure.passed
        assert figure.found.startswith(
            "3 modules: 1 import, 0 name their extra, 1 are behind these, 1 fail cascade_clip.a"
        )

    def test_difference(self) -> None:
        import numpy as np

        assert platforms.difference(np.array([1.0, -4.0]), np.array([1.0, -4.5])) == pytest.approx(
            0.125
        )
        assert platforms.difference(np.zeros(2), np.zeros(2)) == 0
        assert platforms.difference(np.array([1.0]), np.array([np.nan])) == float("inf")


class TestFuzzing:
    def test_a_reader_that_ends_the_process_is_a_failed_figure(self, tmp_path: Path) -> None:
        fuzzing = importlib.import_module("fuzzing")

        def read(content: bytes) -> None:
            if content != b"whole":
                os.kill(os.getpid(), signal.SIGSEGV)

        figure = fuzzing.fuzz(
            fuzzing.Target("a reader", read, [b"whole"]), 0.1, 0, tmp_path / "cases"
        )
        assert (
            not figure.passed
            and "4 ended or stopped the process" in figure.found
            and "SIGSEGV at " in figure.found
        )

    def test_an_error_that_is_not_documented_is_a_failed_figure(self, tmp_path: Path) -> None:
        fuzzing = importlib.import_module("fuzzing")

        def read(content: bytes) -> None:
            if content != b"whole":
                raise KeyError("odd")

        figure = fuzzing.fuzz(
            fuzzing.Target("a reader", read, [b"whole"]), 0.1, 0, tmp_path / "cases"
        )
        assert not figure.passed and "KeyError: 'odd'" in figure.found
