"""What a training step minimises: sums over masks (focal, dice) and means over images (1 - SSIM,
softmax cross-entropy).

The terms over images go through chunks of classes as those over masks do, so that full-size masks
of every class never exist at once. Letters: B images, C classes, h x w patches, H x W pixels, c
classes of a chunk.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cascade_clip.config import LossConfig
from cascade_clip.losses.mask_losses import mask_loss, upsample
from cascade_clip.ops import similarity_map
from cascade_clip.vocabulary import IGNORED


class StepLoss(NamedTuple):
    """Weighted loss sums before their division by the number of masks M; each ()."""

    total: Tensor
    """Carries the gradient."""
    focal: Tensor
    dice: Tensor
    ssim: Tensor
    cross_entropy: Tensor
    auxiliary: Tensor
    """Of every single stage, all terms together."""
    masks: Tensor
    """M, the number of (image, class) pairs present."""


def step_loss(
    logits: Tensor,
    labels: Tensor,
    patch_size: int,
    config: LossConfig,
    masks_per_image: Tensor | None = None,
    stages: Sequence[Tensor] = (),
) -> StepLoss:
    """Sums of losses of mask logits (B, C, h, w), labels (B, H, W), to divide by M (`mask_loss`).

    `stages` are the mask logits of every stage, each (B, C, h, w): the same loss on each comes on
    top, times `config.auxiliary`. Terms over images are multiplied by `masks_per_image`, M / B of
    the whole step, so that the division leaves their mean over images. Without it M and B are those
    of these images.
    """
    if stages:
        whole = step_loss(logits, labels, patch_size, config, masks_per_image)
        each = [
            step_loss(masks, labels, patch_size, config, masks_per_image).total for masks in stages
        ]
        extra = config.auxiliary * torch.stack(each).sum()
        return whole._replace(total=whole.total + extra, auxiliary=extra.detach())
    sums = mask_loss(logits, labels, patch_size, config)
    none = torch.zeros_like(sums.focal)
    if not config.per_image:
        return StepLoss(sums.total, sums.focal, sums.dice, none, none, none, sums.masks)
    scale = sums.masks.clamp(min=1) / len(labels) if masks_per_image is None else masks_per_image
    terms = image_terms(logits, labels, patch_size, config) * scale  # (2,)
    ssim, cross_entropy = terms.detach()
    return StepLoss(
        sums.total + terms.sum(), sums.focal, sums.dice, ssim, cross_entropy, none, sums.masks
    )


def image_terms(logits: Tensor, labels: Tensor, patch_size: int, config: LossConfig) -> Tensor:
    """Weighted sums over images, (2,), of 1 - SSIM and of the softmax cross-entropy, for mask
    logits (B, C, h, w) and labels (B, H, W).

    SSIM compares each class's full-size logits (or scores) with its 0/1 map; its mean is over
    classes and pixels. An IGNORED pixel is a 0 in every map; with `ignored: masked` the mean leaves
    it out. The cross-entropy is the mean over an image's labelled pixels. The gradient is exact;
    computing it twice is not supported.
    """
    terms: Tensor = _ImageTerms.apply(logits, labels, patch_size, config)
    return terms


class _ImageTerms(torch.autograd.Function):
    """Both terms and their gradients in one pass over images and chunks of classes."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, patch_size: int, config: LossConfig
    ) -> Tensor:
        maps = logits.detach().float()  # (B, C, h, w)
        gradients = maps.new_zeros(2, *maps.shape)
        sums = maps.new_zeros(2)
        with torch.autocast(logits.device.type, enabled=False):
            for image in range(len(maps)):
                if config.ssim:
                    sums[0] += config.ssim * _one_minus_ssim(
                        maps[image], labels[image], patch_size, config, gradients[0, image]
                    )
                if config.cross_entropy:
                    sums[1] += config.cross_entropy * _cross_entropy(
                        maps[image], labels[image], patch_size, config, gradients[1, image]
                    )
        if logits.requires_grad:
            ctx.save_for_backward(config.ssim * gradients[0], config.cross_entropy * gradients[1])
        return sums

    @staticmethod
    def backward(ctx: Any, terms: Tensor) -> tuple[Tensor | None, ...]:
        ssim, cross_entropy = ctx.saved_tensors
        return terms[0] * ssim + terms[1] * cross_entropy, None, None, None


def _one_minus_ssim(
    maps: Tensor, labels: Tensor, patch_size: int, config: LossConfig, gradient: Tensor
) -> Tensor:
    """1 - SSIM, (), of one image's logits (C, h, w); writes the derivative into `gradient`."""
    counted = (labels != IGNORED) | (config.ignored != "masked")  # (H, W)
    weights = counted / (len(maps) * counted.sum().clamp(min=1))  # (H, W)
    total = weights.sum() * len(maps)
    present = torch.zeros(len(maps), dtype=torch.bool, device=maps.device)
    present[labels[labels != IGNORED]] = True
    for occurs in (True, False):  # the maps of absent classes are zeros
        indices = (present == occurs).nonzero()[:, 0]
        for part in indices.split(config.class_chunk) if len(indices) else ():
            target = (labels == part[:, None, None]).float() if occurs else None  # (c, H, W)
            with torch.enable_grad():
                leaf = maps[part].requires_grad_()  # (c, h, w)
                # (c, H, W)
                masks = upsample(leaf[None], patch_size, (labels.shape[0], labels.shape[1]))[0]
                masks = masks.sigmoid() if config.ssim_on == "sigmoid" else masks
                found = (similarity_map(masks, target) * weights).sum()
            gradient[part] = -torch.autograd.grad(found, leaf)[0]
            total = total - found.detach()
    return total


def _cross_entropy(
    maps: Tensor, labels: Tensor, patch_size: int, config: LossConfig, gradient: Tensor
) -> Tensor:
    """Mean softmax cross-entropy, (), over labelled pixels; writes into `gradient`."""
    size = (labels.shape[0], labels.shape[1])
    parts = torch.arange(len(maps), device=maps.device).split(config.class_chunk)
    own = torch.zeros_like(labels, dtype=maps.dtype)  # (H, W)
    normaliser = torch.full_like(own, -torch.inf)  # (H, W)
    for part in parts:
        masks = upsample(maps[None, part], patch_size, size)[0]  # (c, H, W)
        normaliser = torch.logaddexp(normaliser, masks.logsumexp(dim=0))
        own += (masks * (labels == part[:, None, None])).sum(dim=0)
    weights = (labels != IGNORED) / (labels != IGNORED).sum().clamp(min=1)  # (H, W)
    for part in parts:
        with torch.enable_grad():
            leaf = maps[part].requires_grad_()  # (c, h, w)
            masks = upsample(leaf[None], patch_size, size)[0]  # (c, H, W)
        target = (labels == part[:, None, None]).float()  # (c, H, W)
        slopes = ((masks.detach() - normaliser).exp() - target) * weights  # (c, H, W)
        gradient[part] = torch.autograd.grad(masks, leaf, slopes)[0]
    return ((normaliser - own) * weights).sum()
