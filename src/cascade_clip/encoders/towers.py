"""A common interface for CLIP image towers: tokens in, blocks one by one, features out.

Towers are open_clip's own modules, frozen; their blocks are run one by one, so that prompts can be
inserted and every block can be read. Letters: B images, N patches, W tower width, D joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast, get_args

import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_clip.config import LastBlock, ModelConfig, find_part, names_of
from cascade_clip.encoders.positions import Grid, PositionEmbedding, resize_positions
from cascade_clip.errors import SettingError
from cascade_clip.ops import attend

QUICK = 1.702
"""OpenAI's x * sigmoid(QUICK * x) is silu(QUICK * x) / QUICK: one pass instead of three."""


class Tower(Protocol):
    """What the backbone needs of an image tower, whatever library it comes from."""

    width: int
    joint_width: int
    patch_size: int
    class_tokens: int
    """1, or 0 for a tower without a class token."""
    last_blocks: tuple[LastBlock, ...]
    """Ways of making patch features in the last block that this tower knows."""
    position_embedding: PositionEmbedding

    @classmethod
    def adapt(cls, visual: nn.Module, config: ModelConfig) -> Tower | None:
        """Take over an image tower of open_clip; None for one that this class is not made for."""
        ...

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, first to last."""
        ...

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class token (B, 0 or 1, W) and patch tokens (B, N, W) that enter the first block."""
        ...

    def run_block(self, block: nn.Module, tokens: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Pass tokens (B, tokens, W) through a block; prompts (B, P, W) are only attended to."""
        ...

    def run_dense(self, block: nn.Module, tokens: Tensor, kind: LastBlock) -> Tensor:
        """Pass all tokens through one block in a way that keeps every patch in its place."""
        ...

    def project(self, class_token: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Final norm and projection: image embedding (B, D) and patch embeddings (B, N, D)."""
        ...

    def final_norm(self) -> nn.Module:
        """The norm after the last block."""
        ...

    def final_matrix(self) -> Tensor:
        """The projection into the joint space as a matrix (W, D)."""
        ...


def build_tower(visual: nn.Module, config: ModelConfig) -> Tower:
    """Adapt one of open_clip's image towers by the first class that is made for it.

    Raises:
        SettingError: there is none.
    """
    for name in reversed(names_of("towers")):  # those of other packages first
        tower = cast("type[Tower]", find_part("towers", name)).adapt(visual, config)
        if tower is not None:
            return tower
    raise SettingError(
        f"{type(visual).__name__} is not a plain ViT; choose one such as ViT-B-16-quickgelu"
    )


def run_whole(block: nn.Module, tokens: Tensor, prompt: Tensor | None) -> Tensor:
    """Pass tokens (B, tokens, W) through a block beside prompts (B, P, W), dropped afterwards."""
    if prompt is None:
        return cast(Tensor, block(tokens))
    return cast(Tensor, block(torch.cat([prompt, tokens], dim=1)))[:, prompt.shape[1] :]


def split_heads(projected: Tensor, parts: int, heads: int) -> Sequence[Tensor]:
    """Projections (B, tokens, parts * W) as `parts` tensors (B, heads, tokens, W/heads)."""
    split: Tensor = projected.unflatten(-1, (parts, heads, -1))  # (B, tokens, parts, heads, ...)
    return list(split.permute(2, 0, 3, 1, 4))


class OpenClipTower(nn.Module):
    """open_clip's own `VisionTransformer` (OpenAI, LAION, DataComp and MetaCLIP models)."""

    class_tokens = 1
    last_blocks = get_args(LastBlock)
    visual: Any

    def __init__(
        self, visual: Any, position_grid: Grid | None, *, class_embedding_twice: bool
    ) -> None:
        """Take over `visual`, its positions resized once to `position_grid` unless None."""
        super().__init__()
        if getattr(visual, "attn_pool", None) is not None:
            raise SettingError(
                "towers with attentional pooling (CoCa) are not plain ViTs; choose another model"
            )
        if visual.positional_embedding is None:
            raise SettingError("this CLIP carries a model already; load it again with load_clip")
        self.class_embedding_twice = class_embedding_twice
        self.width = int(visual.conv1.out_channels)
        self.joint_width = int(visual.proj.shape[1])
        self.patch_size = int(visual.conv1.kernel_size[0])
        native = cast(Grid, tuple(visual.grid_size))
        table = cast(Tensor, visual.positional_embedding).detach()  # (1 + N, W)
        grid = position_grid or native
        spatial = table[1:] if grid == native else resize_positions(table[1:], native, grid)
        self._casts: dict[int, tuple[tuple[object, ...], Tensor]] = {}
        self.position_embedding = PositionEmbedding(spatial, grid)
        self.class_position = nn.Parameter(table[0].clone())  # (W,)
        visual.positional_embedding = None  # held in the two tensors above
        self.visual = visual

    @classmethod
    def adapt(cls, visual: nn.Module, config: ModelConfig) -> OpenClipTower | None:
        """Take over a `VisionTransformer`."""
        if not (hasattr(visual, "conv1") and hasattr(visual, "class_embedding")):
            return None
        twice = config.class_embedding_twice
        return cls(visual, config.position_grid, class_embedding_twice=twice)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        return cast(nn.ModuleList, self.visual.transformer.resblocks)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class token (B, 1, W) and patch tokens (B, N, W) after the first norm."""
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        patches = self.visual.conv1(images).flatten(2).transpose(1, 2)
        patches = patches + self.position_embedding(grid)  # (B, N, W)
        embedding = cast(Tensor, self.visual.class_embedding)  # (W,)
        position: Tensor = self.class_position  # (W,)
        if self.class_embedding_twice:
            position = position + embedding
        # (B, 1, W)
        class_token = (embedding + position).to(patches.dtype).expand(images.shape[0], 1, -1)
        tokens = self.visual.ln_pre(torch.cat([class_token, patches], dim=1))  # (B, 1 + N, W)
        return tokens[:, :1], tokens[:, 1:]

    def run_block(self, block: Any, tokens: Tensor, prompt: Tensor | None = None) -> Tensor:
        """One residual block with fused attention; prompts (B, P, W) give keys and values only."""
        # blocks of other designs run as they are
        if not isinstance(getattr(block, "attn", None), nn.MultiheadAttention):
            return run_whole(block, tokens, prompt)
        # (B, heads, tokens, W/heads), twice (B, heads, P + tokens, ...)
        query, key, value = self._attention_inputs(block, tokens, prompt)
        mixed = attend(query, key, value).transpose(1, 2).flatten(2)  # (B, tokens, W)
        tokens = tokens + block.ls_1(self._linear(block.attn.out_proj, mixed))
        # (B, tokens, W)
        return cast(Tensor, tokens + block.ls_2(self._feedforward(block.mlp, block.ln_2(tokens))))

    def run_dense(self, block: Any, tokens: Tensor, kind: LastBlock) -> Tensor:
        """One block whose attention keeps every patch in place (see `ModelConfig.last_block`)."""
        attention = block.attn
        # each (B, heads, tokens, W/heads)
        query, key, value = self._attention_inputs(block, tokens)
        mixed = value
        if kind != "maskclip":
            mixed = F.scaled_dot_product_attention(query, query, value)
        if kind == "sclip":
            mixed = mixed + F.scaled_dot_product_attention(key, key, value)
        attended = attention.out_proj(mixed.transpose(1, 2).flatten(2))  # (B, tokens, W)
        if kind == "clearclip":
            return cast(Tensor, attended)
        tokens = tokens + block.ls_1(attended)
        return cast(Tensor, tokens + block.ls_2(block.mlp(block.ln_2(tokens))))

    def _attention_inputs(
        self, block: Any, tokens: Tensor, prompt: Tensor | None = None
    ) -> Sequence[Tensor]:
        """Queries of tokens; keys, values of prompts and tokens; all (B, heads, .., W/heads)."""
        attention, normed = block.attn, block.ln_1(tokens)
        weight, bias = self._short(attention.in_proj_weight), self._short(attention.in_proj_bias)
        if prompt is None:
            return split_heads(F.linear(normed, weight, bias), 3, attention.num_heads)
        query = F.linear(normed, weight[: self.width], bias[: self.width])  # (B, tokens, W)
        compared = torch.cat([block.ln_1(prompt), normed], dim=1)  # (B, P + tokens, W)
        others = F.linear(compared, weight[self.width :], bias[self.width :])  # (B, P + tokens, 2W)
        heads = attention.num_heads
        return [*split_heads(query, 1, heads), *split_heads(others, 2, heads)]

    def _feedforward(self, mlp: Any, tokens: Tensor) -> Tensor:
        """The block's perceptron (B, tokens, W); OpenAI's activation in one pass."""
        if not isinstance(getattr(mlp, "gelu", None), QuickGELU):
            return cast(Tensor, mlp(tokens))
        hidden = F.silu(self._linear(mlp.c_fc, tokens).mul_(QUICK))  # (B, tokens, 4W)
        product = F.linear(hidden, self._short(mlp.c_proj.weight))
        return cast(Tensor, product / QUICK + mlp.c_proj.bias)

    def _linear(self, layer: Any, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self._short(layer.weight), self._short(layer.bias))

    def _short(self, parameter: Tensor) -> Tensor:
        """A frozen parameter in autocast's number format, cast once; without autocast as it is."""
        device = parameter.device.type
        if torch.compiler.is_compiling() or not torch.is_autocast_enabled(device):
            return parameter
        if parameter.requires_grad or parameter.is_inference():
            return parameter
        dtype = torch.get_autocast_dtype(device)
        key = (dtype, parameter.device, parameter._version, parameter.data_ptr())
        known = self._casts.get(id(parameter))
        if known is None or known[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                known = (key, parameter.detach().to(dtype))
            self._casts[id(parameter)] = known
        return known[1]

    def project(self, class_token: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Final norm and projection: image embedding (B, D) and patch embeddings (B, N, D)."""
        norm, projection = self.visual.ln_post, self.final_matrix()  # ..., (W, D)
        if self.visual.pool_type != "avg":
            normed = norm(class_token)  # (B, 1, W)
        elif self.visual.final_ln_after_pool:
            normed = norm(patches.mean(dim=1, keepdim=True))
        else:
            normed = norm(patches).mean(dim=1, keepdim=True)
        return (normed @ projection)[:, 0], norm(patches) @ projection

    def final_norm(self) -> nn.Module:
        """CLIP's `ln_post`."""
        return cast(nn.Module, self.visual.ln_post)

    def final_matrix(self) -> Tensor:
        """CLIP's `proj`, (W, D)."""
        return cast(Tensor, self.visual.proj)
