"""Run the scripts of this folder and write what they find into docs/trust.md.

    python tests/trust/collect.py                    every script python tests/trust/collect.py
    inputs faults      these alone; what the others found before is kept

Each runs in a process of its own. Figures are kept in docs/trust.json after every script, so that
nothing is lost when this is stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "trust.md"
ORDER = (
    "inputs",
    "fuzzing",
    "strangers",
    "faults",
    "numerics",
    "leaks",
    "service",
    "platforms",
    "mutation",
    "audit",
)
"""The scripts as the page shows them; others come after these."""
LIMIT = 4 * 3600
"""Seconds after which a script has failed."""

HEAD = """# Trust

What the program promises, how hard it was tried, and what was found. `make trust` measures all of
it again and writes this page;
`make trust ONLY="faults leaks"` does so for some scripts of `tests/trust`, and one alone runs as
`.venv/bin/python tests/trust/faults.py`.
The fast tests run each script's quick mode. How to report a hole: [SECURITY.md](../SECURITY.md).
"""


def find_scripts(folder: Path = HERE) -> list[str]:
    """Names of the scripts that measure something, in the order of the page."""
    names = [
        path.stem
        for path in sorted(folder.glob("*.py"))
        if "\ndef measure(" in path.read_text(encoding="utf-8")
    ]
    return sorted(
        names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)
    )


def run_script(path: Path, options: Sequence[str] = (), limit: float = LIMIT) -> dict[str, Any]:
    """Run one script and describe the run; one that does not finish has failed, whatever it printed
    before."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cascade-clip-trust-") as folder:
        written, errors = Path(folder) / "figures.json", Path(folder) / "errors.txt"
        command = [sys.executable, str(path), *options, "--json", str(written)]
        with errors.open("w") as stream:
            process = subprocess.Popen(command, stderr=stream, start_new_session=True)
            try:
                ended = f"ended with exit code {process.wait(limit)}"
            except subprocess.TimeoutExpired:
                ended = f"took longer than {limit:.0f} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    # what the script left running, and the script when this is interrupted
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        try:
            figures = json.loads(written.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            figures = []
        last = (
            [line for line in errors.read_text(errors="replace").splitlines() if line.strip()]
            or ["nothing on the error stream"]
        )[-1]
    if process.returncode not in (0, 1) or not figures:
        figures.append(
            {"tried": f"tests/trust/{path.name}", "found": f"{ended}: {last}", "passed": False}
        )
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began),
        "machine": describe_machine(),
        "about": _first_line(path),
        "figures": figures,
    }


def describe_machine() -> str:
    """Cores, memory, system and versions in one line."""
    memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB of memory"
    versions = f"Python {platform.python_version()}, torch {metadata.version('torch')}"
    return f"{os.cpu_count()} cores ({_processor()}), {memory}, {platform.system()}, {versions}"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition('"""')[2].splitlines()[0].rstrip('"')


def write_page(runs: dict[str, Any], page: Path) -> None:
    """Write the figures as JSON and as a page, each under a temporary name first."""
    _replace(page.with_suffix(".json"), json.dumps(runs, indent=1, ensure_ascii=False) + "\n")
    _replace(
        page,
        "\n".join(
            [
                HEAD,
                *_summary(runs),
                *(line for name in _in_order(runs) for line in _section(name, runs[name])),
            ]
        ).rstrip()
        + "\n",
    )


def _summary(runs: dict[str, Any]) -> list[str]:
    rows = ["| part | as promised | when | minutes |", "|---|---|---|---|"]
    for name in _in_order(runs):
        figures = runs[name]["figures"]
        good = sum(figure["passed"] for figure in figures)
        share = (
            f"{good} of {len(figures)}" if good == len(figures) else f"**{good} of {len(figures)}**"
        )
        rows.append(
            f"| [{name}](#{name}) | {share} | {runs[name]['time'][:16].replace('T', ' ')} |"
            f" {runs[name]['seconds'] / 60:.1f} |"
        )
    machines = list(dict.fromkeys(runs[name]["machine"] for name in _in_order(runs)))
    return [*rows, "", f"Machine: {'; '.join(machines)}. It was shared with other work.", ""]


def _section(name: str, run: dict[str, Any]) -> list[str]:
    rows = [
        f"| {_cell(row['tried'])} | {_cell(row['found'])} |"
        f" {'yes' if row['passed'] else '**no**'} |"
        for row in run["figures"]
    ]
    return [
        f"## {name}",
        "",
        run["about"],
        "",
        "| tried | found | as promised |",
        "|---|---|---|",
        *rows,
        "",
    ]


def _cell(text: str) -> str:
    """Text that stays in its cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")


def _in_order(runs: dict[str, Any]) -> list[str]:
    return [
        *(name for name in ORDER if name in runs),
        *sorted(name for name in runs if name not in ORDER),
    ]


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def read_runs(page: Path) -> dict[str, Any]:
    """What an earlier run kept."""
    kept = page.with_suffix(".json")
    runs: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    return runs


def main(arguments: list[str] | None = None) -> int:
    """Run scripts and write the page after each; exit code 1 when a figure is not as promised."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="scripts to run; every one by default")
    parser.add_argument("--quick", action="store_true", help="small samples")
    parser.add_argument("--page", type=Path, default=PAGE, help="page to write")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds that a script may take")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the scripts are")
    options = parser.parse_args(arguments)
    there = find_scripts(options.folder)
    unknown = [name for name in options.names if name not in there]
    if unknown:
        parser.error(f"no script is called {', '.join(unknown)}; choose from {', '.join(there)}")
    names = [name for name in there if name in options.names] if options.names else there
    runs = {name: run for name, run in read_runs(options.page).items() if name in there}
    for number, name in enumerate(names, start=1):
        print(f"[{number}/{len(names)}] {name}", flush=True)
        runs[name] = run_script(
            options.folder / f"{name}.py", ["--quick"] if options.quick else [], options.limit
        )
        wrong = sum(not figure["passed"] for figure in runs[name]["figures"])
        print(
            f"      {runs[name]['seconds']} s, {len(runs[name]['figures'])} figures, {wrong} not as"
            " promised",
            flush=True,
        )
        write_page(runs, options.page)
    return 0 if all(figure["passed"] for run in runs.values() for figure in run["figures"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
