"""The only place where the parts of a model are chosen and joined."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cascade_clip.config import (
    ModelConfig,
    PromptConfig,
    config_from_dict,
    config_to_dict,
    differing_settings,
)
from cascade_clip.encoders import LoadedClip, Tower, build_tower, load_clip, outline_clip
from cascade_clip.errors import SettingError
from cascade_clip.models.aggregation import build_aggregation
from cascade_clip.models.backbone import ImageBackbone, TapProjections, VisualPrompts
from cascade_clip.models.decoders import find_decoder
from cascade_clip.models.segmenter import Segmenter, TextProjection, TextQueries
from cascade_clip.models.spectral_prompts import SpectralFilter


def build_segmenter(config: ModelConfig, clip: LoadedClip | None = None) -> Segmenter:
    """Choose and join the parts of a model: the only place where that happens.

    Args:
        config: the settings.
        clip: the CLIP to build on, consumed by this call; loaded from `config.clip` when None.
    """
    clip = clip or load_clip(config.clip)
    tower = build_tower(clip.visual, config)
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
    decoder, settings = find_decoder(config.decoder)
    learned = getattr(clip.text, "logit_scale", None)
    # OpenAI's where the text side is not here
    scale = 100.0 if learned is None else float(learned.detach().exp())
    return Segmenter(
        ImageBackbone(tower, prompts, taps, config.drop_path, config.last_block, spectral),
        config.stages,
        [build_aggregation(config.aggregation, len(stage), width) for stage in config.stages],
        [build_queries(config, width) for _ in range(projections)],
        [decoder.build(width, settings, scale) for _ in config.stages],
        torch.ones(len(config.stages)) if config.stage_weights == "learned" else None,
    )


def build_filter(config: PromptConfig, tower: Tower) -> SpectralFilter:
    """The filter of spectral prompts for the position grid of a tower.

    Raises:
        ValueError: the tower has no class token or not the blocks.
    """
    if not tower.class_tokens:
        raise SettingError(
            f"model.prompts.spectral needs a tower with a class token, not {type(tower).__name__}"
        )
    blocks, depth = config.spectral_blocks, len(tower.blocks)
    if max(blocks) > depth:
        raise SettingError(
            f"model.prompts.spectral_blocks names block {max(blocks)}, but there are {depth}"
        )
    grid = tower.position_embedding.grid
    return SpectralFilter(grid, tower.width, blocks, trained=config.spectral_trained)


def build_queries(config: ModelConfig, width: int) -> nn.Module:
    """What makes class queries (B, C, D) of relation descriptors (B, C, 2D)."""
    if config.queries == "text":
        return TextQueries()
    return TextProjection(width) if config.queries == "text_linear" else nn.Linear(2 * width, width)


def find_differences(config: ModelConfig, other: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """Find the settings because of which weights of one model do not fit another.

    Returns:
        By setting, such as `decoder.layers`, its two values; empty where the weights fit. Where no
        single setting explains it, every setting that differs.
    """
    ours = config_to_dict(config)
    theirs = config_to_dict(other) | {"clip": ours["clip"]}  # CLIPs are compared by their weights
    differing = differing_settings(ours, theirs)
    if not differing:
        return {}
    clip = outline_clip(config.clip)
    reference = _outline(theirs, clip)
    if _outline(ours, clip) == reference:
        return {}
    causes = {
        name: values
        for name, values in differing.items()
        if _outline(_with_setting(theirs, name, values[0]), clip) != reference
    }
    return causes or differing


def _outline(settings: Mapping[str, Any], clip: LoadedClip) -> dict[str, Any] | str:
    """What the weights of a model are: names, shapes, heads, blocks; or why it cannot be built."""
    try:
        with torch.device("meta"):
            config = config_from_dict(ModelConfig, settings, "model")
            model = build_segmenter(config, copy.deepcopy(clip))
    except SettingError as error:
        return str(error)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()} | {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name in ("blocks", "heads", "num_heads", "stages")
        if isinstance(value := getattr(module, name, None), (int, tuple))
    }


def _with_setting(settings: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Nested settings with another value of the one that `name`, such as `decoder.layers`, is."""
    group, _, rest = name.partition(".")
    return {**settings, group: _with_setting(settings[group], rest, value) if rest else value}
