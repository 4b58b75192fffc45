"""The commands that measure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.terminal import console, make_table, say, warn
from cascade_clip.config import Precision
from cascade_clip.errors import SettingError

if TYPE_CHECKING:
    from cascade_clip.research.benchmark import Variant

Case = Literal[
    "inference", "sliding", "classes", "train", "scaling", "data", "startup", "gpu", "all"
]
Size = Literal["full", "tiny"]

AGAINST_TEXTBOOK: tuple[Case, ...] = ("inference", "sliding", "classes", "train")


def benchmark(
    case: Case = "all",
    *,
    rounds: int = 3,
    size: Size = "full",
    seconds: float = 8.0,
    workers: int = 0,
    picture: Path = Path("scaling.png"),
    out: Path = Path("benchmark.json"),
) -> int:
    """Measure this machine: each kind of work against a textbook variant of the same model.

    The two run in turn (A B A B), each turn in a fresh process.

    Args:
        case: inference, sliding (windows), classes (20 and 1,000), train, scaling (the picture),
            data (training crops per second), startup, gpu (needs CUDA), or all of them but gpu.
        rounds: turns of every variant; figures are medians.
        size: full: ViT-B/16 with 50 prompt tokens and random weights; tiny: to try the command.
        seconds: data and gpu: how long each setting runs.
        workers: data: loading processes; 0 takes the number of cores.
        picture: scaling: where to draw time and memory over classes and pixels.
        out: the figures as JSON.
    """
    from cascade_clip.files import write_json
    from cascade_clip.research.benchmark import describe_machine

    for name, value, least in (("rounds", rounds, 1), ("workers", workers, 0)):
        if value < least:
            raise SettingError(f"--{name} must be {least} or more, got {value}")
    if seconds <= 0:
        raise SettingError(f"--seconds must be positive, got {seconds}")
    machine = describe_machine()
    values: dict[str, Any] = {"case": case, "machine": machine}
    wanted = (*AGAINST_TEXTBOOK, "scaling", "data", "startup") if case == "all" else (case,)
    for one in wanted:
        if one in AGAINST_TEXTBOOK:
            values[one] = _compare(one, rounds, size)
        elif one == "scaling":
            values[one] = _scale(rounds, size, picture)
        else:
            values[one] = _measure(one, rounds, seconds, workers)
        write_json(out, values)
    say(", ".join(f"{name} {value}" for name, value in machine.items() if value is not None))
    say(f"wrote {out}")
    return ExitCode.DONE


def profile(
    *,
    classes: int = 171,
    precision: Precision = "fp32",
    size: Size = "full",
    train: bool = False,
    rows: int = 20,
) -> int:
    """Show the operators of torch, by own processor time, of one image or of one training step.

    Args:
        classes: number of class names.
        precision: number format of matrix products.
        size: full: ViT-B/16 with 50 prompt tokens; tiny: to try the command.
        train: one training step of one image instead of inference.
        rows: operators to show.
    """
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    from cascade_clip.research.benchmark import Work, prepare

    side = Work("inference", size=size).window
    kind: Literal["train", "inference"] = "train" if train else "inference"
    work = Work(kind, precision=precision, classes=classes, height=side, width=side, size=size)
    run = prepare(work)
    run()
    with watch(activities=[ProfilerActivity.CPU]) as found:
        run()
    events = sorted(found.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True)
    total = sum(event.self_cpu_time_total for event in events)
    what = "training step" if train else "inference"
    title = f"{what}, {classes} classes, {side} x {side}, {precision}"
    table = make_table(title, ("operator", "ms", "share", "calls"))
    for event in events[:rows]:
        own = event.self_cpu_time_total
        table.add_row(event.key, f"{own / 1000:.1f}", f"{own / total:.1%}", str(event.count))
    console.print(table)
    say(f"all operators: {total / 1000:.0f} ms")
    return ExitCode.DONE


def _compare(case: str, rounds: int, size: Size) -> dict[str, Any]:
    """Measure and print the rows of one case."""
    from cascade_clip.research.benchmark import list_cases, measure_peak, measure_variants

    rows = list_cases(case, size)
    peak = measure_peak()
    measure_variants(rows, rounds, _tell)
    about = "(processor seconds are little disturbed by other programs)"
    numbers = ("s", "processor s", "times as fast", "MiB", "GFLOP", "of the peak")
    heads = ("work", "variant", *numbers)
    table = make_table(f"benchmark {case}, medians of {rounds} {about}", heads, left=(0, 1))
    for row in rows:
        table.add_row(
            row.name, row.variant, f"{row.median('seconds'):.2f}",
            f"{row.median('processor'):.2f}", _faster(row, rows),
            f"{row.median('memory'):.0f}", f"{row.flops / 1e9:.0f}",
            f"{row.share(peak[row.work.precision]):.0%}",
        )  # fmt: skip
    console.print(table)
    peaks = f"{peak['fp32']:.0f} GFLOP/s in fp32, {peak['bf16']:.0f} in bf16"
    say(f"matrix-product peak per core: {peaks}")
    return {"rows": [row.to_json() for row in rows], "peak": peak}


def _faster(row: Variant, rows: list[Variant]) -> str:
    """How many times as fast, in processor time, as the textbook variant under either allocator."""
    bases = [base for base in rows if base.name == row.name and base.work.variant == "textbook"]
    if row.work.variant == "textbook" or not bases:
        return ""
    return " / ".join(f"{base.median('processor') / row.median('processor'):.2f}" for base in bases)


def _scale(rounds: int, size: Size, picture: Path) -> dict[str, Any]:
    """Measure and draw how time and memory grow."""
    from cascade_clip.research.benchmark import draw_scaling, list_scaling, measure_variants

    rows = list_scaling(size)
    measure_variants(rows, rounds, _tell, flops=False)
    draw_scaling(rows, picture)
    say(f"wrote {picture}")
    return {"rows": [row.to_json() for row in rows]}


def _measure(case: str, rounds: int, seconds: float, workers: int) -> dict[str, Any]:
    """Measure and print single figures."""
    from cascade_clip.research.benchmark import GpuPlan, measure_data, measure_gpu, measure_startup

    if case == "data":
        found = measure_data(seconds, workers, _tell)
    elif case == "gpu":
        found = measure_gpu(GpuPlan(seconds=seconds), _tell)
    else:
        found = measure_startup(rounds, _tell)
    heads = ("what", "figure", "unit", "note")
    table = make_table(f"benchmark {case}", heads, left=(0, 2, 3))
    for row in found:
        table.add_row(row.name, f"{row.value:.2f}", row.unit, row.note)
    console.print(table)
    return {"figures": [row.to_json() for row in found]}


def _tell(text: str) -> None:
    warn(f"measuring: {text}")
