"""CLIP itself, from open_clip: towers, tokenizer and weights, with clear errors when something is
missing.

Weights come from a tag of open_clip (downloaded with its hash), a folder in open_clip's format
(local, on the hub, or inside this package), or a local file. Nothing is downloaded without a log
line saying what, how large and under which licence.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.resources
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cascade_clip.config import ClipConfig
from cascade_clip.errors import MissingFileError, MissingPackageError, SettingError, WeightsError
from cascade_clip.files import file_sha256, read_pickle

logger = logging.getLogger(__name__)

Tokenizer = Callable[[list[str]], Tensor]

OPENAI_SIZES = {  # megabytes, rounded; from the published file list
    "ViT-B-32.pt": 354,
    "ViT-B-16.pt": 351,
    "ViT-L-14.pt": 933,
    "ViT-L-14-336px.pt": 934,
}
_SETTINGS_IN_ARCHIVE = ("input_resolution", "context_length", "vocab_size")
_FOLDER_FILES = (
    "open_clip_config.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)


@dataclass(frozen=True)
class LoadedClip:
    """The two towers of a CLIP."""

    visual: nn.Module
    text: nn.Module | None
    tokenizer: Tokenizer | None
    fingerprint: str
    """SHA-256 over all weights, the same whatever file they came from; empty for random weights."""
    architecture: dict[str, Any] | None = None
    """open_clip model configuration of a CLIP that came from a folder; None where its name says it
    all."""


def load_clip(config: ClipConfig) -> LoadedClip:
    """Build the CLIP that `config` names and load its weights, in float32 and eval mode.

    Raises:
        FileNotFoundError: weights are neither here nor to be had; the message says where to get and
            put them.
        ValueError: unknown name or tag, weights that do not fit, a wrong hash, a QuickGELU
            mismatch.
    """
    folder = _find_folder(config.name)
    architecture: dict[str, Any] | None = None
    model: Any
    tokenizer: Tokenizer | None
    if folder is not None:
        model, tokenizer, architecture = _load_folder(folder, tokenizer=config.tokenizer)
    else:
        settings, tokenizer = _model_settings(config), _find_tokenizer(config)
        # what is missing shows before seconds are spent
        path = None if config.weights == "random" else resolve_weights(config)
        model = _build_named(settings)
        if path is not None:
            load_weights(model, path, config)
    model = model.float().eval().requires_grad_(False)
    known = folder is not None or config.weights != "random"
    if known:
        _check_numbers(model, config)
    fingerprint = fingerprint_weights(model.state_dict()) if known else ""
    visual = model.visual
    model.visual = None
    if not config.tokenizer:
        return LoadedClip(visual, None, None, fingerprint, architecture)
    return LoadedClip(visual, model, tokenizer, fingerprint, architecture)


def _check_numbers(model: nn.Module, config: ClipConfig) -> None:
    wrong = [
        name
        for name, parameter in model.named_parameters()
        if not bool(torch.isfinite(parameter).all())
    ]
    if wrong:
        raise WeightsError(
            f"the weights of {config.name} hold values that are no numbers, in {wrong[:3]}: the"
            " file is damaged; get it again"
        )


def fingerprint_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values of a state dict, in order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where downloaded weights lie: CASCADE_CLIP_CACHE, or open_clip's own ~/.cache/clip."""
    return Path(os.environ.get("CASCADE_CLIP_CACHE") or Path.home() / ".cache" / "clip")


# Folders in open_clip's format
# --------------------------------------------------------------------------------------


