"""The weights of a CLIP: where they are, how they are downloaded, and how they are read safely.

Weights come from a tag of open_clip (downloaded with its hash), a folder in open_clip's format
(local, on the hub, or inside this package), or a local file. A log line says what is downloaded,
how large it is and under which licence.
"""

import hashlib
import http.client
import importlib.resources
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cascade_clip.config import ClipConfig
from cascade_clip.errors import MissingFileError, SettingError, WeightsError, first_lines
from cascade_clip.files import file_sha256, is_damaged_blob, read_pickle

logger = logging.getLogger(__name__)

OPENAI_SIZES = {  # megabytes, rounded; from the published file list
    "ViT-B-32.pt": 354,
    "ViT-B-16.pt": 351,
    "ViT-L-14.pt": 933,
    "ViT-L-14-336px.pt": 934,
}
FOLDER_SETTINGS = "open_clip_config.json"
FOLDER_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_SETTINGS_IN_ARCHIVE = ("input_resolution", "context_length", "vocab_size")


def fingerprint_weights(state: Mapping[str, Tensor]) -> str:
    """Hash names, shapes and float32 values of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def cache_folder() -> Path:
    """Return the folder of downloaded weights: CASCADE_CLIP_CACHE, or open_clip's ~/.cache/clip."""
    return Path(os.environ.get("CASCADE_CLIP_CACHE") or Path.home() / ".cache" / "clip")


def find_folder(name: str) -> Path | None:
    """Find the folder that a name with a scheme means (may download); None for a model name."""
    scheme, _, rest = name.partition(":")
    finders: dict[str, Callable[[str], Path]] = {
        "local-dir": Path,
        "hf-hub": _download_folder,
        "package": _packaged_folder,
    }
    if not rest or scheme not in finders:
        return None
    folder = finders[scheme](rest).expanduser()
    if not (folder / FOLDER_SETTINGS).is_file():
        raise MissingFileError(
            f"{folder} is not a folder in open_clip's format: it holds no {FOLDER_SETTINGS}"
        )
    if not any((folder / file).is_file() for file in FOLDER_WEIGHTS):
        raise MissingFileError(f"{folder} holds no weights; expected one of {list(FOLDER_WEIGHTS)}")
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
    wanted = [FOLDER_SETTINGS, *FOLDER_WEIGHTS]
    wanted += ["*tokenizer*", "*.txt", "special_tokens_map.json"]
    try:
        return Path(snapshot_download(owner_name, revision=revision or None, allow_patterns=wanted))
    except HFValidationError as error:
        raise SettingError(
            f"hf-hub:{repository} is not a repository name (OWNER/NAME or OWNER/NAME@REVISION)"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise MissingFileError(
            f"cannot reach the hub for {owner_name} ({first_lines(error)}). On a machine with a"
            f" connection run `hf download {owner_name} --local-dir FOLDER`, copy FOLDER here and"
            " set model.clip.name to local-dir:FOLDER; HF_ENDPOINT names a mirror"
        ) from error


def resolve_weights(config: ClipConfig) -> Path:
    """Find the local weights file; a tag of open_clip is downloaded and its hash checked."""
    if config.architecture is None and open_clip.get_pretrained_cfg(config.name, config.weights):
        return _resolve_tag(config.name, config.weights)
    path = Path(config.weights).expanduser()
    if path.is_file():
        return path
    named = config.architecture is None
    tags = open_clip.list_pretrained_tags_by_model(config.name) if named else []
    raise MissingFileError(
        f"model.clip.weights {config.weights!r} is neither a file nor one of {config.name}'s tags"
        f" {tags} nor `random`"
    )


def _resolve_tag(name: str, tag: str) -> Path:
    entry = open_clip.get_pretrained_cfg(name, tag)
    sources = (entry, open_clip.get_model_config(name))
    wants, has = (bool((known or {}).get("quick_gelu", False)) for known in sources)
    if wants != has:
        fitting = f"{name}-quickgelu" if wants else name.removesuffix("-quickgelu")
        raise SettingError(
            f"weights {tag!r} were trained with {'QuickGELU' if wants else 'GELU'}, but {name}"
            f" computes {'QuickGELU' if has else 'GELU'}; set model.clip.name to {fitting}"
        )
    url, hub = str(entry.get("url", "")), str(entry.get("hf_hub", ""))
    digest = _published_hash(url)
    return _download_url(url, digest, hub) if digest else _download_hub_file(hub)


def _published_hash(url: str) -> str:
    """The SHA-256, or its first digits, in the addresses of OpenAI's and LAION's files."""
    if "openaipublic" in url:
        return url.split("/")[-2]
    return Path(url).stem.rpartition("-")[2] if "mlfoundations" in url else ""


def _known_hashes() -> dict[str, str]:
    urls = [open_clip.get_pretrained_url(name, "openai") for name in open_clip.list_openai_models()]
    return {Path(url).name: _published_hash(url) for url in urls if url}


def _download_url(url: str, digest: str, hub: str) -> Path:
    """Download into the cache, check the hash; fall back to the same weights on the hub."""
    target = cache_folder() / Path(url).name
    if target.is_file():
        if file_sha256(target).startswith(digest):
            return target
        raise WeightsError(
            f"{target} is damaged: its SHA-256 does not start with {digest[:16]}; delete it"
        )
    known = OPENAI_SIZES.get(target.name)
    size = f"about {known} MB" if known else "size unknown"
    licence = "MIT" if "openaipublic" in url else "see its model card"
    message = "downloading %s (%s, licence: %s) from %s to %s"
    logger.warning(message, target.name, size, licence, url, target.parent)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), hash_prefix=digest)
        return target
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        try:
            return _download_hub_file(hub)
        except FileNotFoundError:
            raise MissingFileError(
                f"cannot download {target.name} ({size}): {first_lines(error)}. Get it from {url}"
                f" on a machine with a connection and put it at {target}, or give its place with"
                " model.clip.weights"
            ) from error


