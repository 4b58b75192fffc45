"""The CLIP image tower with visual prompts: images become features of any blocks (paper section 3.2).

Towers are open_clip's own modules, frozen; their blocks are run one by one here, so that prompts can be inserted and every
block can be read. Block numbers count from 1. Letters: B images, N patches, P prompt tokens, W tower width, D joint width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import stochastic_depth

from cascade_clip.config import ProjectionConfig, PromptConfig

Grid = tuple[int, int]


class BlockFeatures(NamedTuple):
    """What a backbone returns."""

    patches: dict[int, Tensor]  # block -> (B, N, D) unit vectors of the joint space, or (B, N, W) hidden states
    class_token: Tensor  # (B, D), unit vectors
    grid: Grid  # rows and columns of patches, N = rows * columns


class Tower(Protocol):
    """What the backbone needs of an image tower, whatever library it comes from."""

    width: int
    joint_width: int
    patch_size: int

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, first to last."""
        ...

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class token (B, 0 or 1, W) and patch tokens (B, N, W) that enter the first block."""
        ...

    def run_block(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """Pass all tokens (B, tokens, W) through one block."""
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


class PositionEmbedding(nn.Module):
    """Learned positions of one grid, resized bilinearly for other grids and kept per grid.

    The cache holds values that follow from the parameter alone; it is emptied when the parameter changes. A parameter made under
    inference mode does not say when it changes: then nothing is kept.
    """

    def __init__(self, positions: Tensor, grid: Grid) -> None:
        """Hold `positions` of shape (rows * columns, W)."""
        super().__init__()
        self.grid = grid
        self.positions = nn.Parameter(positions.detach().clone(), requires_grad=False)
        self._cache: dict[tuple[object, ...], Tensor] = {}

    def forward(self, grid: Grid) -> Tensor:
        """Positions (N, W) of a grid of patches."""
        if grid == self.grid:
            return self.positions  # (N, W)
        if self.positions.is_inference():
            return resize_positions(self.positions, self.grid, grid)
        key = (grid, self.positions.device, self.positions.dtype, self.positions._version, self.positions.data_ptr())
        found = self._cache.get(key)
        if found is None:
            self._cache = {known: value for known, value in self._cache.items() if known[1:] == key[1:]}
            with torch.inference_mode(False), torch.no_grad():
                found = resize_positions(self.positions.clone(), self.grid, grid)
            self._cache[key] = found
        return found


def resize_positions(positions: Tensor, old: Grid, new: Grid) -> Tensor:
    """Resize position embeddings (old rows * columns, W) to another grid: bilinear, align_corners False, no antialias."""
    table = positions.T.reshape(1, -1, *old)  # (1, W, rows, columns)
    table = F.interpolate(table, size=new, mode="bilinear", align_corners=False)
    return table.flatten(2)[0].T.contiguous()  # (N, W)


class OpenClipTower(nn.Module):
    """open_clip's own `VisionTransformer` (OpenAI, LAION, DataComp and MetaCLIP models)."""

    visual: Any

    def __init__(self, visual: Any, position_grid: Grid | None, *, class_embedding_twice: bool) -> None:
        """Take over `visual`; its position embedding is resized once to `position_grid`, unless that is None."""
        super().__init__()
        if getattr(visual, "attn_pool", None) is not None:
            raise ValueError("towers with attentional pooling (CoCa) are not plain ViTs; choose another model")
        if visual.positional_embedding is None:
            raise ValueError("this CLIP carries another model already; load it again with load_clip")
        self.class_embedding_twice = class_embedding_twice
        self.width = int(visual.conv1.out_channels)
        self.joint_width = int(visual.proj.shape[1])
        self.patch_size = int(visual.conv1.kernel_size[0])
        native = cast(Grid, tuple(visual.grid_size))
        table = cast(Tensor, visual.positional_embedding).detach()  # (1 + N, W)
        grid = position_grid or native
        spatial = table[1:] if grid == native else resize_positions(table[1:], native, grid)
        self.position_embedding = PositionEmbedding(spatial, grid)
        self.class_position = nn.Parameter(table[0].clone())  # (W,)
        visual.positional_embedding = None  # held in the two tensors above
        self.visual = visual

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        return cast(nn.ModuleList, self.visual.transformer.resblocks)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class token (B, 1, W) and patch tokens (B, N, W) after the first norm."""
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        patches = self.visual.conv1(images).flatten(2).transpose(1, 2) + self.position_embedding(grid)  # (B, N, W)
        embedding = cast(Tensor, self.visual.class_embedding)  # (W,)
        position = self.class_position + embedding if self.class_embedding_twice else self.class_position
        class_token = (embedding + position).to(patches.dtype).expand(len(images), 1, -1)  # (B, 1, W)
        tokens = self.visual.ln_pre(torch.cat([class_token, patches], dim=1))  # (B, 1 + N, W)
        return tokens[:, :1], tokens[:, 1:]

    def run_block(self, block: Any, tokens: Tensor) -> Tensor:
        """One residual block with torch's fused attention, which is faster than the module's own way at inference."""
        if not isinstance(getattr(block, "attn", None), nn.MultiheadAttention):  # blocks of other designs run as they are
            return cast(Tensor, block(tokens))
        attention = block.attn
        projected = F.linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)  # (B, tokens, 3W)
        query, key, value = projected.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, tokens, W/heads)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)  # (B, tokens, W)
        tokens = tokens + block.ls_1(attention.out_proj(mixed))
        result: Tensor = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))  # (B, tokens, W)
        return result

    def project(self, class_token: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Final norm and projection: image embedding (B, D) and patch embeddings (B, N, D)."""
        if self.visual.pool_type == "avg":
            pooled = patches if self.visual.final_ln_after_pool else self.visual.ln_post(patches)
            class_token = pooled.mean(dim=1, keepdim=True)  # (B, 1, W)
            normed = self.visual.ln_post(class_token) if self.visual.final_ln_after_pool else class_token
        else:
            normed = self.visual.ln_post(class_token)
        projection = self.final_matrix()  # (W, D)
        return (normed @ projection)[:, 0], self.visual.ln_post(patches) @ projection

    def final_norm(self) -> nn.Module:
        """CLIP's `ln_post`."""
        return cast(nn.Module, self.visual.ln_post)

    def final_matrix(self) -> Tensor:
        """CLIP's `proj`, (W, D)."""
        return cast(Tensor, self.visual.proj)


