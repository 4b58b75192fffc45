"""Scores of a model on labelled images.

In: a predictor and a labelled dataset. Out: S, U and hIoU with what they rest on, comparisons of
two models, a calibration, a threshold, and a page to look at.
"""

from cascade_clip.evaluation.bootstrap import (
    Difference,
    Tallies,
    collect_tallies,
    compare_paired,
    figures,
)
from cascade_clip.evaluation.calibration import VALUES, CalibrationSweep, sweep_calibration
from cascade_clip.evaluation.evaluator import (
    Origin,
    Report,
    choose_calibration,
    default_calibration,
    evaluate,
    evaluation_record,
    read_evaluation,
    summarise,
)
from cascade_clip.evaluation.fingerprints import hash_checkpoint, hash_dataset
from cascade_clip.evaluation.metrics import mean_iou
from cascade_clip.evaluation.pages import (
    embed,
    embed_figure,
    embed_image,
    render,
    summary_cards,
)
from cascade_clip.evaluation.ranks import Ranks, join_ranks
from cascade_clip.evaluation.report import build_page, write_report
from cascade_clip.evaluation.report_diff import (
    Comparison,
    Row,
    check_same_data,
    compare,
    compare_figures,
    read_report,
)
from cascade_clip.evaluation.threshold import ThresholdChoice, choose_threshold
