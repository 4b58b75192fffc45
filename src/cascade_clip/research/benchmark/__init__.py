"""Speed and memory of this machine, against a plain implementation of the same model."""

from cascade_clip.research.benchmark.cases import (
    Variant,
    draw_scaling,
    list_cases,
    list_scaling,
    measure_peak,
    measure_variants,
)
from cascade_clip.research.benchmark.gpu import GpuPlan, measure_gpu
from cascade_clip.research.benchmark.machine import (
    Measurement,
    describe_machine,
    measure_data,
    measure_startup,
)
from cascade_clip.research.benchmark.work import Work, prepare
