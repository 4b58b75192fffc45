"""Checkpoints on the hub: what a name means, and how the files come into the hub's own cache.

Only the four files of a checkpoint are ever asked for, weights as safetensors; nothing is executed.
The hub client's own settings hold: HF_ENDPOINT (a mirror), HF_HOME and HF_HUB_CACHE (where the
cache lies), HF_HUB_OFFLINE (the cache alone), HF_TOKEN (private models).
"""

import logging
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import yaml

from cascade_clip.errors import (
    CheckpointError,
    MissingFileError,
    SettingError,
    WeightsError,
    first_lines,
)
from cascade_clip.files import is_damaged_blob

logger = logging.getLogger(__name__)

SCHEME = "hub:"
WEIGHTS = "model.safetensors"
NEEDED = (WEIGHTS, "config.yaml", "checkpoint.json")
FILES = (*NEEDED, "README.md")
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".npz", ".joblib")
"""Endings of weight files that are not read from the hub: reading some of them runs code."""

_NAME = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubName(NamedTuple):
    """A model on the hub."""

    repository: str
    """OWNER/NAME."""
    revision: str | None
    """Branch, tag or commit; None: the main branch."""


def parse_hub_name(source: str) -> HubName | None:
    """Return the model that [hub:]OWNER/NAME[@REVISION] names; None for what is no such name.

    Raises:
        ValueError: `hub:` before something else.
    """
    found = _NAME.fullmatch(source.removeprefix(SCHEME))
    if found is None or ".." in source:
        if source.startswith(SCHEME):
            fix = "write hub:OWNER/NAME or hub:OWNER/NAME@REVISION"
            raise SettingError(f"{source} is not a name on the hub; {fix}")
        return None
    return HubName(found["repository"], found["revision"])


def download_checkpoint(source: str, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint from the hub, from the cache if it is there already.

    Args:
        source: OWNER/NAME or OWNER/NAME@REVISION, with or without `hub:`.
        revision: branch, tag or commit, where `source` names none; a commit pins every file.

    Raises:
        FileNotFoundError: no such model or revision, neither connection nor cache, missing files.
        ValueError: not a name on the hub, damaged weights, or settings that are not trusted.
    """
    name = parse_hub_name(source)
    if name is None:
        fix = "write OWNER/NAME or OWNER/NAME@REVISION"
        raise SettingError(f"{source} is not a name on the hub; {fix}")
    if revision and name.revision and revision != name.revision:
        both = f"revision {name.revision}, but {revision} was asked for"
        raise SettingError(f"{source} names {both}; name one")
    name = HubName(name.repository, name.revision or revision)
    folder = _fetch(name)
    _check_place(folder)
    missing = [file for file in NEEDED if not (folder / file).is_file()]
    if missing:
        what = f"{name.repository} on the hub is not a whole checkpoint"
        raise MissingFileError(f"{what}: {missing} missing{_unsafe_files(name)}")
    if is_damaged_blob(folder / WEIGHTS):
        blob = (folder / WEIGHTS).resolve()
        what = f"{folder / WEIGHTS} is damaged: its SHA-256 is not {blob.name}"
        raise CheckpointError(f"{what}; delete {blob} and start again")
    _check_settings(folder / "config.yaml", name)
    return folder


def _fetch(name: HubName) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    text = "%s: looking in the hub cache, else downloading it (size and licence: its model page)"
    logger.info(text, name.repository)
    fetch = partial(snapshot_download, allow_patterns=list(FILES), library_name="cascade-clip")
    try:
        return Path(fetch(name.repository, revision=name.revision))
    except HFValidationError as error:
        raise SettingError(f"{name.repository} is not a name on the hub (OWNER/NAME)") from error
    except RevisionNotFoundError as error:
        raise MissingFileError(
            f"{name.repository} on the hub has no revision {name.revision or 'main'}"
        ) from error
    except (RepositoryNotFoundError, GatedRepoError) as error:
        raise MissingFileError(
            f"no checkpoint at {name.repository}: no such folder here, and no model of that name"
            f" for you on {constants.ENDPOINT}. A private or gated one needs `hf auth login` or"
            " HF_TOKEN"
        ) from error
    except Exception as error:  # the hub client raises many kinds
        raise MissingFileError(
            f"no checkpoint at {name.repository}: no such folder here, not in the hub cache, and"
            f" {constants.ENDPOINT} cannot be reached ({first_lines(error)}). HF_ENDPOINT names a"
            " mirror; or copy the folder here"
        ) from error


def _check_place(folder: Path) -> None:
    """Refuse a cache entry that a dishonest server has put elsewhere."""
    storage = folder.parent.parent.resolve()
    places = [folder / file for file in FILES if (folder / file).exists()]
    outside = [one.name for one in places if not one.resolve().is_relative_to(storage)]
    if outside or not _COMMIT.fullmatch(folder.name):
        raise CheckpointError(
            f"{folder} is not a proper entry of the hub cache ({outside or folder.name}); delete"
            " it, and do not trust that server"
        )


def _check_settings(file: Path, name: HubName) -> None:
    """Settings from elsewhere must not switch off a check of this machine's own files."""
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        trust = settings["model"]["clip"].get("sha256")
    except Exception:  # damaged text and odd tags raise many kinds
        return  # loading says what is wrong
    if trust == "any":
        what = "trust CLIP weights unseen (model.clip.sha256: any)"
        raise WeightsError(f"{name.repository} asks to {what}; refused")


def _unsafe_files(name: HubName) -> str:
    """What a repository holds instead of safetensors, for an error message."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().list_repo_files(name.repository, revision=name.revision)
    except Exception:  # the message does without
        return ""
    found = [file for file in files if file.endswith(UNSAFE)]
    fix = "which are not read: only safetensors are (see `cascade-clip import`)"
    return f"; it holds {found[:3]}, {fix}" if found else ""
