"""Evaluation: the predictor over a labelled data set, to a report that states its assumptions (method section 8)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cascade_clip.checkpoint import Checkpoint
from cascade_clip.data import LabelledImages
from cascade_clip.metrics import ConfusionMatrix, Scores, scores
from cascade_clip.predictor import Predictor


@dataclass(frozen=True)
class Report:
    """Scores of one model on one data set, with what they rest on."""

    scores: Scores
    images: int
    calibration: float
    assumptions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; full precision."""
        return {
            "images": self.images,
            "calibration": self.calibration,
            "assumptions": list(self.assumptions),
            "summary": summarise(self.scores),
            **self.scores.to_json(),
        }

    def save(self, path: Path) -> Path:
        """Write the report as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path


def summarise(found: Scores) -> dict[str, float | None]:
    """The five figures that papers print, in 0..1."""
    return {
        "seen_miou": found.seen_miou,
        "unseen_miou": found.unseen_miou,
        "hiou": found.hiou,
        "miou": found.miou,
        "pixel_accuracy": found.pixel_accuracy,
    }


def default_calibration(checkpoint: Checkpoint) -> float:
    """What is subtracted from seen classes: the inference setting after inductive training, else 0."""
    protocol = checkpoint.record.get("protocol", checkpoint.config.train.protocol)
    return checkpoint.config.inference.calibration if protocol == "inductive" else 0.0


def evaluate(
    predictor: Predictor,
    dataset: LabelledImages,
    calibration: float | None = None,
    text: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Segment every image of a data set with its own class names and compare with its labels.

    Args:
        predictor: the model.
        dataset: images, labels and class names; all names compete in the argmax. Where it names no unseen class, the model's split holds.
        calibration: subtracted from scores of seen classes; by default what the training protocol calls for, and 0 on a data set with
            other class names than the training's.
        text: text embeddings (C, D) to use instead of the text tower.
        progress: called with (done, total) after every image.
    """
    vocabulary, trained = dataset.vocabulary, predictor.vocabulary
    same_names = {name.casefold() for name in vocabulary.names} == {name.casefold() for name in trained.names}
    if not vocabulary.unseen:
        vocabulary = vocabulary.with_unseen(name for name in trained.unseen if name in vocabulary.names)
    if calibration is not None:
        wanted = calibration
    else:  # across data sets the published figures count every class as seen
        wanted = default_calibration(predictor.checkpoint) if same_names else 0.0
    target = predictor.bind(vocabulary, wanted, text)
    matrix = ConfusionMatrix(len(vocabulary.names), predictor.device)
    for index in range(len(dataset)):
        sample = dataset.sample(index)
        labels = predictor.label_map(sample.image, target).labels  # (H, W)
        matrix.update(labels, sample.labels.to(predictor.device))
        if progress is not None:
            progress(index + 1, len(dataset))
    found = scores(matrix, vocabulary.names, vocabulary.seen_mask)
    return Report(found, len(dataset), target.calibration, _assumptions(found, target.calibration))


def _assumptions(found: Scores, calibration: float) -> tuple[str, ...]:
    unseen = [name for name, seen in zip(found.names, found.seen, strict=True) if not seen]
    absent = f"left out of the means: {', '.join(found.absent)}" if found.absent else "none is absent from both prediction and labels"
    return (
        f"all {len(found.names)} class names compete in the argmax",
        f"{len(unseen)} of them count as unseen{': ' + ', '.join(unseen[:20]) if unseen else ''}",
        "no background policy: every pixel gets a class name",
        f"{calibration:g} subtracted from the scores of seen classes",
        f"one confusion matrix over all images; ignored pixels do not count; classes: {absent}",
    )
