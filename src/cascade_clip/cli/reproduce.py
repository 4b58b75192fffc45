"""The command that reproduces the paper's tables and figures."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.terminal import check_folder, console, make_table, say, warn
from cascade_clip.errors import SettingError
from cascade_clip.results import format_duration

if TYPE_CHECKING:
    from cascade_clip.research.reproduction import (
        Entry,
        Failure,
        Job,
        Reproduction,
        ReproductionSettings,
        Section,
    )

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""A control group's microseconds of processor time, and in how many (Linux, cgroup v2)."""
_RUN_MEMORY = int(1.2 * 2**30)
"""Bytes that a run on the built-in world takes."""


def reproduce(
    what: str,
    *,
    seeds: str = "",
    world: str = "sandbox",
    out: Path = Path("reproduction"),
    jobs: int = 0,
    root: str = "",
    plan: bool = False,
    show: bool = False,
) -> int:
    """Run the paper's tables and figures, and say whether their orderings hold here.

    Trains and scores what is missing in OUT, several runs at a time; runs that several entries need
    are made once, and a command that was stopped goes on when it is given again. Prints every table
    beside the published one, with the differences, their 95 % intervals and what they say in words,
    and writes OUT/index.html, OUT/reproduction.md and OUT/results.json. The exit code is 1 when a
    run failed.

    Args:
        what: table1, figure4, question3; several separated by commas; or all.
        seeds: seeds such as 0,1,2; by default those of each entry on the sandbox, and 0 elsewhere.
        world: dataset: sandbox (the built-in world, no download), voc, coco-stuff or context.
        out: folder for runs and results.
        jobs: runs at a time; 0 takes as many as cores and free memory allow on the sandbox, and one
            elsewhere.
        root: folder that holds the dataset, unless it is the sandbox.
        plan: list the runs and do nothing else.
        show: print and write what is there already, and train nothing.
    """
    from cascade_clip.research.reproduction import (
        Reproduction,
        find_entries,
        load_settings,
        plan_jobs,
    )

    entries, settings = find_entries(what), load_settings(world, root)
    if jobs < 0:
        raise SettingError(f"--jobs must be 0 (by itself) or more, got {jobs}")
    check_folder(out)
    reproduction = Reproduction(settings, out, choose_seeds(entries, settings, seeds))
    runs = plan_jobs(entries, reproduction)
    at_once = jobs or (count_jobs() if settings.small else 1)
    if plan:
        print_plan(entries, runs, at_once)
        return ExitCode.DONE
    if show and not out.is_dir():
        hint = "give the one that `reproduce` wrote to with --out"
        raise SettingError(f"--show: there is no folder {out}; {hint}")
    failures = [] if show else make_runs(runs, at_once, settings)
    show_results(entries, reproduction, repeat_flags(seeds, world, out, root), count=not show)
    return ExitCode.FINDINGS if failures else ExitCode.DONE


def choose_seeds(
    entries: Sequence[Entry], settings: ReproductionSettings, given: str
) -> dict[str, tuple[int, ...]]:
    """Choose the seeds of every entry, by its key.

    Raises:
        ValueError: `given` is no list of seeds.
    """
    from cascade_clip.training import parse_seeds

    if given:
        return dict.fromkeys((entry.key for entry in entries), parse_seeds(given))
    return {entry.key: entry.seeds if settings.small else (0,) for entry in entries}


def repeat_flags(seeds: str, world: str, out: Path, root: str) -> str:
    """Write the flags that a command about the same runs needs, without defaults."""
    given = {"seeds": seeds, "world": world, "out": str(out), "root": root}
    defaults = {"world": "sandbox", "out": "reproduction"}
    return "".join(
        f" --{name} {shlex.quote(value)}"
        for name, value in given.items()
        if value != defaults.get(name, "")
    )


