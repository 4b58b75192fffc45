"""From settings to a trained checkpoint.

In: a `Config` and a run folder. Out: the checkpoint `OUT/model`, and everything about the run.
Lightning is the engine.
"""

from cascade_clip.training.dry_run import describe_dry_run, dry_run
from cascade_clip.training.engine import stopping_at_once
from cascade_clip.training.fit import fit, prepare
from cascade_clip.training.launch import is_first_process, watch_parent
from cascade_clip.training.prediction_previews import PreviewWriter
from cascade_clip.training.progress import StepEvents, TrainingProgress, quiet_engine, read_metrics
from cascade_clip.training.protocols import TrainingProtocol
from cascade_clip.training.provenance import command_line
from cascade_clip.training.run_log import LOG_FILE, RunLog, RunScreen
from cascade_clip.training.run_report import EVALUATION, write_run_report
from cascade_clip.training.seed_runs import SeedRuns, parse_seeds, seeds_line, seeds_table
from cascade_clip.training.wandb_run import WandbRun
