"""The model card of a checkpoint from its record: use, method, licences, provenance, results."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cascade_clip.config import ClipConfig, Config, DataConfig, names_of
from cascade_clip.data import find_dataset
from cascade_clip.results import SUMMARY_METRICS
from cascade_clip.vocabulary import Vocabulary

_CREATIVE = ("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0")
KNOWN_LICENCES = ("apache-2.0", "mit", "bsd-3-clause", *_CREATIVE)
"""Licences that the hub knows by identifier; any other is `other`."""
NO_LICENCE = "as the CLIP weights and the training data; none is granted here"
_LABELS = {metric.key: metric.label for metric in SUMMARY_METRICS}


def build_card(
    config: Config,
    vocabulary: Vocabulary,
    record: Mapping[str, Any],
    trained: int,
    repository: str = "",
) -> str:
    """README.md of a checkpoint, with the metadata that the hub reads at its head.

    Args:
        config: settings of the model.
        vocabulary: class names that it was trained with.
        record: what checkpoint.json holds.
        trained: number of trained parameters.
        repository: OWNER/NAME on the hub; empty for a folder.
    """
    from jinja2 import ChainableUndefined, Environment, PackageLoader

    clip, results = config.model.clip, _summary(record)
    evaluation = record.get("evaluation") or {}
    measured = [_data_title(record)[0]]
    if results and evaluation.get("images"):
        measured.append(f"{evaluation['images']} images")
    if results and evaluation.get("calibration") is not None:
        measured.append(f"calibration {evaluation['calibration']:g}")
    page = Environment(
        loader=PackageLoader("cascade_clip.checkpoints"),
        undefined=ChainableUndefined,  # records of older versions hold less
        autoescape=False,  # it is Markdown
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    page.filters |= {"some": _some, "cell": lambda text: text.replace("|", "\\|")}
    return page.get_template("model_card.md").render(
        metadata=_metadata(config, record, repository),
        title=repository.partition("/")[2],
        source=repository or "FOLDER",
        names=vocabulary.names,
        unseen=vocabulary.unseen,
        record=record,
        clip=_clip_name(clip),
        stages=[list(stage) for stage in config.model.stages],
        trained=trained,
        train=config.train,
        licences=licences(config, record),
        measured=measured,
        results=[(_LABELS[key], value) for key, value in results.items()],
    )


def licences(config: Config, record: Mapping[str, Any]) -> dict[str, str]:
    """Return the licence of every part of a model, in words."""
    clip, away = config.model.clip, "not stored here, fetched from its source"
    stored = "stored here" if record.get("clip_stored") else away
    return {
        f"CLIP weights ({_clip_name(clip)}; {stored})": _clip_licence(clip),
        "trained weights": str(record.get("licence", NO_LICENCE)),
        "training data": _data_licence(config.data, record),
    }


def licence_identifier(licence: str) -> str:
    """Return the hub's identifier of a licence, `other` for what it does not know."""
    identifier = re.sub(r"[\s_]+", "-", licence.strip().lower())
    return identifier if identifier in KNOWN_LICENCES else "other"


def _metadata(config: Config, record: Mapping[str, Any], repository: str) -> str:
    """The YAML at the head of the card."""
    from huggingface_hub import EvalResult, ModelCardData

    identifier = licence_identifier(str(record.get("licence", "")))
    clip, found = config.model.clip.name, _summary(record)
    title, slug = _data_title(record)
    results = []
    for key, value in found.items():
        kind, label = "mean_iou" if key.endswith("iou") else "accuracy", _LABELS[key]
        result = EvalResult("image-segmentation", slug, title, kind, value, metric_name=label)
        results.append(result)
    data = ModelCardData(
        license=identifier,
        license_name="see-the-table-below" if identifier == "other" else None,
        library_name="cascade-clip",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "zero-shot", "open-vocabulary", "clip", "cascade-clip"],
        base_model=clip.removeprefix("hf-hub:") if clip.startswith("hf-hub:") else None,
        model_name=repository.partition("/")[2] or "cascade-clip",
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _summary(record: Mapping[str, Any]) -> dict[str, float]:
    """The stored metrics that are numbers."""
    evaluation = record.get("evaluation")
    summary = evaluation.get("summary", {}) if isinstance(evaluation, dict) else {}
    numbers = [key for key in _LABELS if isinstance(summary.get(key), (int, float))]
    return {key: float(summary[key]) for key in numbers}


def _data_title(record: Mapping[str, Any]) -> tuple[str, str]:
    """The evaluation data in words, and as an identifier."""
    data = (record.get("evaluation") or {}).get("data", "")
    if not isinstance(data, dict):
        return str(data) or "unnamed data", re.split(r"\W", str(data))[0] or "unnamed"
    name = str(data.get("name", "folder"))
    if name == "folder":
        return "a folder of labelled images", name
    return f"{name}{', ' + data['split'] if data.get('split') else ''}", name


def _clip_name(clip: ClipConfig) -> str:
    return clip.name if ":" in clip.name else f"{clip.name}, weights {clip.weights}"


def _clip_licence(clip: ClipConfig) -> str:
    if clip.name.startswith("package:"):
        return "Apache-2.0 (this project's own, for drawn scenes)"
    if clip.name.startswith("hf-hub:"):
        return f"see https://huggingface.co/{clip.name.removeprefix('hf-hub:').partition('@')[0]}"
    if clip.weights == "openai" and ":" not in clip.name:
        return "MIT (OpenAI)"
    return "see the source of these weights"


def _data_licence(data: DataConfig, record: Mapping[str, Any]) -> str:
    if record.get("protocol") == "training-free":
        return "none was used"
    name = data.name if data.name != "folder" else data.classes
    if name == "sandbox":
        return "drawn by cascade-clip itself, Apache-2.0"
    if name in names_of("datasets"):
        return find_dataset(name).licence
    return "own images and masks; see who published this model"


def _some(names: Sequence[str], count: int = 60) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
