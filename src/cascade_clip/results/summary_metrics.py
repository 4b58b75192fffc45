"""The metrics that sum up an evaluation: keys in JSON, names in papers, labels in tables."""

from typing import NamedTuple


class SummaryMetric(NamedTuple):
    """One metric."""

    key: str
    """In every JSON file."""
    short: str
    """In papers."""
    label: str
    """In tables and cards."""


SUMMARY_METRICS = (
    SummaryMetric("seen_miou", "S", "S: mIoU of seen classes"),
    SummaryMetric("unseen_miou", "U", "U: mIoU of unseen classes"),
    SummaryMetric("hiou", "hIoU", "hIoU"),
    SummaryMetric("miou", "mIoU", "mIoU"),
    SummaryMetric("pixel_accuracy", "pAcc", "pixel accuracy"),
)
PAIRED_METRICS = tuple(metric.short for metric in SUMMARY_METRICS[:3])
"""Those whose differences are tested: S, U and hIoU."""
