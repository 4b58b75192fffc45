"""Speed and memory of this machine, against a plain implementation."""

from cascade_clip.research.benchmark.cases import (
    Row,
    list_cases,
    list_scaling,
    measure_peak,
    measure_rows,
)
from cascade_clip.research.benchmark.gpu import GpuPlan, measure_gpu
from cascade_clip.research.benchmark.machine import Measurement, describe_machine, measure_data
from cascade_clip.research.benchmark.scaling import draw_scaling
from cascade_clip.research.benchmark.startup import measure_startup
from cascade_clip.research.benchmark.work import Work, prepare

__all__ = [
    "GpuPlan",
    "Measurement",
    "Row",
    "Work",
    "describe_machine",
    "draw_scaling",
    "list_cases",
    "list_scaling",
    "measure_data",
    "measure_gpu",
    "measure_peak",
    "measure_rows",
    "measure_startup",
    "prepare",
]