class TimmTower(nn.Module):
    """A timm ViT inside open_clip, such as SigLIP's: no class token, the image embedding is pooled from the patches."""

    visual: Any

    def __init__(self, visual: Any, position_grid: Grid | None) -> None:
        """Take over open_clip's `TimmModel`; its position embedding is resized once to `position_grid`, unless that is None."""
        super().__init__()
        trunk = visual.trunk
        if getattr(trunk, "pos_embed", None) is None or getattr(trunk, "rope", None) is not None:
            raise ValueError(f"{type(trunk).__name__} has no learned position embedding; only plain timm ViTs are supported")
        if trunk.num_prefix_tokens:
            raise ValueError(f"timm trunks with {trunk.num_prefix_tokens} prefix tokens are not supported; choose a SigLIP model")
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

    def run_block(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """One block as timm computes it."""
        return cast(Tensor, block(tokens))

    def project(self, class_token: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Final norm, then the tower's own pooling (B, D) and the projection of the patches (B, N, D)."""
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


class VisualPrompts(nn.Module):
    """Prompt tokens before the first block (shallow) or before every block (deep), through one shared linear map."""

    def __init__(self, config: PromptConfig, blocks: int, width: int, patch_size: int) -> None:
        """Start uniformly within the paper's range; the linear map starts from He's normal distribution."""
        super().__init__()
        depth = blocks if config.kind == "deep" else 1
        bound = math.sqrt(6 / (3 * patch_size**2 + width))
        self.tokens = nn.Parameter(torch.empty(depth, config.tokens, width).uniform_(-bound, bound))
        self.projection = nn.Linear(width, width)
        nn.init.kaiming_normal_(self.projection.weight, mode="fan_out")
        self.dropout = nn.Dropout(config.dropout)

    def before(self, block: int, batch: int) -> Tensor | None:
        """Tokens (B, P, W) that enter block `block`, or None where the previous ones go on."""
        if block > len(self.tokens):
            return None
        projected = self.projection(self.tokens[block - 1])  # (P, W)
        tokens: Tensor = self.dropout(projected.expand(batch, -1, -1))  # (B, P, W), a fresh mask per image
        return tokens


class TapProjections(nn.Module):
    """Norm and matrix that take each tapped middle block to the joint space."""

    def __init__(self, blocks: Sequence[int], tower: Tower, config: ProjectionConfig) -> None:
        """Start at random or from CLIP's own last norm and projection, frozen unless `config.trained`."""
        super().__init__()
        self.blocks = tuple(blocks)
        self.norms = nn.ModuleList(nn.LayerNorm(tower.width) for _ in blocks)
        self.matrices = nn.Parameter(torch.randn(len(blocks), tower.width, tower.joint_width) * tower.width**-0.5)
        if config.init == "clip":
            with torch.no_grad():
                self.matrices.copy_(tower.final_matrix().expand_as(self.matrices))
            for norm in cast(Iterable[nn.LayerNorm], self.norms):
                norm.load_state_dict(tower.final_norm().state_dict())
                norm.eps = cast(nn.LayerNorm, tower.final_norm()).eps
        self.requires_grad_(config.trained)

    def forward(self, block: int, patches: Tensor) -> Tensor:
        """Project patches (B, N, W) of a tapped block to (B, N, D)."""
        index = self.blocks.index(block)
        projected: Tensor = self.norms[index](patches) @ self.matrices[index]  # (B, N, D)
        return projected


class ImageBackbone(nn.Module):
    """A frozen tower, its prompts, and the projections of the tapped blocks."""

    def __init__(self, tower: Tower, prompts: VisualPrompts | None, taps: TapProjections | None, drop_path: float = 0.0) -> None:
        """Join the parts; the tower is frozen here. `taps` is None when no block but the last is used."""
        super().__init__()
        module = cast(nn.Module, tower)
        module.requires_grad_(False)
        self.tower = module
        self.prompts = prompts
        self.prompt_norm = None if prompts is None else nn.LayerNorm(tower.width, eps=1e-6)
        self.taps = taps
        self.depth = len(tower.blocks)
        self.drop_path = drop_path

    @property
    def patch_size(self) -> int:
        """Side of one image patch, in pixels."""
        return cast(Tower, self.tower).patch_size

    @property
    def joint_width(self) -> int:
        """Width D shared by patches and class names."""
        return cast(Tower, self.tower).joint_width

    def forward(self, images: Tensor, blocks: Iterable[int], *, projected: bool = True) -> BlockFeatures:
        """Features of `blocks` (counted from 1) for normalised images (B, 3, H, W).

        Sides that the patch size does not divide are padded right and bottom with zeros. With `projected` the patches are unit
        vectors of the joint space (tapped blocks and the last one only); without it they are the hidden states of any block.

        Raises:
            ValueError: images of another shape, a block that does not exist or that has no projection.
        """
        wanted = set(blocks)
        self._check_blocks(wanted, projected=projected)
        tower = cast(Tower, self.tower)
        images = pad_to_multiple(images, tower.patch_size)
        grid = (images.shape[-2] // tower.patch_size, images.shape[-1] // tower.patch_size)
        class_token, patches = tower.embed(images)  # (B, 0 or 1, W), (B, N, W)
        prefix, start = class_token.shape[1], class_token.shape[1]
        tokens = torch.cat([class_token, patches], dim=1)  # (B, prefix + N, W)
        found: dict[int, Tensor] = {}
        for number, block in enumerate(tower.blocks, start=1):
            prompt = None if self.prompts is None else self.prompts.before(number, len(images))
            if prompt is not None:
                tokens = torch.cat([tokens[:, :prefix], prompt.to(tokens.dtype), tokens[:, start:]], dim=1)  # (B, prefix + P + N, W)
                start = prefix + prompt.shape[1]
            entering, tokens = tokens, tower.run_block(block, tokens)
            if self.drop_path and self.training:
                chance = self.drop_path * number / self.depth
                tokens = entering + stochastic_depth(tokens - entering, chance, mode="row")  # (B, prefix + P + N, W)
            if number in wanted and not projected:
                found[number] = tokens[:, start:]  # (B, N, W)
            elif self.taps is not None and number in wanted and number < self.depth:
                found[number] = F.normalize(self.taps(number, self._norm(tokens[:, start:])).float(), dim=-1)  # (B, N, D)
        embedding, last = tower.project(self._norm(tokens[:, :prefix]), self._norm(tokens[:, start:]))  # (B, D), (B, N, D)
        if self.depth in wanted and projected:
            found[self.depth] = F.normalize(last.float(), dim=-1)  # (B, N, D)
        return BlockFeatures(found, F.normalize(embedding.float(), dim=-1), grid)

    def _norm(self, tokens: Tensor) -> Tensor:
        return tokens if self.prompt_norm is None else self.prompt_norm(tokens)

    def _check_blocks(self, wanted: set[int], *, projected: bool) -> None:
        outside = sorted(block for block in wanted if not 1 <= block <= self.depth)
        if outside:
            raise ValueError(f"blocks {outside} do not exist: this tower has blocks 1 to {self.depth}")
        known = [*(self.taps.blocks if self.taps is not None else ()), self.depth]
        missing = sorted(wanted.difference(known)) if projected else []
        if missing:
            raise ValueError(f"blocks {missing} have no projection (those of {known} do); ask for projected=False")


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pad (B, 3, H, W) right and bottom with zeros to sides that `multiple` divides."""
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images must have shape (B, 3, H, W) with no empty side, got {tuple(images.shape)}")
    bottom, right = -images.shape[-2] % multiple, -images.shape[-1] % multiple
    return F.pad(images, (0, right, 0, bottom)) if bottom or right else images
