"""Evaluate a predictor on a labelled dataset; the report states its assumptions (section 8)."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cascade_clip.checkpoints import (
    Checkpoint,
    find_checkpoint,
    read_config,
    read_record,
    read_versions,
)
from cascade_clip.config import DataConfig, InferenceConfig, config_from_dict, config_to_dict
from cascade_clip.data import LabelledFiles, LabelledImages, SandboxScenes
from cascade_clip.errors import DataError
from cascade_clip.evaluation.examples import ExampleImages, ImageRecord, image_metrics
from cascade_clip.evaluation.fingerprints import hash_dataset
from cascade_clip.evaluation.metrics import ConfusionMatrix, Metrics, compute_metrics
from cascade_clip.evaluation.ranks import Ranks
from cascade_clip.files import write_whole
from cascade_clip.inference import BoundClasses, Predictor
from cascade_clip.results import SUMMARY_METRICS, UNLABELLED
from cascade_clip.vocabulary import Color, Vocabulary

ALONE = Ranks()


@dataclass(frozen=True)
class Origin:
    """Where model and data of a report come from, as far as whoever asked for it says."""

    checkpoint: str = ""
    """The checkpoint as it was named."""
    checkpoint_sha256: str = ""
    """Hash of its weight file."""
    data: DataConfig | None = None
    """Settings of the data set."""


UNKNOWN_ORIGIN = Origin()


@dataclass(frozen=True, eq=False)
class Report:
    """Scores of one model on one data set, with what they rest on."""

    scores: Metrics
    images: int
    calibration: float
    assumptions: tuple[str, ...]
    counts: NDArray[np.int64]
    """Pixels by true class (row) and predicted class, (C, C + 1); last column: no prediction."""
    colors: tuple[Color, ...]
    inference: dict[str, Any]
    """Settings of inference: window, stride, precision and the like, and the prompt templates."""
    data_sha256: str
    """See `fingerprints.hash_dataset`; empty for data sets without files."""
    clip_sha256: str = ""
    """Hash of the CLIP underneath, see `clip.fingerprint_weights`; empty for random weights."""
    origin: Origin = UNKNOWN_ORIGIN
    worst: tuple[ImageRecord, ...] = ()
    """The images with the lowest mIoU over their present classes, lowest first."""
    best: tuple[ImageRecord, ...] = ()
    """Those with the highest, highest first; none is among `worst`."""

    @property
    def hashes(self) -> dict[str, str]:
        """The known hashes, by what they are of."""
        weights = self.origin.checkpoint_sha256
        found = {"the data set": self.data_sha256, "the checkpoint's weights": weights}
        found["CLIP"] = self.clip_sha256
        return {label: value for label, value in found.items() if value}

    def to_json(self) -> dict[str, Any]:
        """Plain values; full precision."""
        origin = self.origin
        settings = None if origin.data is None else config_to_dict(origin.data)
        weights = {"sha256": origin.checkpoint_sha256, "clip_sha256": self.clip_sha256}
        return {
            "images": self.images,
            "calibration": self.calibration,
            "assumptions": list(self.assumptions),
            "summary": summarise(self.scores),
            **self.scores.to_json(),
            "checkpoint": {"name": origin.checkpoint, **weights},
            "data": {"settings": settings, "sha256": self.data_sha256},
            "inference": self.inference,
            "worst": [record.to_json() for record in self.worst],
            "best": [record.to_json() for record in self.best],
            "versions": read_versions(),
            "confusion": self.counts.tolist(),
        }

    def save(self, path: Path) -> Path:
        """Write the report as JSON, one row of the confusion matrix a line."""
        values = self.to_json()
        rows = ",\n".join(f"  {json.dumps(row)}" for row in values.pop("confusion"))
        text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
        return write_whole(path, f'{text[:-2]},\n "confusion": [\n{rows}\n ]\n}}\n')


def summarise(found: Metrics) -> dict[str, float | None]:
    """The five figures that papers print, in 0..1."""
    return {metric.key: getattr(found, metric.key) for metric in SUMMARY_METRICS}


def evaluation_record(report: Report, config: DataConfig) -> dict[str, Any]:
    """What a checkpoint keeps of its evaluation, so that `cascade-clip verify` can repeat it."""
    return {
        "data": config_to_dict(config),
        "data_sha256": report.data_sha256,
        "images": report.images,
        "calibration": report.calibration,
        "summary": summarise(report.scores),
    }


@dataclass(frozen=True)
class StoredEvaluation:
    """What a checkpoint keeps of its evaluation."""

    data: DataConfig
    summary: dict[str, float | None]
    calibration: float | None
    """None where it was not stored: what the protocol calls for."""
    data_sha256: str
    """Empty where it was not stored."""


def read_evaluation(source: str | Path) -> StoredEvaluation:
    """The evaluation in the record of a checkpoint folder, a run folder or a packaged model.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: it stores no figures, or does not say of which data.
    """
    folder = find_checkpoint(source)
    stored = read_record(folder).get("evaluation")
    if not isinstance(stored, dict) or not isinstance(stored.get("summary"), dict):
        text = f"{source} stores no figures to verify: it was not evaluated after training"
        raise DataError(f"{text} (setting `evaluation`)")
    where = f"the evaluation of {source}"
    data = stored.get("data")
    if isinstance(data, dict):
        config: DataConfig | None = config_from_dict(DataConfig, data, where)
    else:
        config = read_config(folder).evaluation
    if config is None:
        raise DataError(f"{where} does not say on which data its figures rest")
    summary, digest = stored["summary"], str(stored.get("data_sha256", ""))
    return StoredEvaluation(config, summary, stored.get("calibration"), digest)


def training_protocol(checkpoint: Checkpoint) -> str:
    """inductive, transductive or supervised."""
    return str(checkpoint.record.get("protocol", checkpoint.config.train.protocol))


def default_calibration(checkpoint: Checkpoint) -> float:
    """Return the inference setting after inductive training, else 0."""
    inductive = training_protocol(checkpoint) == "inductive"
    return checkpoint.config.inference.calibration if inductive else 0.0


def evaluate(
    predictor: Predictor,
    dataset: LabelledImages,
    calibration: float | None = None,
    text: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
    keep: int = 0,
    origin: Origin = UNKNOWN_ORIGIN,
    ranks: Ranks = ALONE,
) -> Report:
    """Segment every image of a data set with its own class names and compare with its labels.

    Args:
        predictor: the model.
        dataset: images, labels and class names; all names compete in the argmax. Where it names no
            unseen class, the model's split holds.
        calibration: subtracted from scores of seen classes; by default what the training protocol
            calls for, and 0 on a data set with other class names than the training's.
        text: text embeddings (C, D) to use instead of the text tower.
        progress: called with (done, total) after every image of this process.
        keep: how many of the worst and of the best images the report holds.
        origin: what the report says about where model and data come from.
        ranks: the processes that share the images; each returns the report of all.
    """
    vocabulary, bound = bind_dataset(predictor, dataset, calibration, text)
    matrix = ConfusionMatrix(len(vocabulary.names), predictor.device)
    examples = ExampleImages(keep)
    for index in ranks.share(len(dataset), progress):
        matrix += count_image(predictor, bound, dataset, index, examples)
    matrix.counts = ranks.sum(matrix.counts)
    for records in ranks.gather(examples.records):
        examples.extend(records)
    found = compute_metrics(matrix, vocabulary.names, vocabulary.seen_mask)
    templates = predictor.checkpoint.templates
    return Report(
        scores=found,
        images=len(dataset),
        calibration=bound.calibration,
        assumptions=_assumptions(found, bound, predictor, dataset),
        counts=matrix.counts.cpu().numpy(),
        colors=vocabulary.colors,
        inference=config_to_dict(predictor.settings) | {"templates": list(templates)},
        data_sha256=hash_dataset(dataset),
        clip_sha256=predictor.checkpoint.clip_fingerprint,
        origin=origin,
        worst=examples.worst,
        best=examples.best,
    )


def count_image(
    predictor: Predictor,
    bound: BoundClasses,
    dataset: LabelledImages,
    index: int,
    examples: ExampleImages,
) -> ConfusionMatrix:
    """The matrix of one image, on the model's device; the image is offered to the examples."""
    sample = dataset.sample(index)
    single = ConfusionMatrix(len(dataset.vocabulary), predictor.device)
    labels = predictor.label_map(sample.image, bound).labels  # (H, W)
    # a background that is no class of the data set
    labels = labels.where(labels < single.classes, UNLABELLED)
    single.update(labels, sample.labels.to(predictor.device))
    metrics = image_metrics(single) if examples.keep else None
    if metrics is not None and examples.wants(index, metrics.miou):
        examples.add(ImageRecord.make(index, sample, labels, metrics))
    return single