def _download_hub_file(place: str) -> Path:
    """A weights file from the hub (`OWNER/NAME/[FILE]`), checked against the cache's hash."""
    from open_clip.pretrained import download_pretrained

    repository = place.rstrip("/") if place.endswith("/") else place.rpartition("/")[0]
    if not repository:
        raise MissingFileError("these weights have no place on the hub")
    logger.warning("looking for weights on the hub, %s (size, licence: its model page)", repository)
    try:
        path = Path(download_pretrained({"hf_hub": place}))
    except Exception as error:  # the hub client raises many kinds
        raise MissingFileError(
            f"cannot download weights from the hub ({first_lines(error)}). Get"
            f" open_clip_model.safetensors from the hub repository {repository} on a machine with a"
            " connection, and give its place with model.clip.weights; HF_ENDPOINT names a mirror"
        ) from error
    if is_damaged_blob(path):
        raise WeightsError(
            f"{path} is damaged: its SHA-256 is not {path.resolve().name}; delete it"
        )
    return path


def load_weights(model: nn.Module, path: Path, config: ClipConfig, *, quick_gelu: bool) -> None:
    """Load a weights file into `model`, strictly; `quick_gelu` says which activation it computes.

    OpenAI's TorchScript archives are read for their state dict only, and only after their hash is
    known or `config.sha256` vouches for it; every other pickle is read with `weights_only`.
    """
    archive = is_torchscript(path)
    _check_hash(path, config, required=archive)
    if archive and not quick_gelu:
        raise SettingError(
            f"{path} was trained with QuickGELU; set model.clip.name to {config.name}-quickgelu"
        )
    try:
        state = _read_archive(path) if archive else read_state(path)
        _check_shapes(state, model)
        if archive:
            model.load_state_dict(state, strict=True)
        else:
            open_clip.load_checkpoint(model, str(path), strict=True, weights_only=True)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # readers of files from elsewhere raise many kinds
        raise WeightsError(
            f"{path} does not hold weights of {config.name}: {first_lines(error)}"
        ) from error


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive (a zip that carries code)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors file or a pickled state dict without running code in the pickle.

    It comes before open_clip's own reading, which opens a pickle a second time, with its code, when
    the first time raises a TypeError.
    """
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    saved = read_pickle(path, mmap=True)
    state = saved["state_dict"] if isinstance(saved, dict) and "state_dict" in saved else saved
    pairs = state.items() if isinstance(state, dict) else ()
    named = [isinstance(key, str) and isinstance(value, Tensor) for key, value in pairs]
    if not named or not all(named):
        raise WeightsError(f"it holds a {type(state).__name__}, no state dict of named tensors")
    return dict(state)


def _check_shapes(state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuse tensors of another size (position embeddings), which open_clip would resize."""
    own = model.state_dict()
    for name, tensor in state.items():
        expected = own.get(name.removeprefix("module."))
        if expected is not None and expected.numel() != tensor.numel():
            shape, wanted = tuple(tensor.shape), tuple(expected.shape)
            raise WeightsError(f"{name} has shape {shape}, expected {wanted}")


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
