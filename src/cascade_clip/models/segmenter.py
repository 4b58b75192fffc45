"""Cascade-CLIP as a network: features, stages, class queries, decoders, their sum (Figure 3).

Letters: B images, C classes, N = h x w patches, D joint width.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from cascade_clip.models.backbone import BlockFeatures, ImageBackbone


class StageMasks(NamedTuple):
    """Mask logits of every stage, times its learned weight if there is one, not yet summed."""

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
        """Join an aggregation and a decoder per stage, a query projection per stage or for all.

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
        """Dense features of blocks counted from 1 (default: the stages'), for any image size.

        With `projected` they are unit vectors of CLIP's joint space, which exist for the blocks of
        the stages and for the last one; without, the hidden states of any block.
        """
        wanted = [block for stage in self.stages for block in stage] if blocks is None else blocks
        return cast(BlockFeatures, self.backbone(images, wanted, projected=projected))

    def stage_masks(self, images: Tensor, text: Tensor) -> StageMasks:
        """Mask logits of every stage for normalised images (B, 3, H, W), text embeddings (C, D)."""
        return self.decode(self.features(images), text)

    def decode(self, features: BlockFeatures, text: Tensor) -> StageMasks:
        """Mask logits of every stage from features made once, for any text embeddings (C, D)."""
        self._check_text(text)
        self._check_features(features)
        text = text.to(features.class_token)  # (C, D)
        relation = relation_descriptor(features.class_token, text)  # (B, C, 2D)
        masks = []
        for index, stage in enumerate(self.stages):
            # (B, N, D)
            memory = self.aggregations[index]([features.patches[block] for block in stage])
            queries = self.queries[min(index, len(self.queries) - 1)](relation)  # (B, C, D)
            found = self.decoders[index](queries, memory, features.grid)  # (B, C, N)
            found = found.unflatten(-1, features.grid)  # (B, C, h, w)
            masks.append(found if self.stage_weights is None else self.stage_weights[index] * found)
        return StageMasks(tuple(masks))

    def _check_text(self, text: Tensor) -> None:
        if text.ndim != 2 or text.shape[1] != self.joint_width or text.shape[0] == 0:
            raise ValueError(
                f"text embeddings must have shape (classes, {self.joint_width}), got"
                f" {tuple(text.shape)}"
            )

    def _check_features(self, features: BlockFeatures) -> None:
        held = sorted(features.patches)
        missing = sorted({block for stage in self.stages for block in stage}.difference(held))
        if missing:
            raise ValueError(
                f"features hold blocks {held}, the stages need {missing} too; leave `blocks` out"
            )


def _margin(masks: Tensor) -> Tensor:
    """Margin (B, 1, h, w) of the two largest class probabilities of mask logits (B, C, h, w)."""
    best = masks.topk(2, dim=1).values  # (B, 2, h, w)
    chances = (best - masks.logsumexp(dim=1, keepdim=True)).exp()
    return chances[:, :1] - chances[:, 1:]


def relation_descriptor(class_token: Tensor, text: Tensor) -> Tensor:
    """q = [T * g ; T]: (B, C, 2D) of image embeddings g (B, D), text embeddings T (C, D), Eq. 5."""
    product = text[None] * class_token[:, None]  # (B, C, D)
    return torch.cat([product, text.expand_as(product)], dim=-1)  # (B, C, 2D)


class TextQueries(nn.Module):
    """The text embeddings themselves as class queries."""

    def forward(self, relation: Tensor) -> Tensor:
        """The text half (B, C, D) of relation descriptors (B, C, 2D)."""
        return relation[..., relation.shape[-1] // 2 :]


class TextProjection(TextQueries):
    """A linear map of text embeddings, whatever the image (ZegCLIP's baseline; our reading)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, relation: Tensor) -> Tensor:
        """Class queries (B, C, D) from relation descriptors (B, C, 2D)."""
        queries: Tensor = self.linear(super().forward(relation))
        return queries
