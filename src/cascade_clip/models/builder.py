"""The only place where the parts of a model are chosen and joined."""

from __future__ import annotations

import torch
from torch import nn

from cascade_clip.config import ModelConfig, PromptConfig
from cascade_clip.encoders import Grid, LoadedClip, OpenClipTower, TimmTower, Tower, load_clip
from cascade_clip.errors import SettingError
from cascade_clip.models.aggregation import build_aggregation
from cascade_clip.models.backbone import ImageBackbone, TapProjections, VisualPrompts
from cascade_clip.models.decoders.spectral import SpectralDecoder
from cascade_clip.models.decoders.transformer import Decoder, Similarity
from cascade_clip.models.segmenter import Segmenter, TextProjection, TextQueries
from cascade_clip.models.spectral_prompts import SpectralFilter


def build_tower(
    visual: nn.Module, position_grid: Grid | None, *, class_embedding_twice: bool
) -> Tower:
    """The adapter for one of open_clip's image towers.

    Raises:
        ValueError: the tower is not a plain ViT.
    """
    if hasattr(visual, "conv1") and hasattr(visual, "class_embedding"):
        return OpenClipTower(visual, position_grid, class_embedding_twice=class_embedding_twice)
    if (
        hasattr(visual, "trunk")
        and hasattr(visual.trunk, "blocks")
        and hasattr(visual.trunk, "patch_embed")
    ):
        return TimmTower(visual, position_grid)
    raise SettingError(
        f"{type(visual).__name__} is not a plain ViT; choose a ViT model of open_clip such as"
        " ViT-B-16-quickgelu"
    )


def build_segmenter(config: ModelConfig, clip: LoadedClip | None = None) -> Segmenter:
    """Choose and join the parts of a model: the only place where that happens.

    Args:
        config: the settings.
        clip: the CLIP to build on, consumed by this call; loaded from `config.clip` when None.
    """
    clip = clip or load_clip(config.clip)
    tower = build_tower(
        clip.visual, config.position_grid, class_embedding_twice=config.class_embedding_twice
    )
    depth, width = len(tower.blocks), tower.joint_width
    used = sorted({block for stage in config.stages for block in stage})
    if used[-1] > depth:
        raise SettingError(
            f"model.stages names block {used[-1]}, but {config.clip.name} has blocks 1 to {depth}"
        )
    prompts = None
    if config.prompts.kind != "none":
        prompts = VisualPrompts(config.prompts, depth, tower.width, tower.patch_size)
    middle = [block for block in used if block < depth]
    taps = TapProjections(middle, tower, config.projection) if middle else None
    spectral = build_filter(config.prompts, tower) if config.prompts.spectral else None
    projections = len(config.stages) if config.queries in ("independent", "text_linear") else 1
    return Segmenter(
        ImageBackbone(tower, prompts, taps, config.drop_path, config.last_block, spectral),
        config.stages,
        [build_aggregation(config.aggregation, len(stage), width) for stage in config.stages],
        [build_queries(config, width) for _ in range(projections)],
        [build_decoder(config, width, clip) for _ in config.stages],
        torch.ones(len(config.stages)) if config.stage_weights == "learned" else None,
    )


def build_filter(config: PromptConfig, tower: Tower) -> SpectralFilter:
    """The filter of spectral prompts for the position grid of a tower.

    Raises:
        ValueError: the tower has no class token or not the blocks.
    """
    if not isinstance(tower, OpenClipTower):
        raise SettingError(
            f"model.prompts.spectral needs a tower with a class token, not {type(tower).__name__}"
        )
    if max(config.spectral_blocks) > len(tower.blocks):
        raise SettingError(
            f"model.prompts.spectral_blocks names block {max(config.spectral_blocks)}, but there"
            f" are {len(tower.blocks)}"
        )
    return SpectralFilter(
        tower.position_embedding.grid,
        tower.width,
        config.spectral_blocks,
        trained=config.spectral_trained,
    )


def build_queries(config: ModelConfig, width: int) -> nn.Module:
    """What makes class queries (B, C, D) of relation descriptors (B, C, 2D)."""
    if config.queries == "text":
        return TextQueries()
    return TextProjection(width) if config.queries == "text_linear" else nn.Linear(2 * width, width)


def build_decoder(config: ModelConfig, width: int, clip: LoadedClip) -> nn.Module:
    """What compares class queries with the patches of one stage."""
    if config.decoder.kind == "similarity":
        return Similarity(_logit_scale(clip))
    return (
        SpectralDecoder(width, config.decoder)
        if config.decoder.kind == "spectral"
        else Decoder(width, config.decoder)
    )


def _logit_scale(clip: LoadedClip) -> float:
    """CLIP's learned factor of cosines; OpenAI's, 100, where the text side is not here."""
    learned = getattr(clip.text, "logit_scale", None)
    return 100.0 if learned is None else float(learned.detach().exp())