def bind_dataset(
    predictor: Predictor, dataset: LabelledImages, calibration: float | None, text: Tensor | None
) -> tuple[Vocabulary, BoundClasses]:
    """The class names of a data set with the split that holds, and bound to the model."""
    vocabulary = dataset.vocabulary
    # CLIP alone has held nothing out
    trained = predictor.checkpoint.record.get("protocol") != "training-free"
    if not vocabulary.unseen and vocabulary.inherits_split and trained:
        held_out = _folded(predictor.vocabulary.unseen)
        unseen = [name for name in vocabulary.names if name.casefold() in held_out]
        vocabulary = vocabulary.with_unseen(unseen)
    calibration = choose_calibration(predictor, vocabulary, calibration)
    return vocabulary, predictor.bind(vocabulary, calibration, text)


def choose_calibration(
    predictor: Predictor, vocabulary: Vocabulary, calibration: float | None
) -> float:
    """Return the given calibration, else what the training calls for on its own class names.

    It is 0 for other class names: across datasets, the published metrics count all as seen.
    """
    if calibration is not None:
        return calibration
    same_names = _folded(vocabulary.names) == _folded(predictor.vocabulary.names)
    return default_calibration(predictor.checkpoint) if same_names else 0.0


def _folded(names: Sequence[str]) -> set[str]:
    """Names as they are compared: upper and lower case are the same."""
    return {name.casefold() for name in names}


