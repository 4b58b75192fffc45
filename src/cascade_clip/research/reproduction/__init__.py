"""The paper's tables, figures and open questions, as runs that one command makes and reports."""

from cascade_clip.research.reproduction.entries import Entry, find_entries
from cascade_clip.research.reproduction.jobs import (
    Failure,
    Job,
    estimate_seconds,
    plan_jobs,
    run_jobs,
)
from cascade_clip.research.reproduction.page import write_page
from cascade_clip.research.reproduction.runs import Reproduction, is_trained
from cascade_clip.research.reproduction.sections import Section, build_section
from cascade_clip.research.reproduction.settings import ReproductionSettings, load_settings
from cascade_clip.research.reproduction.tables import Table