def _find_folder(name: str) -> Path | None:
    """The folder that a name with a scheme stands for, downloaded when it lies on the hub; None for
    a plain model name."""
    scheme, _, rest = name.partition(":")
    finders: dict[str, Callable[[str], Path]] = {
        "local-dir": Path,
        "hf-hub": _download_folder,
        "package": _packaged_folder,
    }
    if not rest or scheme not in finders:
        return None
    folder = finders[scheme](rest).expanduser()
    if not (folder / "open_clip_config.json").is_file():
        raise MissingFileError(
            f"{folder} is not a folder in open_clip's format: it holds no open_clip_config.json"
        )
    if not any((folder / file).is_file() for file in _FOLDER_FILES[1:]):
        raise MissingFileError(
            f"{folder} holds no weights; expected one of {list(_FOLDER_FILES[1:])}"
        )
    return folder


def _packaged_folder(name: str) -> Path:
    folder = Path(str(importlib.resources.files("cascade_clip"))) / "sandbox" / name
    if not folder.is_dir():
        raise MissingFileError(f"this package carries no CLIP named {name!r}")
    return folder


def _download_folder(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    owner_name, _, revision = repository.partition("@")
    logger.info(
        "CLIP %s: looking for it in the hub cache, else downloading it (size and licence: its model"
        " page)",
        owner_name,
    )
    wanted = [*_FOLDER_FILES, "*tokenizer*", "*.txt", "special_tokens_map.json"]
    try:
        return Path(snapshot_download(owner_name, revision=revision or None, allow_patterns=wanted))
    except HFValidationError as error:
        raise SettingError(
            f"hf-hub:{repository} is not a repository name (OWNER/NAME or OWNER/NAME@REVISION)"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise MissingFileError(
            f"cannot reach the hub for {owner_name} ({_first_line(error)}). On a machine with a"
            f" connection run `hf download {owner_name} --local-dir FOLDER`, copy FOLDER here and"
            " set model.clip.name to local-dir:FOLDER; HF_ENDPOINT names a mirror"
        ) from error


def _load_folder(folder: Path, *, tokenizer: bool) -> tuple[Any, Tokenizer | None, dict[str, Any]]:
    try:
        settings = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))[
            "model_cfg"
        ]
        if "trust_remote_code" in settings.get("text_cfg", {}).get("tokenizer_kwargs", {}):
            raise WeightsError("its tokenizer asks to run code of its own (trust_remote_code)")
        if not (folder / _FOLDER_FILES[1]).is_file():
            # refuses a pickle with code in it before open_clip opens it
            _read_state(folder / _FOLDER_FILES[2])
        model = open_clip.create_model(
            f"local-dir:{folder}", require_pretrained=True, weights_only=True
        )
        found = (
            cast(Tokenizer, open_clip.get_tokenizer(f"local-dir:{folder}")) if tokenizer else None
        )
        return model, found, settings
    except ImportError as error:
        raise MissingPackageError(
            f"the CLIP in {folder} needs a package that is missing ({_first_line(error)}): pip"
            " install transformers; or set model.clip.tokenizer to false and give text embeddings"
            " as an array"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # readers of files from elsewhere raise many kinds
        raise WeightsError(f"cannot load the CLIP in {folder}: {_first_line(error)}") from error


# Models by name
# --------------------------------------------------------------------------------------------------


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
            f"{config.name} is not a plain two-tower CLIP; choose a ViT model such as"
            " ViT-B-16-quickgelu"
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
                f" {_first_line(error)}"
            ) from error
    return model


def _find_tokenizer(config: ClipConfig) -> Tokenizer | None:
    if not config.tokenizer:
        return None
    text = (config.architecture or {}).get("text_cfg", {})
    if "trust_remote_code" in text.get("tokenizer_kwargs", {}):
        raise WeightsError(
            f"the tokenizer of {config.name} asks to run code of its own (trust_remote_code);"
            " refused"
        )
    if config.architecture is not None and not text.get("hf_tokenizer_name"):
        return cast(
            Tokenizer, open_clip.SimpleTokenizer(context_length=text.get("context_length", 77))
        )
    try:
        if config.architecture is not None:
            arguments = text.get("tokenizer_kwargs", {})
            name, length = text["hf_tokenizer_name"], text.get("context_length", 77)
            return cast(
                Tokenizer, open_clip.tokenizer.HFTokenizer(name, context_length=length, **arguments)
            )
        return cast(Tokenizer, open_clip.get_tokenizer(config.name))
    except Exception as error:  # the hub client raises many kinds
        raise MissingFileError(
            f"the tokenizer of {config.name} must be downloaded and cannot be reached"
            f" ({_first_line(error)}); use a local-dir: folder that holds it, or set"
            " model.clip.tokenizer to false and give text embeddings as an array"
        ) from error


