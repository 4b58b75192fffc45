"""A trained model as a folder; nothing in it is ever executed.

model.safetensors   what is not the frozen CLIP (everything, with `full`)
config.yaml         all settings
checkpoint.json     vocabulary, templates, CLIP hash, protocol, versions, last evaluation
README.md           the same for people
"""

import dataclasses
import importlib.resources
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cascade_clip.checkpoints.hub import SCHEME as HUB
from cascade_clip.checkpoints.hub import download_checkpoint, parse_hub_name
from cascade_clip.checkpoints.model_card import build_card
from cascade_clip.config import ClipConfig, Config, config_from_dict, config_to_dict, read_yaml
from cascade_clip.encoders import (
    TextEncoder,
    build_text_encoder,
    fingerprint_weights,
    load_clip,
    outline_clip,
)
from cascade_clip.errors import CheckpointError, MissingFileError, OccupiedError, StorageError
from cascade_clip.files import write_folder, write_json
from cascade_clip.models import Segmenter, build_segmenter
from cascade_clip.vocabulary import Vocabulary

FORMAT = 1
PACKAGED = ("mini", "mini-last")
"""Models of the built-in dataset in this package: the cascade; one decoder on the last block."""
WEIGHTS, SETTINGS, RECORD, CARD = "model.safetensors", "config.yaml", "checkpoint.json", "README.md"
MOST_BLOCKS, LARGEST_SIDE = 128, 300_000
"""Limits of layers and of any other number in a stored CLIP (vocabularies: 256,000 words)."""
LARGEST_TEXT_TOWER = 1_000_000_000
"""Numbers in a text tower at most."""
_TOWER, _TEXT, _EMBEDDINGS = "backbone.tower.", "text.", "vocabulary.text"


@dataclass(frozen=True)
class Checkpoint:
    """A model with all that is needed to use it."""

    model: Segmenter
    text_encoder: TextEncoder | None
    config: Config
    vocabulary: Vocabulary
    templates: tuple[str, ...]
    clip_fingerprint: str
    """SHA-256 of the CLIP underneath (see `clip.fingerprint_weights`); empty for random weights."""
    clip_architecture: dict[str, Any] | None = None
    """open_clip model configuration, to rebuild a stored CLIP that came from a folder."""
    text: Tensor | None = None  # (C, D), embeddings of the vocabulary where there is no text tower
    record: dict[str, Any] = field(default_factory=dict)
    """Provenance: protocol, seed, steps, versions, last evaluation."""


