"""From a name of a model to a predictor."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cascade_clip.config import DataConfig, Device, LastBlock, Precision
from cascade_clip.errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor

    from cascade_clip.inference.predictor import Predictor


def load_predictor(
    source: str | Path,
    device: Device = "auto",
    precision: Precision | None = None,
    clip_weights: str | None = None,
    last_block: LastBlock | None = None,
) -> Predictor:
    """Load a checkpoint folder, ready to segment.

    Args:
        source: a checkpoint folder, a run folder, a packaged model (`mini`, `mini-last`), or CLIP
            without training (see `parse_clip`), such as `clip:ViT-B-16-quickgelu/openai`.
        device: where to run; `auto` takes CUDA, then MPS, then the CPU.
        precision: number format of the network instead of the checkpoint's own.
        clip_weights: CLIP weights (file or tag) to use; their hash must be the recorded one.
        last_block: last block of a training-free model (see `ModelConfig.last_block`).
    """
    from cascade_clip.checkpoints import load_checkpoint
    from cascade_clip.inference.predictor import Predictor
    from cascade_clip.inference.training_free import DEFAULT_BLOCK, PREFIX, build_training_free

    if str(source).startswith(PREFIX):
        checkpoint = build_training_free(str(source), last_block or DEFAULT_BLOCK)
    elif last_block is not None:
        text = f"last_block is for training-free models ({PREFIX}NAME/WEIGHTS)"
        raise SettingError(f"{text}; {source} has its own")
    else:
        checkpoint = load_checkpoint(source, clip_weights)
    settings = checkpoint.config.inference
    if precision is not None:
        settings = dataclasses.replace(settings, precision=precision)
    return Predictor(checkpoint, settings, device)


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded and run."""

    device: Device = "auto"
    """Where to run: auto takes CUDA, then Apple's MPS, then the CPU."""
    precision: Precision = "fp32"
    """Number format of the network; similarities and scores stay float32."""
    clip_weights: str = ""
    """CLIP weights (file or tag) instead of the recorded place; their hash must be the same."""
    last_block: LastBlock | None = None
    """Last block of a clip:... model: clearclip (default), sclip, maskclip, or standard."""

    def load(self, model: str) -> Predictor:
        """Load a model that `load_predictor` knows."""
        return load_predictor(
            model, self.device, self.precision, self.clip_weights or None, self.last_block
        )


DEFAULT_LOADING = LoadOptions()


def given_embeddings(config: DataConfig, classes: int, predictor: Predictor) -> Tensor | None:
    """Text embeddings from the file that the settings name, if any."""
    from cascade_clip.encoders import load_embeddings

    if not config.text_embeddings:
        return None
    return load_embeddings(Path(config.text_embeddings), classes, predictor.model.joint_width)
