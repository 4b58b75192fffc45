"""Cascade-CLIP as a network: backbone features, stages, class queries, decoders, and their sum
(paper Figure 3).

Letters: B images, C classes, N = h x w patches, D joint width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from cascade_clip.config import ModelConfig, PromptConfig
from cascade_clip.encoders.clip import LoadedClip, load_clip
from cascade_clip.models.aggregation import build_aggregation
from cascade_clip.models.backbone import (
    BlockFeatures,
    Grid,
    ImageBackbone,
    OpenClipTower,
    TapProjections,
    TimmTower,
    Tower,
    VisualPrompts,
)
from cascade_clip.models.decoders.spectral import SpectralDecoder
from cascade_clip.models.decoders.transformer import Decoder, Similarity
from cascade_clip.models.spectral_prompts import SpectralFilter


class StageMasks(NamedTuple):
    """Mask logits of every stage, times its learned weight if there is one, before they are
    summed."""

    stages: tuple[Tensor, ...]  # each (B, C, h, w)

    @property
    def total(self) -> Tensor:
        """The cascade: the sum over stages, (B, C, h, w)."""
        return torch.stack(self.stages).sum(dim=0) if len(self.stages) > 1 else self.stages[0]

    def weighted_by_confidence(self) -> Tensor:
        """The stages weighted at every patch by how sure each is there, (B, C, h, w).

        A stage's confidence is the margin between the two largest of its softmax probabilities over
        the classes, in 0..1: it does not change when a constant is added to all logits of a stage,
        as a single stage's level was never trained. The weights are the softmax of the confidences
        over the stages, times their number, so that equally sure stages are plainly added and a
        sure stage counts at most e times as much as an undecided one. One class alone has no
        margin, and the stages are added.
        """
        if len(self.stages) == 1 or self.stages[0].shape[1] == 1:
            return self.total
        margins = torch.stack([_margin(masks.float()) for masks in self.stages])  # (S, B, 1, h, w)
        weights = len(self.stages) * margins.softmax(dim=0)  # (S, B, 1, h, w)
        total = weights[0] * self.stages[0]  # (B, C, h, w)
        for weight, masks in zip(weights[1:], self.stages[1:], strict=True):
            total = total + weight * masks
        return total


class Segmenter(nn.Module):
    """Images and text embeddings to mask logits at patch resolution."""

    def __init__(
        self,
        backbone: ImageBackbone,
        stages: Sequence[Sequence[int]],
        aggregations: Iterable[nn.Module],
        queries: Sequence[nn.Module],
        decoders: Iterable[nn.Module],
        stage_weights: Tensor | None = None,
    ) -> None:
        """Join the parts: one aggregation and one decoder per stage, and one query projection per
        stage or one for all.

        With `stage_weights` (stages,) the mask logits of every stage are multiplied by a trained
        number that starts there.
        """
        super().__init__()
        self.backbone = backbone
        self.stages = tuple(tuple(stage) for stage in stages)
        self.aggregations = nn.ModuleList(aggregations)
        self.queries = nn.ModuleList(queries)
        self.decoders = nn.ModuleList(decoders)
        self.stage_weights = None if stage_weights is None else nn.Parameter(stage_weights)

    @property
    def patch_size(self) -> int:
        """Side of one image patch, in pixels."""
        return self.backbone.patch_size

    @property
    def joint_width(self) -> int:
        """Width D of text embeddings."""
        return self.backbone.joint_width

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        """Mask logits (B, C, h, w) of normalised images (B, 3, H, W) for text embeddings (C, D)."""
        return self.stage_masks(images, text).total

    def features(
        self, images: Tensor, blocks: Iterable[int] | None = None, *, projected: bool = True
    ) -> BlockFeatures:
        """Dense features of blocks counted from 1 (default: those of the stages), for images of any
        size.

        With `projected` they are unit vectors of CLIP's joint space, which exist for the blocks of
        the stages and for the last one; without, the hidden states of any block.
        """
        wanted = [block for stage in self.stages for block in stage] if blocks is None else blocks
        return cast(BlockFeatures, self.backbone(images, wanted, projected=projected))

    def stage_masks(self, images: Tensor, text: Tensor) -> StageMasks:
        """Mask logits of every stage for normalised images (B, 3, H, W) and text embeddings (C,
        D)."""
        return self.decode(self.features(images), text)

    def decode(self, features: BlockFeatures, text: Tensor) -> StageMasks:
        """Mask logits of every stage from features made once; ask again with other text embeddings
        (C, D)."""
        self._check_text(text)
        self._check_features(features)
        text = text.to(features.class_token)  # (C, D)
        relation = relation_descriptor(features.class_token, text)  # (B, C, 2D)
        masks = []
        for index, stage in enumerate(self.stages):
            # (B, N, D)
            memory = self.aggregations[index]([features.patches[block] for block in stage])
            queries = self.queries[min(index, len(self.queries) - 1)](relation)  # (B, C, D)
            # (B, C, h, w)
            found = self.decoders[index](queries, memory, features.grid).unflatten(
                -1, features.grid
            )
            masks.append(found if self.stage_weights is None else self.stage_weights[index] * found)
        return StageMasks(tuple(masks))

    def _check_text(self, text: Tensor) -> None:
        if text.ndim != 2 or text.shape[1] != self.joint_width or text.shape[0] == 0:
            raise ValueError(
                f"text embeddings must have shape (classes, {self.joint_width}), got"
                f" {tuple(text.shape)}"
            )

    def _check_features(self, features: BlockFeatures) -> None:
        missing = sorted(
            {block for stage in self.stages for block in stage}.difference(features.patches)
        )
        if missing:
            raise ValueError(
                f"features hold blocks {sorted(features.patches)}, but the stages need {missing}"
                " too; leave `blocks` out"
            )


def _margin(masks: Tensor) -> Tensor:
    """Difference of the two largest softmax probabilities over classes, (B, 1, h, w), of mask
    logits (B, C, h, w)."""
    best = masks.topk(2, dim=1).values  # (B, 2, h, w)
    chances = (best - masks.logsumexp(dim=1, keepdim=True)).exp()
    return chances[:, :1] - chances[:, 1:]


def relation_descriptor(class_token: Tensor, text: Tensor) -> Tensor:
    """q = [T * g ; T]: (B, C, 2D) from image embeddings g (B, D) and text embeddings T (C, D)
    (paper Eq. 5)."""
    product = text[None] * class_token[:, None]  # (B, C, D)
    return torch.cat([product, text.expand_as(product)], dim=-1)  # (B, C, 2D)


class TextQueries(nn.Module):
    """The text embeddings themselves as class queries."""

    def forward(self, relation: Tensor) -> Tensor:
        """The text half (B, C, D) of relation descriptors (B, C, 2D)."""
        return relation[..., relation.shape[-1] // 2 :]


class TextProjection(TextQueries):
    """A linear map of the text embeddings as class queries, which do not depend on the image
    (ZegCLIP's baseline; our reading)."""

    def __init__(self, width: int) -> None:
        """Map width D to D."""
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, relation: Tensor) -> Tensor:
        """Class queries (B, C, D) from relation descriptors (B, C, 2D)."""
        queries: Tensor = self.linear(super().forward(relation))
        return queries


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
    raise ValueError(
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
        raise ValueError(
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
        raise ValueError(
            f"model.prompts.spectral needs a tower with a class token, not {type(tower).__name__}"
        )
    if max(config.spectral_blocks) > len(tower.blocks):
        raise ValueError(
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
