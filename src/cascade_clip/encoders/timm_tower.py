"""Image towers of timm inside open_clip (SigLIP, EVA)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from cascade_clip.config import LastBlock, ModelConfig
from cascade_clip.encoders.positions import Grid, PositionEmbedding, resize_positions
from cascade_clip.encoders.towers import run_whole
from cascade_clip.errors import SettingError


class TimmTower(nn.Module):
    """A timm ViT inside open_clip (SigLIP): no class token, the patches are pooled."""

    class_tokens = 0
    last_blocks: tuple[LastBlock, ...] = ("standard",)
    visual: Any

    def __init__(self, visual: Any, position_grid: Grid | None) -> None:
        """Take over a `TimmModel`, its positions resized once to `position_grid` unless None."""
        super().__init__()
        trunk = visual.trunk
        if getattr(trunk, "pos_embed", None) is None or getattr(trunk, "rope", None) is not None:
            raise SettingError(
                f"{type(trunk).__name__} has no learned position embedding; choose a plain timm ViT"
            )
        if trunk.num_prefix_tokens:
            raise SettingError(
                f"timm trunks with {trunk.num_prefix_tokens} prefix tokens are not supported;"
                " choose a SigLIP model"
            )
        self.width = int(trunk.embed_dim)
        self.joint_width = int(visual.head.proj.out_features) if len(visual.head) else self.width
        self.patch_size = int(trunk.patch_embed.patch_size[0])
        native = cast(Grid, tuple(trunk.patch_embed.grid_size))
        table = cast(Tensor, trunk.pos_embed).detach()[0]  # (N, W)
        grid = position_grid or native
        spatial = table if grid == native else resize_positions(table, native, grid)
        self.position_embedding = PositionEmbedding(spatial, grid)
        trunk.pos_embed = None  # held in the tensor above
        self.visual = visual

    @classmethod
    def adapt(cls, visual: nn.Module, config: ModelConfig) -> TimmTower | None:
        """Take over a `TimmModel` whose trunk is a ViT."""
        trunk = getattr(visual, "trunk", None)
        plain = hasattr(trunk, "blocks") and hasattr(trunk, "patch_embed")
        return cls(visual, config.position_grid) if plain else None

    @property
    def trunk(self) -> Any:
        """timm's model."""
        return self.visual.trunk

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        return cast(nn.ModuleList, self.trunk.blocks)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """No class token, (B, 0, W), and patch tokens (B, N, W)."""
        embed = self.trunk.patch_embed
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        patches = embed.norm(embed.proj(images).flatten(2).transpose(1, 2))  # (B, N, W)
        patches = self.trunk.norm_pre(patches + self.position_embedding(grid))  # (B, N, W)
        return patches[:, :0], patches

    def run_block(self, block: nn.Module, tokens: Tensor, prompt: Tensor | None = None) -> Tensor:
        """One block as timm computes it."""
        return run_whole(block, tokens, prompt)

    def run_dense(self, block: nn.Module, tokens: Tensor, kind: LastBlock) -> Tensor:
        """Not for these towers."""
        raise SettingError(f"last_block {kind} needs one of open_clip's own ViT towers")

    def project(self, class_token: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Final norm, then the tower's own pooling (B, D) and the projected patches (B, N, D)."""
        normed = self.trunk.norm(patches)  # (B, N, W)
        pooled = self.visual.head(self.trunk.forward_head(normed))  # (B, D)
        return pooled, self.visual.head(normed)

    def final_norm(self) -> nn.Module:
        """The trunk's `norm`."""
        return cast(nn.Module, self.trunk.norm)

    def final_matrix(self) -> Tensor:
        """The head's projection, (W, D); the identity when there is none."""
        if len(self.visual.head):
            return cast(Tensor, self.visual.head.proj.weight).T
        return torch.eye(self.width)