def count_cores() -> int:
    """Count the whole cores that this process may use, by affinity and control group's quota."""
    bound = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if bound else os.cpu_count() or 1
    try:
        quota, period = map(int, _QUOTA.read_text(encoding="ascii").split())
    except (OSError, ValueError):  # none, or `max`
        return cores
    return max(1, min(cores, quota // period))


def count_jobs() -> int:
    """Runs on the built-in world for which there are cores and free memory; at least one."""
    import psutil

    return max(1, min(count_cores(), psutil.virtual_memory().available // _RUN_MEMORY))


def print_plan(entries: Sequence[Entry], runs: Sequence[Job], at_once: int) -> None:
    """Print every run, what is done of it, and how long the rest may take."""
    from cascade_clip.research.reproduction import estimate_seconds

    left = estimate_seconds(runs)
    heads = ("run", "seed", "for", "state", "training left")
    table = make_table(f"{len(runs)} runs", heads, left=(0, 2, 3))
    for run in runs:
        seed, names = str(run.config.train.seed), ", ".join(run.entries)
        seconds = left.get(run.folder)
        time_left = "-" if run.done else "unknown" if seconds is None else format_duration(seconds)
        table.add_row(run.name, seed, names, describe_state(run), time_left)
    if runs:
        console.print(table)
    if untrained := [entry.key for entry in entries if not entry.rows]:
        say(f"nothing to train for {', '.join(untrained)}")
    if not runs:
        return
    missing = sum(not run.done for run in runs)
    line = f"{len(runs) - missing} of {len(runs)} runs are done; {missing} to do"
    if left:
        total = format_duration(sum(left.values()) / min(at_once, missing))
        line += f", about {total} of training, {at_once} at a time"
    say(line)


def describe_state(run: Job) -> str:
    """How far a run is."""
    from cascade_clip.research.reproduction import is_trained

    if run.done:
        return "done"
    if is_trained(run.folder):
        return "trained, to be scored"
    return f"step {run.steps_done} of {run.steps}" if run.steps_done else "to do"


def make_runs(
    runs: Sequence[Job], at_once: int, settings: ReproductionSettings
) -> Sequence[Failure]:
    """Make what is missing; standard error shows a progress bar, and a line for every failure.

    Raises:
        ValueError, FileNotFoundError: the files of the dataset are missing.
    """
    from cascade_clip.data import build_dataset
    from cascade_clip.research.reproduction import run_jobs

    missing = [run for run in runs if not run.done]
    if not missing:
        return []
    if not settings.small:
        build_dataset(missing[0].config.data)  # what is missing is one error, not one for each run
    done_before = len(runs) - len(missing)
    screen = Console(file=sys.stderr)
    together = min(at_once, len(missing))
    say(f"{len(missing)} runs to make, {done_before} are done; {together} at a time")
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    columns = (TextColumn("runs"), BarColumn(), TextColumn("{task.fields[count]}"), *times)
    with Progress(
        *columns, console=screen, disable=not screen.is_terminal, speed_estimate_period=3600
    ) as progress:
        task = progress.add_task("", total=len(missing), count=f"{done_before}/{len(runs)}")

        def moved(made: float, done: int) -> None:
            count = f"{done_before + done}/{len(runs)}"
            if not screen.is_terminal and progress.tasks[task].fields["count"] != count:
                say(f"{count} runs have ended")
            progress.update(task, completed=made, count=count)

        def failed(failure: Failure) -> None:
            job = failure.job
            name = f"{job.name}, seed {job.config.train.seed}"
            warn(f"{name}, failed: {failure.reason} ({job.folder})")

        return run_jobs(missing, at_once, one_core=settings.small, failed=failed, moved=moved)


def show_results(
    entries: Sequence[Entry], reproduction: Reproduction, flags: str, *, count: bool
) -> None:
    """Print every entry with what it says in words, and write the page.

    `flags` are those that a command needs again; `count`: costs may be counted and timed.
    """
    from cascade_clip.research.reproduction import build_section, write_page

    sections = []
    for entry in entries:
        command = f"cascade-clip reproduce {entry.key}{flags}"
        sections.append(build_section(entry, reproduction, command, count=count))
        print_section(sections[-1])
    say("")
    for path in write_page(reproduction, sections):
        say(f"wrote {path}")


def print_section(section: Section) -> None:
    """Print an entry: its tables, what they say, and what was not run."""
    say(f"\n{section.entry.key}: {section.entry.title}")
    for found in section.tables:
        table = make_table(found.title, found.heads)
        for row in found.rows:  # certain differences are bold
            table.add_row(*(Text(cell.text, "bold" if cell.tone else "") for cell in row))
        console.print(table)
    for line in section.wording:
        say(line)
    for what, names in (("not run", section.missing), ("incomplete", section.incomplete)):
        if names:
            say(f"{what}: {', '.join(names)}; {section.command}")