def find_checkpoint(source: str | Path) -> Path:
    """Return the folder that a path, run folder, packaged model's name, or hub name means.

    Local folders come first; `hub:` before OWNER/NAME or OWNER/NAME@REVISION asks only the hub.

    Raises:
        FileNotFoundError: none of these.
        ValueError: a name on the hub whose files are damaged or not trusted.
    """
    folder = Path(source).expanduser()
    if isinstance(source, str) and source.startswith(HUB):
        return download_checkpoint(source)
    if (folder / "model" / RECORD).is_file():  # a run folder
        return folder / "model"
    if str(source) in PACKAGED and not (folder / RECORD).is_file():
        return Path(str(importlib.resources.files("cascade_clip"))) / "sandbox" / str(source)
    if not folder.is_dir():
        if isinstance(source, str) and not folder.exists() and parse_hub_name(source) is not None:
            return download_checkpoint(source)
        files = f"{WEIGHTS}, {SETTINGS} and {RECORD}, one of {', '.join(PACKAGED)}"
        raise MissingFileError(
            f"no checkpoint at {source}: give a folder that holds {files}, or OWNER/NAME on the hub"
        )
    return folder


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, *, full: bool = False, half: bool = False
) -> Path:
    """Write a checkpoint folder whole or not at all; a checkpoint of that name is replaced.

    Args:
        folder: where to.
        checkpoint: what to.
        full: store CLIP's own weights too; always done where no hash could find them again.
        half: store float16, half the size and slightly rounded.
    """
    full = full or not checkpoint.clip_fingerprint
    weights = checkpoint.model.state_dict().items()
    state = {name: one for name, one in weights if full or not name.startswith(_TOWER)}
    if full and checkpoint.text_encoder is not None:
        weights = checkpoint.text_encoder.tower.state_dict().items()
        state |= {_TEXT + name: one for name, one in weights}
    if checkpoint.text is not None:
        state[_EMBEDDINGS] = checkpoint.text
    if folder.exists() and not (folder / RECORD).is_file():
        raise OccupiedError(f"{folder} exists and is not a checkpoint; choose another place")
    kept = {
        name: (tensor.half() if half else tensor).detach().cpu().contiguous()
        for name, tensor in state.items()
    }

    def fill(new: Path) -> None:
        try:
            save_file(kept, new / WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:  # the disk is full, for example
            raise StorageError(f"{folder / WEIGHTS} cannot be written: {error}") from error
        (new / WEIGHTS).chmod(0o644)
        settings = yaml.safe_dump(config_to_dict(checkpoint.config), sort_keys=False)
        (new / SETTINGS).write_text(settings, encoding="utf-8")
        write_json(new / RECORD, _build_record(checkpoint, full=full))
        write_card(new, checkpoint)

    return write_folder(folder, fill)


def write_card(folder: Path, checkpoint: Checkpoint, repository: str = "") -> Path:
    """Write README.md of a checkpoint folder; `repository` is its OWNER/NAME on the hub."""
    config, vocabulary = checkpoint.config, checkpoint.vocabulary
    trained = sum(one.numel() for one in checkpoint.model.parameters() if one.requires_grad)
    card = build_card(config, vocabulary, read_record(folder), trained, repository)
    (folder / CARD).write_text(card, encoding="utf-8")
    return folder / CARD


def load_checkpoint(source: str | Path, clip_weights: str | None = None) -> Checkpoint:
    """Rebuild a stored model, in eval mode.

    Args:
        source: what `find_checkpoint` takes.
        clip_weights: CLIP weights to use instead of the recorded place; their hash must agree.

    Raises:
        FileNotFoundError: the folder, a file of it, or CLIP's weights are missing.
        ValueError: a damaged file, weights that do not fit (keys are named), a different CLIP.
    """
    folder = find_checkpoint(source)
    record, config = read_record(folder), read_config(folder)
    state = _read_weights(folder / WEIGHTS)
    text_names = [name for name in state if name.startswith(_TEXT)]
    text_state = {name.removeprefix(_TEXT): state.pop(name) for name in text_names}
    text = state.pop(_EMBEDDINGS, None)
    stored = record["clip_stored"]
    settings = _clip_settings(config, record, clip_weights)
    if stored:
        _check_architecture(settings.architecture or {}, folder)
    with torch.device("meta"):  # sizes are compared before memory is taken for them
        outline = build_segmenter(config.model, outline_clip(settings))
        compare_weights(outline, state, folder, without_tower=not stored)
    clip = load_clip(settings)
    if stored:
        clip = dataclasses.replace(clip, fingerprint=record["clip_fingerprint"])
    elif clip.fingerprint != record["clip_fingerprint"]:
        raise CheckpointError(
            f"{folder} was trained on another CLIP: its weights have hash"
            f" {record['clip_fingerprint'][:16]}..., those of {config.model.clip.name}"
            f" {clip_weights or config.model.clip.weights} have {clip.fingerprint[:16]}..."
        )
    encoder = build_text_encoder(clip)
    if encoder is not None and text_state:
        load_strictly(encoder.tower, text_state, f"{folder}: the text tower")
        encoder.fingerprint = fingerprint_weights(encoder.tower.state_dict())
    model = build_segmenter(config.model, clip)
    load_strictly(model, state, folder, without_tower=not stored)
    return Checkpoint(
        model.eval(),
        encoder,
        config,
        vocabulary_from_dict(record["vocabulary"], str(folder / RECORD)),
        tuple(record["templates"]),
        record["clip_fingerprint"],
        record.get("clip_architecture") or clip.architecture,
        text,
        record,
    )


def read_config(folder: Path) -> Config:
    """Return the settings in a checkpoint folder."""
    return load_config(folder / SETTINGS)


def load_config(path: Path) -> Config:
    """Return settings from a YAML file that states only what differs from the defaults."""
    return config_from_dict(Config, read_yaml(path), str(path))


def read_record(folder: Path) -> dict[str, Any]:
    """Return the provenance record of a checkpoint folder, checked."""
    missing = [name for name in (WEIGHTS, SETTINGS, RECORD) if not (folder / name).is_file()]
    if missing:
        raise MissingFileError(f"{folder} is not a whole checkpoint: {missing} missing")
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / RECORD} is damaged: {error}") from error
    wanted = {"format", "vocabulary", "templates", "clip_fingerprint", "clip_stored"}
    if not isinstance(record, dict) or not wanted <= record.keys():
        raise CheckpointError(
            f"{folder / RECORD} is not a record of this program: {sorted(wanted)} expected"
        )
    if record["format"] != FORMAT:
        told = f"has format {record['format']}, this version reads {FORMAT}; update cascade-clip"
        raise CheckpointError(f"{folder} {told}")
    return record


