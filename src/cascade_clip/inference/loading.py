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
            alone without training: `clip:ViT-B-16-quickgelu/openai`, `clip:local-dir:FOLDER`,
            `clip:mini`.
        device: where to run; `auto` takes CUDA, then MPS, then the CPU.
        precision: number format of the network instead of the checkpoint's own.
        clip_weights: CLIP weights (file or tag) instead of the place that the checkpoint names; the
            hash is still compared.
        last_block: of a training-free model, how the last block makes patch features (see
            `ModelConfig.last_block`).
    """
    from cascade_clip.checkpoints import load_checkpoint
    from cascade_clip.inference.predictor import Predictor
    from cascade_clip.inference.training_free import DEFAULT_BLOCK, PREFIX, build_training_free

    if str(source).startswith(PREFIX):
        checkpoint = build_training_free(str(source), last_block or DEFAULT_BLOCK)
    elif last_block is not None:
        raise SettingError(
            f"last_block is for training-free models ({PREFIX}NAME/WEIGHTS); {source} has its own"
        )
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
    """Place of CLIP's weights (file or tag) instead of the recorded one; their hash must agree with
    the checkpoint's."""
    last_block: LastBlock | None = None
    """Of a clip:... model, how the last block makes patch features: clearclip (default), sclip,
    maskclip, or standard."""

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
