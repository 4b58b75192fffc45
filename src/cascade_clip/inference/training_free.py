"""Segmentation without training: CLIP's dense features are compared with the class names."""

from typing import cast

import open_clip

from cascade_clip.checkpoints import Checkpoint
from cascade_clip.config import (
    AggregationConfig,
    ClipConfig,
    Config,
    DecoderConfig,
    InferenceConfig,
    LastBlock,
    ModelConfig,
    PromptConfig,
)
from cascade_clip.encoders import LoadedClip, build_text_encoder, load_clip
from cascade_clip.errors import SettingError
from cascade_clip.models import build_segmenter
from cascade_clip.vocabulary import load_templates, load_vocabulary

PREFIX = "clip:"
SCHEMES = ("package:", "local-dir:", "hf-hub:")
DEFAULT_BLOCK: LastBlock = "clearclip"
Triple = tuple[float, float, float]


def parse_clip(source: str) -> ClipConfig:
    """The CLIP that `clip:NAME/WEIGHTS` names.

    Args:
        source: `clip:ViT-B-16-quickgelu/openai` (model and weights tag of open_clip),
            `clip:ViT-B-16-quickgelu//home/me/ViT-B-16.pt` (a local file), `clip:local-dir:FOLDER`,
            `clip:hf-hub:OWNER/NAME`, or `clip:mini` (the built-in world's).

    Raises:
        ValueError: weights are not named.
    """
    rest = source.removeprefix(PREFIX)
    if rest == "mini":
        return ClipConfig(name="package:mini_clip")
    if rest.startswith(SCHEMES):
        return ClipConfig(name=rest)
    name, slash, weights = rest.partition("/")
    if not slash or not name or not weights:
        raise SettingError(
            f"{source} does not say which weights: give clip:NAME/WEIGHTS (such as"
            " clip:ViT-B-16-quickgelu/openai), clip:local-dir:FOLDER, clip:hf-hub:OWNER/NAME or"
            " clip:mini"
        )
    return ClipConfig(name=name, weights=weights)


def build_training_free(source: str, last_block: LastBlock = DEFAULT_BLOCK) -> Checkpoint:
    """Build a model of CLIP alone, for `clip:...` (see `parse_clip`).

    Images are normalised as for CLIP; the window is twice CLIP's image side, with interpolated
    positions; prompts are the paper's 15 templates; default class names are COCO-Stuff's, unseen.
    """
    settings = parse_clip(source)
    clip = load_clip(settings)
    mean, std = _normalisation(settings, clip)
    size = getattr(clip.visual, "image_size", 224)
    side = 2 * int(size[0] if isinstance(size, (tuple, list)) else size)
    config = Config(
        model=ModelConfig(
            clip=settings,
            prompts=PromptConfig(kind="none"),
            stages=((len_of_tower(clip),),),
            aggregation=AggregationConfig(kind="sum", trained=False),
            queries="text",
            decoder=DecoderConfig(kind="similarity"),
            class_embedding_twice=False,
            last_block=last_block,
            position_grid=None,
            mean=mean,
            std=std,
        ),
        inference=InferenceConfig(window=side, stride=side * 3 // 4, calibration=0.0),
    )
    encoder = build_text_encoder(clip)
    names = load_vocabulary("coco-stuff")
    return Checkpoint(
        build_segmenter(config.model, clip).eval(),
        encoder,
        config,
        names.with_unseen(names.names),
        load_templates("paper15"),
        clip.fingerprint,
        clip.architecture,
        record={"protocol": "training-free", "steps": 0},
    )


def len_of_tower(clip: LoadedClip) -> int:
    """Number of blocks of CLIP's image tower."""
    transformer = getattr(clip.visual, "transformer", None)
    if transformer is None:
        text = "training-free segmentation needs one of open_clip's own ViT towers"
        raise SettingError(f"{text}, such as ViT-B-16-quickgelu")
    return len(transformer.resblocks)


def _normalisation(settings: ClipConfig, clip: LoadedClip) -> tuple[Triple, Triple]:
    """Mean and deviation of the images that this CLIP was trained on."""
    mean, std = getattr(clip.visual, "image_mean", None), getattr(clip.visual, "image_std", None)
    if mean is None or std is None:
        entry = open_clip.get_pretrained_cfg(settings.name, settings.weights) or {}
        mean = entry.get("mean", open_clip.OPENAI_DATASET_MEAN)
        std = entry.get("std", open_clip.OPENAI_DATASET_STD)
    return cast(Triple, tuple(mean)), cast(Triple, tuple(std))
