"""A CLIP from open_clip: its two towers and its tokenizer."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from torch import Tensor, nn

from cascade_clip.config import ClipConfig
from cascade_clip.encoders.weights import (
    FOLDER_SETTINGS,
    FOLDER_WEIGHTS,
    find_folder,
    fingerprint_weights,
    load_weights,
    read_state,
    resolve_weights,
)
from cascade_clip.errors import (
    MissingFileError,
    MissingPackageError,
    SettingError,
    WeightsError,
    first_lines,
)

_WITHOUT_TOKENIZER = "or set model.clip.tokenizer to false and give text embeddings as an array"
_IMAGE_SIDE = ("embed_dim", "vision_cfg", "quick_gelu")

Tokenizer = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class LoadedClip:
    """The two towers of a CLIP."""

    visual: nn.Module
    text: nn.Module | None
    tokenizer: Tokenizer | None
    fingerprint: str
    """SHA-256 over all weights, the same whatever file they came from; empty for random weights."""
    architecture: dict[str, Any] | None = None
    """open_clip model configuration of a CLIP from a folder; None where its name says it all."""
    text_encoder: str = "clip"
    """Which text encoder the settings ask for (see `build_text_encoder`)."""


def load_clip(config: ClipConfig) -> LoadedClip:
    """Build the CLIP that `config` names and load its weights, in float32 and eval mode.

    Raises:
        MissingFileError: weights that are neither on disk nor can be downloaded; the message says
            where to get and put them.
        WeightsError: unknown name or tag, weights that do not fit, a wrong hash, a QuickGELU
            mismatch.
    """
    folder = find_folder(config.name)
    architecture: dict[str, Any] | None = None
    model: Any
    if folder is not None:
        model, tokenizer, architecture = _load_folder(folder, tokenizer=config.tokenizer)
    else:
        settings, tokenizer = _model_settings(config), _find_tokenizer(config)
        # what is missing shows before seconds are spent
        path = None if config.weights == "random" else resolve_weights(config)
        model = _build_named(settings)
        if path is not None:
            load_weights(model, path, config, quick_gelu=settings.get("quick_gelu", False))
    model = model.float().eval().requires_grad_(False)
    fingerprint = ""
    if folder is not None or config.weights != "random":
        _check_finite(model, config)
        fingerprint = fingerprint_weights(model.state_dict())
    visual, model.visual = model.visual, None
    text = model if config.tokenizer else None
    return LoadedClip(visual, text, tokenizer, fingerprint, architecture, config.text_encoder)


def outline_clip(config: ClipConfig) -> LoadedClip:
    """Build the image tower on the meta device: sizes without values, and no weights are read."""
    folder = find_folder(config.name)
    settings = _model_settings(config) if folder is None else _read_settings(folder)
    image_side = {name: settings[name] for name in _IMAGE_SIDE if name in settings}
    settings = {**image_side, "text_cfg": {"layers": 1}}  # as small as can be: it is left out
    with torch.device("meta"):
        return LoadedClip(_build_named(settings).requires_grad_(False).visual, None, None, "")


def _check_finite(model: nn.Module, config: ClipConfig) -> None:
    wrong = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    if wrong:
        raise WeightsError(
            f"{config.name} holds NaN or infinity in {wrong[:3]}: the file is damaged; get it again"
        )


def _read_settings(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / FOLDER_SETTINGS).read_bytes())["model_cfg"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(
            f"cannot load the CLIP in {folder}: {FOLDER_SETTINGS} is damaged ({first_lines(error)})"
        ) from error


def _load_folder(folder: Path, *, tokenizer: bool) -> tuple[Any, Tokenizer | None, dict[str, Any]]:
    name, settings = f"local-dir:{folder}", _read_settings(folder)
    _refuse_remote_code(settings.get("text_cfg", {}), name)
    try:
        if not (folder / FOLDER_WEIGHTS[0]).is_file():
            # refuses a pickle with code in it before open_clip opens it
            read_state(folder / FOLDER_WEIGHTS[1])
        model = open_clip.create_model(name, require_pretrained=True, weights_only=True)
        return model, open_clip.get_tokenizer(name) if tokenizer else None, settings
    except ImportError as error:
        raise MissingPackageError(
            f"the CLIP in {folder} needs a missing package ({first_lines(error)}): pip install"
            f" transformers; {_WITHOUT_TOKENIZER}"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # readers of files from elsewhere raise many kinds
        raise WeightsError(f"cannot load the CLIP in {folder}: {first_lines(error)}") from error


def _refuse_remote_code(text: Mapping[str, Any], name: str) -> None:
    if "trust_remote_code" in text.get("tokenizer_kwargs", {}):
        raise WeightsError(
            f"the tokenizer of {name} asks to run code of its own (trust_remote_code); refused"
        )


def _model_settings(config: ClipConfig) -> dict[str, Any]:
    settings = config.architecture or open_clip.get_model_config(config.name)
    if settings is None:
        close = [name for name in open_clip.list_models() if name.startswith(config.name[:5])]
        raise SettingError(
            f"open_clip knows no model {config.name!r}; close names: {close[:12]} (all:"
            " open_clip.list_models())"
        )
    if "multimodal_cfg" in settings or "hf_model_name" in settings.get("text_cfg", {}):
        raise SettingError(
            f"{config.name} is no plain two-tower CLIP; choose one such as ViT-B-16-quickgelu"
        )
    return dict(settings)


def _build_named(settings: dict[str, Any]) -> Any:
    custom = settings.pop("custom_text", False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**settings)
        except Exception as error:  # of a configuration from elsewhere, open_clip raises many kinds
            raise SettingError(
                "model.clip.architecture is not an open_clip model configuration:"
                f" {first_lines(error)}"
            ) from error
    return model


def _find_tokenizer(config: ClipConfig) -> Tokenizer | None:
    if not config.tokenizer:
        return None
    text = (config.architecture or {}).get("text_cfg", {})
    _refuse_remote_code(text, config.name)
    length, name = text.get("context_length", 77), text.get("hf_tokenizer_name")
    if config.architecture is not None and not name:
        return cast(Tokenizer, open_clip.SimpleTokenizer(context_length=length))
    try:
        if config.architecture is None:
            return cast(Tokenizer, open_clip.get_tokenizer(config.name))
        found = open_clip.tokenizer.HFTokenizer(
            name, context_length=length, **text.get("tokenizer_kwargs", {})
        )
        return cast(Tokenizer, found)
    except Exception as error:  # the hub client raises many kinds
        raise MissingFileError(
            f"the tokenizer of {config.name} must be downloaded and cannot be reached"
            f" ({first_lines(error)}); use a local-dir: folder that holds it, {_WITHOUT_TOKENIZER}"
        ) from error