def _assumptions(
    found: Metrics, bound: BoundClasses, predictor: Predictor, dataset: LabelledImages
) -> tuple[str, ...]:
    unseen = [name for name, seen in zip(found.names, found.seen, strict=True) if not seen]
    protocol = training_protocol(predictor.checkpoint)
    trained = predictor.vocabulary.names if protocol == "supervised" else predictor.vocabulary.seen
    known = [name for name in unseen if name.casefold() in _folded(trained)]
    lines = [
        f"all {len(found.names)} class names compete in the argmax",
        f"{len(unseen)} of them count as unseen{': ' + _some(unseen) if unseen else ''}",
    ]
    if known:
        text = "of these unseen classes had masks in the model's own training"
        lines.append(f"{len(known)} {text}: {_some(known)}")
    if bound.background == "none":
        lines.append("no background policy: every pixel gets a class name")
    else:
        text = "a labelled pixel that gets no class of the data set is an error"
        lines.append(f"background policy: {bound.background}; {text}")
    shift = f"{bound.calibration:g} subtracted from the scores of seen classes"
    if bound.calibration and not bound.seen.any():
        shift += ": of none, as the model was trained on none of these names"
    return (
        *lines,
        shift,
        "one confusion matrix over all images; ignored pixels do not count; left out of the means"
        f" as absent from both prediction and labels: {_some(found.absent) or 'none'}",
        _describe_images(dataset),
        f"training protocol of the model: {protocol}",
        _describe_inference(predictor.settings),
    )


def _describe_images(dataset: LabelledImages) -> str:
    count = len(dataset)
    if isinstance(dataset, SandboxScenes):
        return f"{count} scenes of the built-in world, seed {dataset.seed}"
    total = dataset.total if isinstance(dataset, LabelledFiles) else count
    limited = f"the first {count} of {total} images, as a limit was set"
    return f"all {count} images" if count == total else limited


def _some(names: Sequence[str]) -> str:
    """At most 20 names in a row."""
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _describe_inference(settings: InferenceConfig) -> str:
    resized = f"short side resized to {settings.window} pixels"
    parts = [resized if settings.resize else "images at their own size"]
    parts.append(f"windows of {settings.window} pixels every {settings.stride}")
    if settings.combine != "sum":
        parts.append(f"stages combined by {settings.combine}")
    if settings.upsampler != "bilinear":
        guide = f"radius {settings.guide_radius}, epsilon {settings.guide_epsilon:g}"
        parts.append(f"{settings.upsampler} upsampling ({guide})")
    views = [f"scales {', '.join(f'{scale:g}' for scale in settings.scales)}"]
    views = ([] if settings.scales == (1.0,) else views) + ["mirrored too"] * settings.flip
    augmentation = f": {', '.join(views)}" if views else ""
    return (
        f"{', '.join(parts)}, {settings.precision};"
        f" {'' if views else 'no '}test-time augmentation{augmentation}"
    )
