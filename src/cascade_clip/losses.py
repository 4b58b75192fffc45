"""Focal and dice loss on mask logits at patch resolution, computed in chunks of classes (paper Eq. 8).

The full-size mask of every class never exists at once: each chunk is upsampled, its losses and their exact gradient with
respect to the small logits are computed, and the chunk is dropped. Memory does not grow with the number of classes.
Letters: B images, C classes, h x w patches, H x W pixels, c classes of a chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_clip.config import LossConfig
from cascade_clip.vocabulary import IGNORED


class MaskLoss(NamedTuple):
    """Loss sums before their division by the number of masks M."""

    total: Tensor  # (), weighted sum; carries the gradient
    focal: Tensor  # (), weighted, no gradient
    dice: Tensor  # (), weighted, no gradient
    masks: Tensor  # (), number of (image, class) pairs present


def upsample(logits: Tensor, patch_size: int, size: tuple[int, int]) -> Tensor:
    """Mask logits (B, C, h, w) as (B, C, H, W): bilinear, align_corners False; the padding of odd sizes is cut off."""
    full = (logits.shape[-2] * patch_size, logits.shape[-1] * patch_size)
    return F.interpolate(logits, size=full, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]


def present_pairs(labels: Tensor, classes: int) -> Tensor:
    """Which class occurs in which image: bool (B, C) for labels (B, H, W)."""
    counts = torch.zeros(len(labels), classes + 1, dtype=torch.int64, device=labels.device)
    flat = labels.flatten(1)  # (B, H*W)
    counts.scatter_add_(1, torch.where(flat == IGNORED, classes, flat), torch.ones_like(flat))
    return counts[:, :classes] > 0  # (B, C)


def mask_loss(logits: Tensor, labels: Tensor, patch_size: int, config: LossConfig) -> MaskLoss:
    """Focal and dice loss sums of mask logits (B, C, h, w) for labels (B, H, W).

    Labels are class indices; IGNORED pixels are negatives of every class (`config.ignored: negative`, as published) or count
    nowhere (`masked`). Divide the sums by M = `masks`, at least 1, averaged over ranks. The gradient is exact; computing it twice
    (double backward) is not supported.

    Raises:
        ValueError: labels of another shape or outside 0..C-1.
    """
    _check_labels(logits, labels, patch_size)
    present = present_pairs(labels, logits.shape[1])  # (B, C)
    total, focal, dice = _ChunkedMaskLoss.apply(logits, labels, present, patch_size, config)
    return MaskLoss(total, focal, dice, present.sum().float())


def _check_labels(logits: Tensor, labels: Tensor, patch_size: int) -> None:
    batch, classes, rows, columns = logits.shape
    fits = labels.ndim == 3 and labels.shape[0] == batch
    fits = fits and all(0 < side <= cells * patch_size for side, cells in zip(labels.shape[1:], (rows, columns), strict=True))
    if not fits:
        raise ValueError(f"labels must have shape ({batch}, H, W) that fits the {rows} x {columns} grid, got {tuple(labels.shape)}")
    low, high = int(labels.min()), int(labels.max())
    if low < IGNORED or high >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1} or be {IGNORED} (ignored), got values from {low} to {high}")


class _ChunkedMaskLoss(torch.autograd.Function):
    """The loss and its gradient in one pass over chunks of classes."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, present: Tensor, patch_size: int, config: LossConfig
    ) -> tuple[Tensor, Tensor, Tensor]:
        wants_gradient = logits.requires_grad
        gradients: list[Tensor] = []
        focal, dice = logits.new_zeros((), dtype=torch.float32), logits.new_zeros((), dtype=torch.float32)
        for start in range(0, logits.shape[1], config.class_chunk):
            stop = min(start + config.class_chunk, logits.shape[1])
            with torch.enable_grad(), torch.autocast(logits.device.type, enabled=False):
                chunk = logits[:, start:stop].detach().float().requires_grad_(wants_gradient)  # (B, c, h, w)
                masks = upsample(chunk, patch_size, (labels.shape[-2], labels.shape[-1]))  # (B, c, H, W)
                classes = torch.arange(start, stop, device=labels.device)
                chunk_focal, chunk_dice = dense_losses(masks, labels, classes, present[:, start:stop], config)
                if wants_gradient:
                    gradients.append(torch.autograd.grad(chunk_focal + chunk_dice, chunk)[0])  # (B, c, h, w)
            focal, dice = focal + chunk_focal.detach(), dice + chunk_dice.detach()
        if wants_gradient:
            ctx.save_for_backward(torch.cat(gradients, dim=1).to(logits.dtype))
        ctx.mark_non_differentiable(focal, dice)
        return focal + dice, focal, dice

    @staticmethod
    def backward(ctx: Any, total: Tensor, focal: Tensor, dice: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return total * gradient, None, None, None, None


def dense_losses(masks: Tensor, labels: Tensor, classes: Tensor, present: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """Weighted focal and dice sums of full-size mask logits (B, c, H, W) of the given class indices (c,).

    Focal: mean over pixels, sum over (image, class). Dice: sum over the pairs marked in `present` (B, c).
    """
    targets = (labels[:, None] == classes[:, None, None]).float()  # (B, c, H, W)
    scores = masks.sigmoid()  # (B, c, H, W)
    crossentropy = F.binary_cross_entropy_with_logits(masks, targets, reduction="none")  # (B, c, H, W)
    wrong = scores * (1 - targets) + (1 - scores) * targets  # 1 - p of the true answer
    balance = config.alpha * targets + (1 - config.alpha) * (1 - targets)
    focal = balance * wrong**config.gamma * crossentropy  # (B, c, H, W)
    if config.ignored == "masked":
        counted = (labels != IGNORED).float()[:, None]  # (B, 1, H, W)
        pixels = counted.sum(dim=(-2, -1)).clamp(min=1)  # (B, 1)
        focal_sum = ((focal * counted).sum(dim=(-2, -1)) / pixels).sum()
        scores = scores * counted
    else:
        focal_sum = focal.mean(dim=(-2, -1)).sum()
    overlap = (scores * targets).sum(dim=(-2, -1))  # (B, c)
    size = scores.sum(dim=(-2, -1)) + targets.sum(dim=(-2, -1))  # (B, c)
    dice = 1 - (2 * overlap + 1) / (size + 1)  # (B, c)
    return config.focal * focal_sum, config.dice * (dice * present).sum()