def load_strictly(
    model: nn.Module, state: Mapping[str, Tensor], source: object, *, without_tower: bool = False
) -> None:
    """Load weights, naming every key and shape that does not fit."""
    compare_weights(model, state, source, without_tower=without_tower)
    model.load_state_dict(dict(state), strict=False)


def compare_weights(
    model: nn.Module, state: Mapping[str, Tensor], source: object, *, without_tower: bool = False
) -> None:
    """Refuse weights that do not fit, naming every key and shape."""
    own = model.state_dict()
    expected = {name for name in own if not (without_tower and name.startswith(_TOWER))}
    missing, unexpected = sorted(expected - state.keys()), sorted(state.keys() - expected)
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(expected & state.keys())
        if state[name].shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        raise CheckpointError(
            f"{source} does not fit its settings: missing {_few(missing)}, unexpected"
            f" {_few(unexpected)}, other shapes {_few(shapes)}"
        )


def read_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results."""
    names = "cascade-clip torch torchvision open_clip_torch lightning numpy pillow safetensors"
    found = {"python": platform.python_version()}
    for name in names.split():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def vocabulary_from_dict(values: Mapping[str, Any], where: str) -> Vocabulary:
    """Return a vocabulary from the plain values of a record."""
    try:
        names, unseen = tuple(values["names"]), tuple(values["unseen"])
        synonyms = tuple(tuple(group) for group in values["synonyms"])
        colors = tuple((int(red), int(green), int(blue)) for red, green, blue in values["colors"])
        return Vocabulary(names=names, synonyms=synonyms, colors=colors, unseen=unseen)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"the vocabulary in {where} is damaged: {error}") from error


def _few(names: list[str]) -> str:
    return f"{names[:5]}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}); get it again") from error
    refuse_non_finite(state, path)
    return state


def refuse_non_finite(state: Mapping[str, Tensor], source: Path) -> None:
    """Refuse weights that contain NaN or infinity, naming them."""
    wrong = [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if wrong:
        what = f"NaN or infinite weights in {_few(wrong)}"
        raise CheckpointError(f"{source} contains {what}; download it again or retrain")


def _clip_settings(config: Config, record: Mapping[str, Any], weights: str | None) -> ClipConfig:
    """Take CLIP from the recorded or the given place, or build it when the folder stores it."""
    clip = config.model.clip
    if record["clip_stored"]:
        tokenizer, architecture = record.get("text_stored", True), record.get("clip_architecture")
        clip = dataclasses.replace(clip, weights="random", tokenizer=tokenizer)
        if architecture:
            clip = dataclasses.replace(clip, name="stored", architecture=architecture)
        return clip
    if weights is None:
        return clip
    if ":" in clip.name and Path(weights).is_dir():  # a CLIP that came from a folder
        return dataclasses.replace(clip, name=f"local-dir:{weights}")
    return dataclasses.replace(clip, weights=weights)


def _check_architecture(architecture: Mapping[str, Any], folder: Path) -> None:
    """Refuse an open_clip configuration that no CLIP has."""
    waiting: list[tuple[str, Any]] = list(architecture.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.items()
        elif isinstance(value, (list, tuple)):
            waiting += [(name, item) for item in value]
        elif isinstance(value, (int, float)):
            if not abs(value) <= (MOST_BLOCKS if "layer" in name else LARGEST_SIDE):  # or NaN
                what = f"a CLIP with {name} {value:g}"
                raise CheckpointError(f"{folder} describes {what}; no CLIP is so large")
    defaults = {"width": 512, "layers": 12, "vocab_size": 49_408}
    try:
        text = {**defaults, **architecture.get("text_cfg", {})}
        width, layers = int(text["width"]), int(text["layers"])
        size = int(text["vocab_size"]) * width + 12 * layers * width**2
    except (TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} does not describe a CLIP: {error}") from error
    if size > LARGEST_TEXT_TOWER:
        what = f"a text tower of {size:,} numbers"
        raise CheckpointError(f"{folder} describes {what}; no CLIP is so large")


def _build_record(checkpoint: Checkpoint, *, full: bool) -> dict[str, Any]:
    vocabulary = checkpoint.vocabulary
    return {
        **checkpoint.record,
        "format": FORMAT,
        "clip_fingerprint": checkpoint.clip_fingerprint,
        "clip_stored": full,
        "clip_architecture": checkpoint.clip_architecture if full else None,
        "text_stored": full and checkpoint.text_encoder is not None,
        "templates": list(checkpoint.templates),
        "vocabulary": {
            "names": list(vocabulary.names),
            "synonyms": [list(group) for group in vocabulary.synonyms],
            "colors": [list(color) for color in vocabulary.colors],
            "unseen": list(vocabulary.unseen),
        },
        "saved": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": read_versions(),
    }