def resolve_weights(config: ClipConfig) -> Path:
    """The local file that holds the weights, downloaded with its hash when `config.weights` is a
    tag of open_clip."""
    if config.architecture is None and open_clip.get_pretrained_cfg(config.name, config.weights):
        return _resolve_tag(config.name, config.weights)
    path = Path(config.weights).expanduser()
    if path.is_file():
        return path
    tags = (
        open_clip.list_pretrained_tags_by_model(config.name) if config.architecture is None else []
    )
    raise MissingFileError(
        f"model.clip.weights {config.weights!r} is neither a file nor one of {config.name}'s tags"
        f" {tags} nor `random`"
    )


def _resolve_tag(name: str, tag: str) -> Path:
    entry = open_clip.get_pretrained_cfg(name, tag)
    wants, has = (
        bool(entry.get("quick_gelu", False)),
        bool((open_clip.get_model_config(name) or {}).get("quick_gelu", False)),
    )
    if wants != has:
        fitting = f"{name}-quickgelu" if wants else name.removesuffix("-quickgelu")
        raise SettingError(
            f"weights {tag!r} were trained with {'QuickGELU' if wants else 'GELU'}, but {name}"
            f" computes {'QuickGELU' if has else 'GELU'}; set model.clip.name to {fitting}"
        )
    url = str(entry.get("url", ""))
    digest = _published_hash(url)
    hub = str(entry.get("hf_hub", ""))
    return _download_url(url, digest, hub) if digest else _download_hub_file(hub)


def _published_hash(url: str) -> str:
    """The SHA-256 (or its first digits) that OpenAI and LAION write into the addresses of their
    files."""
    if "openaipublic" in url:
        return url.split("/")[-2]
    return Path(url).stem.rpartition("-")[2] if "mlfoundations" in url else ""


def _known_hashes() -> dict[str, str]:
    urls = [open_clip.get_pretrained_url(name, "openai") for name in open_clip.list_openai_models()]
    return {Path(url).name: _published_hash(url) for url in urls if url}


def _download_url(url: str, digest: str, hub: str) -> Path:
    """Download into the cache under a temporary name, check the hash, rename; fall back to the same
    weights on the hub."""
    target = cache_folder() / Path(url).name
    if target.is_file():
        if file_sha256(target).startswith(digest):
            return target
        raise WeightsError(
            f"{target} is damaged: its SHA-256 does not start with {digest[:16]}...; delete it and"
            " start again"
        )
    size = (
        f"about {OPENAI_SIZES[target.name]} MB" if target.name in OPENAI_SIZES else "size unknown"
    )
    licence = "MIT" if "openaipublic" in url else "see its model card"
    logger.warning(
        "downloading %s (%s, licence: %s) from %s to %s",
        target.name,
        size,
        licence,
        url,
        target.parent,
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), hash_prefix=digest)
        return target
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        try:
            return _download_hub_file(hub)
        except FileNotFoundError:
            raise MissingFileError(
                f"cannot download {target.name} ({size}): {_first_line(error)}. Get it from {url}"
                f" on a machine with a connection and put it at {target}, or give its place with"
                " model.clip.weights"
            ) from error


