"""Class names to text embeddings T (C, D) by templates and CLIP's frozen text tower (section 1).

Letters: C classes, D joint width.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_clip.config import find_part
from cascade_clip.encoders.clip import LoadedClip, Tokenizer
from cascade_clip.encoders.weights import fingerprint_weights
from cascade_clip.errors import DataError, MissingFileError
from cascade_clip.files import write_whole

logger = logging.getLogger(__name__)


class TextTower(Protocol):
    """What a text encoder needs of its network, beside being an `nn.Module`."""

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embeddings (prompts, D) of what the tokenizer makes of prompts, (prompts, context)."""
        ...


class TextEncoder:
    """A frozen text tower and tokenizer; embeddings are kept on disk per weights and prompts."""

    def __init__(self, tower: nn.Module, tokenizer: Tokenizer, fingerprint: str = "") -> None:
        """Use a `TextTower` (of open_clip's model only the text side is called) and its tokenizer.

        `fingerprint` identifies the weights in the disk cache; without one it is computed.
        """
        self.tower = tower.eval()
        self.tokenizer = tokenizer
        self.keep = True  # whether new embeddings are written to disk
        self.fingerprint = fingerprint or fingerprint_weights(tower.state_dict())

    @property
    def device(self) -> torch.device:
        """Where the tower lies."""
        return next(self.tower.parameters()).device

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], batch: int = 256) -> Tensor:
        """Unit embeddings (prompts, D), float32, of whole prompts."""
        parts = []
        for start in range(0, len(prompts), batch):
            # (prompts, context)
            tokens = self.tokenizer(list(prompts[start : start + batch])).to(self.device)
            embedded = cast(TextTower, self.tower).encode_text(tokens)  # (prompts, D)
            parts.append(F.normalize(embedded.float(), dim=-1))
        return torch.cat(parts)  # (prompts, D)

    def embed(self, words: Sequence[Sequence[str]], templates: Sequence[str]) -> Tensor:
        """Text embeddings (C, D) of classes, each a list of words (the name and its synonyms).

        Per word: the mean over templates of unit prompt embeddings, made unit again; then the same
        over the words of a class.
        """
        cache = _cache_file(self.fingerprint, words, templates)
        found = _read_cache(cache, len(words))
        if found is not None:
            return torch.from_numpy(found)
        flat = [word for group in words for word in group]
        prompts = [template.replace("{}", word) for word in flat for template in templates]
        embedded = self.encode(prompts).unflatten(0, (len(flat), len(templates)))
        per_word = F.normalize(embedded.mean(dim=1), dim=-1)  # (words, D)
        groups = per_word.split([len(group) for group in words])
        means = torch.stack([F.normalize(group.mean(dim=0), dim=-1) for group in groups])
        result = means.cpu().clone()  # (C, D)
        if self.keep:
            _write_cache(cache, result.numpy())
        return result


def build_text_encoder(clip: LoadedClip) -> TextEncoder | None:
    """Build the text encoder that belongs to a loaded CLIP; None when it was loaded without one."""
    if clip.text is None:
        return None
    return cast(TextEncoder, find_part("text_encoders", clip.text_encoder)(clip))


def build_clip_text(clip: LoadedClip) -> TextEncoder:
    """Use CLIP's own text tower and tokenizer."""
    assert clip.text is not None and clip.tokenizer is not None
    return TextEncoder(clip.text, clip.tokenizer, clip.fingerprint)


def load_embeddings(path: Path, classes: int, width: int) -> Tensor:
    """Read embeddings (classes, width) from a float .npy file as float32, not normalised again."""
    if not path.is_file():
        raise MissingFileError(f"no text embeddings at {path}")
    array = _read_array(path)
    if array.shape != (classes, width) or array.dtype.kind != "f":
        raise DataError(
            f"{path} must hold floats of shape ({classes}, {width}), one row per class name, got"
            f" {array.dtype} {array.shape}"
        )
    if not np.isfinite(array).all():
        raise DataError(f"{path} contains NaN or infinity")
    return torch.from_numpy(array.astype(np.float32))


def _read_array(path: Path) -> np.ndarray:
    """The array of a .npy file; whatever numpy raises for a damaged one is a ValueError here."""
    try:
        # mapped, so that a header cannot claim more than the file holds
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # numpy's reader lets errors of zipfile and tokenize through
        raise DataError(f"{path} is not a .npy file of numbers: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is not a .npy file of numbers but an .npz archive")
    return np.array(array)


def _cache_file(fingerprint: str, words: Sequence[Sequence[str]], templates: Sequence[str]) -> Path:
    key = json.dumps([1, fingerprint, [list(group) for group in words], list(templates)])
    return _cache_folder() / "text" / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"


def _cache_folder() -> Path:
    """CASCADE_CLIP_CACHE, else a folder in the home directory, else (no home) a temporary one."""
    named = os.environ.get("CASCADE_CLIP_CACHE")
    try:
        return Path(named) if named else Path.home() / ".cache" / "cascade_clip"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "cascade_clip"


def _read_cache(path: Path, rows: int) -> np.ndarray | None:
    """The kept embeddings; None when there are none or the file is damaged."""
    try:
        array = _read_array(path)
    except (OSError, ValueError, MemoryError):
        return None
    fits = array.ndim == 2 and len(array) == rows and array.dtype == np.float32
    return array if fits and np.isfinite(array).all() else None


def _write_cache(path: Path, array: np.ndarray) -> None:
    """Write under a temporary name and rename; a folder that cannot be written only costs time."""
    try:
        write_whole(path, lambda part: np.save(part, array))
    except OSError as error:
        logger.info("text embeddings are not kept: %s", error)
