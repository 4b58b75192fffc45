"""The CLIP image tower with visual prompts: images become features of any blocks (section 3.2).

Towers are open_clip's own modules, frozen; their blocks are run one by one here, so that prompts
can be inserted and every block can be read. Block numbers count from 1. Letters: B images, N
patches, P prompt tokens, W tower width, D joint width.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import stochastic_depth

from cascade_clip.config import LastBlock, ProjectionConfig, PromptConfig
from cascade_clip.encoders import Grid, Tower
from cascade_clip.errors import SettingError
from cascade_clip.models.spectral_prompts import SpectralFilter


class BlockFeatures(NamedTuple):
    """What a backbone returns."""

    # block -> (B, N, D) unit vectors of the joint space, or (B, N, W) hidden states
    patches: dict[int, Tensor]
    class_token: Tensor  # (B, D), unit vectors
    grid: Grid  # rows and columns of patches, N = rows * columns


class VisualPrompts(nn.Module):
    """Prompt tokens before block 1 (shallow) or every block (deep), through one linear map."""

    def __init__(self, config: PromptConfig, blocks: int, width: int, patch_size: int) -> None:
        """Start uniformly within the paper's range, the linear map from He's normal."""
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
        # (B, P, W), a fresh mask per image
        tokens: Tensor = self.dropout(projected.expand(batch, -1, -1))
        return tokens


class TapProjections(nn.Module):
    """Norm and matrix that take each tapped middle block to the joint space."""

    def __init__(self, blocks: Sequence[int], tower: Tower, config: ProjectionConfig) -> None:
        """Start at random or from CLIP's last norm and matrix, frozen unless `config.trained`."""
        super().__init__()
        self.blocks = tuple(blocks)
        self.norms = nn.ModuleList(nn.LayerNorm(tower.width) for _ in blocks)
        self.matrices = nn.Parameter(
            torch.randn(len(blocks), tower.width, tower.joint_width) * tower.width**-0.5
        )
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

    def __init__(
        self,
        tower: Tower,
        prompts: VisualPrompts | None,
        taps: TapProjections | None,
        drop_path: float = 0.0,
        last_block: LastBlock = "standard",
        spectral: SpectralFilter | None = None,
    ) -> None:
        """Join the parts and freeze the tower; `taps` is None when only the last block is used."""
        super().__init__()
        if last_block not in tower.last_blocks:
            raise SettingError(
                f"model.last_block {last_block} needs one of open_clip's own ViT towers, not"
                f" {type(tower).__name__}"
            )
        self.last_block = last_block
        module = cast(nn.Module, tower)
        module.requires_grad_(False)
        self.tower = module
        self.prompts = prompts
        self.prompt_norm = None if prompts is None else nn.LayerNorm(tower.width, eps=1e-6)
        self.taps = taps
        self.spectral = spectral
        self.depth = len(tower.blocks)
        self.drop_path = drop_path
        self.gradient_checkpointing = False
        """Whether blocks with a gradient run again in the backward pass, which saves memory."""
        self.remake_taps = True
        """Whether features of middle blocks are."""

    @property
    def patch_size(self) -> int:
        """Side of one image patch, in pixels."""
        return cast(Tower, self.tower).patch_size

    @property
    def joint_width(self) -> int:
        """Width D shared by patches and class names."""
        return cast(Tower, self.tower).joint_width

    def forward(
        self, images: Tensor, blocks: Iterable[int], *, projected: bool = True
    ) -> BlockFeatures:
        """Features of `blocks` (counted from 1) for normalised images (B, 3, H, W).

        Sides that the patch size does not divide are padded right and bottom with zeros. With
        `projected` the patches are unit vectors of the joint space (tapped blocks and the last one
        only); without it they are the hidden states of any block.

        Raises:
            ValueError: images of another shape, a block that does not exist or that has no
                projection.
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
            tokens = self._add_spectral(number, tokens, prefix, start, grid)
            prompt = None if self.prompts is None else self.prompts.before(number, images.shape[0])
            if prompt is not None:
                prompt = prompt.to(tokens.dtype)  # (B, P, W)
                if not self._replaced_after(number):
                    # (B, prefix + P + N, W)
                    tokens = torch.cat([tokens[:, :prefix], prompt, tokens[:, start:]], dim=1)
                    start, prompt = prefix + prompt.shape[1], None
            entering = tokens
            learned = tokens.requires_grad or (prompt is not None and prompt.requires_grad)
            if self.gradient_checkpointing and learned:  # from the first prompt on
                tokens = checkpoint(tower.run_block, block, tokens, prompt, use_reentrant=False)
            else:
                tokens = tower.run_block(block, tokens, prompt)
            if self.drop_path and self.training:
                chance = self.drop_path * number / self.depth
                # (B, prefix + P + N, W)
                tokens = entering + stochastic_depth(tokens - entering, chance, mode="row")
            if number in wanted and not projected:
                found[number] = tokens[:, start:]  # (B, N, W)
            elif self.taps is not None and number in wanted and number < self.depth:
                middle = tokens[:, start:]  # (B, N, W)
                if tokens.requires_grad and self.remake_taps:
                    # a hundredth of a step's time, for 5 MiB less per tap and image
                    found[number] = checkpoint(
                        self._tap, number, middle, use_reentrant=False, preserve_rng_state=False
                    )
                else:
                    found[number] = self._tap(number, middle)
        plain = self.last_block == "standard"
        dense = tokens if plain else tower.run_dense(tower.blocks[-1], entering, self.last_block)
        class_token, patches = self._norm(tokens[:, :prefix]), self._norm(dense[:, start:])
        embedding, last = tower.project(class_token, patches)  # (B, D), (B, N, D)
        if self.depth in wanted and projected:
            found[self.depth] = F.normalize(last.float(), dim=-1)  # (B, N, D)
        return BlockFeatures(found, F.normalize(embedding.float(), dim=-1), grid)

    def _tap(self, block: int, patches: Tensor) -> Tensor:
        """Unit features (B, N, D) of patches (B, N, W) after a middle block."""
        assert self.taps is not None
        return F.normalize(self.taps(block, self._norm(patches)).float(), dim=-1)

    def _add_spectral(
        self, block: int, tokens: Tensor, prefix: int, start: int, grid: Grid
    ) -> Tensor:
        """Tokens that enter a block, with spectral prompts on the patches from `start` on."""
        if self.spectral is None or block not in self.spectral.blocks:
            return tokens
        return torch.cat(
            [tokens[:, :start], self.spectral(tokens[:, start:], tokens[:, :prefix], grid)], dim=1
        )

    def _replaced_after(self, block: int) -> bool:
        """Whether nothing reads what becomes of prompt tokens: fresh ones or no block follow."""
        assert self.prompts is not None
        return block < len(self.prompts.tokens) or (
            block == self.depth and self.last_block == "standard"
        )

    def _norm(self, tokens: Tensor) -> Tensor:
        return tokens if self.prompt_norm is None else self.prompt_norm(tokens)

    def _check_blocks(self, wanted: set[int], *, projected: bool) -> None:
        outside = sorted(block for block in wanted if not 1 <= block <= self.depth)
        if outside:
            raise SettingError(f"blocks {outside} do not exist: the tower has 1 to {self.depth}")
        known = [*(self.taps.blocks if self.taps is not None else ()), self.depth]
        missing = sorted(wanted.difference(known)) if projected else []
        if missing:
            raise SettingError(
                f"blocks {missing} have no projection ({known} do); ask for projected=False"
            )


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pad (B, 3, H, W) right and bottom with zeros to sides that `multiple` divides."""
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(
            f"images must have shape (B, 3, H, W) with no empty side, got {tuple(images.shape)}"
        )
    bottom, right = -images.shape[-2] % multiple, -images.shape[-1] % multiple
    return F.pad(images, (0, right, 0, bottom)) if bottom or right else images
