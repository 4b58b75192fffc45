"""The paper's tables and figures, and the questions it left open, as runs that one command makes
and reports."""

from cascade_clip.research.reproduction.jobs import (
    Failure,
    Job,
    estimate_seconds,
    plan_jobs,
    run_jobs,
)
from cascade_clip.research.reproduction.page import write_page
from cascade_clip.research.reproduction.runs import is_trained
from cascade_clip.research.reproduction.sections import build_section
from cascade_clip.research.reproduction.settings import World, load_world
from cascade_clip.research.reproduction.tables import Table

__all__ = [
    "Failure",
    "Job",
    "Table",
    "World",
    "build_section",
    "estimate_seconds",
    "is_trained",
    "load_world",
    "plan_jobs",
    "run_jobs",
    "write_page",
]