def _download_hub_file(place: str) -> Path:
    """A weights file from the hub (`OWNER/NAME/` or `OWNER/NAME/FILE`), checked against the hash
    that the hub's cache names it by."""
    from open_clip.pretrained import download_pretrained

    repository = place.rstrip("/") if place.endswith("/") else place.rpartition("/")[0]
    if not repository:
        raise MissingFileError("these weights have no place on the hub")
    logger.warning(
        "looking for the weights in the hub repository %s (size and licence: its model page)",
        repository,
    )
    try:
        path = Path(download_pretrained({"hf_hub": place}))
    except Exception as error:  # the hub client raises many kinds
        raise MissingFileError(
            f"cannot download weights from the hub ({_first_line(error)}). Get"
            f" open_clip_model.safetensors from the hub repository {repository} on a machine with a"
            " connection, and give its place with model.clip.weights; HF_ENDPOINT names a mirror"
        ) from error
    stored = path.resolve()
    if len(stored.name) == 64 and stored.suffix == "" and file_sha256(stored) != stored.name:
        raise WeightsError(
            f"{path} is damaged: its SHA-256 is not {stored.name}; delete it and start again"
        )
    return path


# Weights from files
# -------------------------------------------------------------------------------------------------


def load_weights(model: nn.Module, path: Path, config: ClipConfig) -> None:
    """Load a weights file into `model`, strictly.

    OpenAI's TorchScript archives are read for their state dict only, and only after their hash is
    known or `config.sha256` vouches for it; every other pickle is read with `weights_only`.
    """
    archive = is_torchscript(path)
    _check_hash(path, config, required=archive)
    if archive and not _model_settings(config).get("quick_gelu", False):
        raise SettingError(
            f"{path} is an OpenAI archive, trained with QuickGELU; set model.clip.name to"
            f" {config.name}-quickgelu"
        )
    try:
        state = _read_archive(path) if archive else _read_state(path)
        _check_shapes(state, model)
        if archive:
            model.load_state_dict(state, strict=True)
        else:
            open_clip.load_checkpoint(model, str(path), strict=True, weights_only=True)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # readers of files from elsewhere raise many kinds
        raise WeightsError(
            f"{path} does not hold weights of {config.name}: {_first_line(error)}"
        ) from error


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive (a zip that carries code)."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a pickled state dict, without running anything that
    a pickle asks for.

    It comes before open_clip's own reading, which opens a pickle a second time, with its code, when
    the first time raises a TypeError.
    """
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    saved = read_pickle(path, mmap=True)
    state = saved["state_dict"] if isinstance(saved, dict) and "state_dict" in saved else saved
    if not (
        isinstance(state, dict)
        and state
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())
    ):
        raise WeightsError(
            f"it holds a {type(state).__name__} that is no state dict of named tensors"
        )
    return state


def _check_shapes(state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuse tensors of another size, which open_clip would resize in silence (position
    embeddings)."""
    own = model.state_dict()
    for name, tensor in state.items():
        expected = own.get(name.removeprefix("module."))
        if expected is not None and expected.numel() != tensor.numel():
            raise WeightsError(
                f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected.shape)}"
            )


def _read_archive(path: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        # TorchScript is deprecated, but it is the format of these files
        warnings.simplefilter("ignore")
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
    return {name: tensor for name, tensor in state.items() if name not in _SETTINGS_IN_ARCHIVE}


def _check_hash(path: Path, config: ClipConfig, *, required: bool) -> None:
    expected = config.sha256.lower() or _known_hashes().get(path.name, "")
    if expected == "any" or (not expected and not required):
        return
    found = file_sha256(path)
    if not expected and found not in _known_hashes().values():
        raise WeightsError(
            f"{path} is a TorchScript archive whose SHA-256 {found} is not a published one; if you"
            " trust it, set model.clip.sha256 to that value (or to `any`)"
        )
    if expected and found != expected:
        raise WeightsError(
            f"{path} has SHA-256 {found}, expected {expected}: it is damaged or another file. Get"
            " it again, or set model.clip.sha256 if you trust it"
        )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] if lines else type(error).__name__
