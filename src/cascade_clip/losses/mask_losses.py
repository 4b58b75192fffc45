"""Focal and dice loss on mask logits at patch resolution, in chunks of classes (paper Eq. 8).

The full-size mask of every class never exists at once: each chunk is upsampled, its losses and
their exact gradient with respect to the small logits are computed, and the chunk is dropped. Memory
does not grow with the number of classes. Letters: B images, C classes, h x w patches, H x W pixels,
c classes of a chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_clip.config import LossConfig
from cascade_clip.vocabulary import IGNORED

CACHED_VALUES = 2**20
"""Values of a chunk of classes that are held at once on a CPU, so that they stay in its cache."""

TINY = 1e-37


class MaskLoss(NamedTuple):
    """Loss sums before their division by the number of masks M."""

    total: Tensor  # (), weighted sum; carries the gradient
    focal: Tensor  # (), weighted, no gradient
    dice: Tensor  # (), weighted, no gradient
    masks: Tensor  # (), number of (image, class) pairs present


def upsample(logits: Tensor, patch_size: int, size: tuple[int, int]) -> Tensor:
    """Upsample (B, C, h, w) to (B, C, H, W): bilinear, align_corners False, cut to `size`."""
    full = (logits.shape[-2] * patch_size, logits.shape[-1] * patch_size)
    padded = F.interpolate(logits, size=full, mode="bilinear", align_corners=False)
    return padded[..., : size[0], : size[1]]


def present_pairs(labels: Tensor, classes: int) -> Tensor:
    """Which class occurs in which image: bool (B, C) for labels (B, H, W)."""
    counts = torch.zeros(len(labels), classes + 1, dtype=torch.int64, device=labels.device)
    flat = labels.flatten(1)  # (B, H*W)
    counts.scatter_add_(1, torch.where(flat == IGNORED, classes, flat), torch.ones_like(flat))
    return counts[:, :classes] > 0  # (B, C)


def mask_loss(logits: Tensor, labels: Tensor, patch_size: int, config: LossConfig) -> MaskLoss:
    """Focal and dice loss sums of mask logits (B, C, h, w) for labels (B, H, W).

    Labels are class indices; IGNORED pixels are negatives of every class (`config.ignored:
    negative`, as published) or count nowhere (`masked`). Divide the sums by M = `masks`, at least
    1, averaged over ranks. The gradient is exact; computing it twice (double backward) is not
    supported.

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
    fits = fits and all(
        0 < side <= cells * patch_size
        for side, cells in zip(labels.shape[1:], (rows, columns), strict=True)
    )
    if not fits:
        raise ValueError(
            f"labels must have shape ({batch}, H, W) that fits the {rows} x {columns} grid, got"
            f" {tuple(labels.shape)}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < IGNORED or high >= classes:
        raise ValueError(
            f"labels must lie in 0..{classes - 1} or be {IGNORED} (ignored), got values from {low}"
            f" to {high}"
        )


class _ChunkedMaskLoss(torch.autograd.Function):
    """The loss and its gradient in one pass over images and chunks of classes."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        present: Tensor,
        patch_size: int,
        config: LossConfig,
    ) -> tuple[Tensor, Tensor, Tensor]:
        maps = logits.detach().float()  # (B, C, h, w)
        gradient = torch.empty_like(maps) if logits.requires_grad else None
        sums = maps.new_zeros(2)
        with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
            for image in range(len(maps)):
                target = None if gradient is None else gradient[image]
                sums += _image_loss(
                    maps[image], labels[image], present[image], patch_size, config, target
                )
        if gradient is not None:
            ctx.save_for_backward(gradient.to(logits.dtype))
        focal, dice = sums[0].clone(), sums[1].clone()
        ctx.mark_non_differentiable(focal, dice)
        return focal + dice, focal, dice

    @staticmethod
    def backward(ctx: Any, total: Tensor, focal: Tensor, dice: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return total * gradient, None, None, None, None


def _image_loss(
    maps: Tensor,
    labels: Tensor,
    present: Tensor,
    patch_size: int,
    config: LossConfig,
    gradient: Tensor | None,
) -> Tensor:
    """Weighted focal and dice sums (2,) of one image's logits (C, h, w); writes their gradient into
    `gradient` (C, h, w).

    First every pixel counts as a negative of every class, in chunks of classes; then the one class
    that its label names is put right. The dense part therefore needs no target per class and pixel.
    """
    rows = Places.find(maps.shape[-2], patch_size, labels.shape[0], maps.device)
    columns = Places.find(maps.shape[-1], patch_size, labels.shape[1], maps.device)
    down, across = rows.matrix(), columns.matrix()  # (H, h), (W, w)
    counted = (labels != IGNORED).float() if config.ignored == "masked" else None  # (H, W)
    weight = config.focal / (labels.numel() if counted is None else counted.sum().clamp(min=1))
    own = _own_classes(maps, labels, rows, columns)
    # (C,), (C,)
    overlap, size = own.per_class(own.score * own.labelled), own.per_class(own.labelled) + 1
    focal = own.focal(config).sum()
    for start in range(0, len(maps), chunk := _chunk(config.class_chunk, labels)):
        part = slice(start, start + chunk)
        masks = torch.matmul(down @ maps[part], across.T)  # (c, H, W)
        dense = _Negatives.of(masks, counted, config.gamma)
        focal += (1 - config.alpha) * dense.focal()
        size[part] += dense.score.sum(dim=(-2, -1))  # (c,)
        if gradient is not None:
            # (c,)
            steepness = config.dice * present[part] * (2 * overlap[part] + 1) / size[part] ** 2
            slopes = dense.slopes(weight * (1 - config.alpha), steepness)  # (c, H, W)
            gradient[part] = down.T @ torch.matmul(slopes, across)  # (c, h, w)
    dice = config.dice * ((1 - (2 * overlap + 1) / size) * present).sum()
    if gradient is not None:
        gain = (2 * config.dice * present / size)[own.classes] * own.steepness  # (H, W)
        own.add_slopes(gradient, weight * own.focal_slopes(config) - gain)
    return torch.stack([weight * focal, dice])


def _chunk(classes: int, labels: Tensor) -> int:
    """Classes whose full-size values are held at once: on a CPU no more than its cache holds."""
    cached = max(1, CACHED_VALUES // labels.numel())
    return min(classes, cached) if labels.device.type == "cpu" else classes


class Places(NamedTuple):
    """Where the pixels of an axis lie between cells: bilinear, align_corners False."""

    low: Tensor  # (pixels,), int64
    high: Tensor  # (pixels,), int64
    share: Tensor  # (pixels,), weight of `high`
    cells: int

    @classmethod
    def find(cls, cells: int, patch_size: int, pixels: int, device: torch.device) -> Places:
        """Place the first `pixels` pixels of an axis of `cells` cells of `patch_size` pixels."""
        centre = torch.arange(pixels, device=device, dtype=torch.float32) + 0.5
        place = (centre / patch_size - 0.5).clamp(min=0)
        low = place.long()
        return cls(low, (low + 1).clamp(max=cells - 1), place - low, cells)

    def matrix(self) -> Tensor:
        """The upsampling as a matrix (pixels, cells)."""
        matrix = self.share.new_zeros(len(self.low), self.cells)
        matrix.scatter_add_(1, self.low[:, None], 1 - self.share[:, None])
        return matrix.scatter_add_(1, self.high[:, None], self.share[:, None])


class _Negatives(NamedTuple):
    """Pixels of a chunk of classes (c, H, W) as non-members; `counted` is in all fields."""

    score: Tensor
    rest: Tensor  # 1 - score
    crossentropy: Tensor  # -log(1 - score)
    power: Tensor  # score ** gamma
    counted: Tensor | None
    gamma: float

    @classmethod
    def of(cls, masks: Tensor, counted: Tensor | None, gamma: float) -> _Negatives:
        """From full-size mask logits (c, H, W), exact to float32 rounding in either tail."""
        score, rest = masks.sigmoid(), masks.neg().sigmoid_()
        # log1p(-score) as log(rest) * score / (1 - rest), which needs only log, the far faster
        # kernel on a CPU.
        ratio = (1 - rest).clamp_(min=TINY)
        crossentropy = rest.clamp(min=TINY).log_().mul_(score).div_(ratio).neg_()
        # beyond the smallest float
        crossentropy = torch.maximum(crossentropy, masks, out=crossentropy)
        power = score * score if gamma == 2 else score**gamma
        if counted is not None:
            power.mul_(counted)
            score = score * counted
        return cls(score, rest, crossentropy, power, counted, gamma)

    def focal(self) -> Tensor:
        """Sum of the unweighted focal loss."""
        return (self.power * self.crossentropy).sum()  # torch.dot would lose four digits

    def slopes(self, focal: Tensor | float, dice: Tensor) -> Tensor:
        """Derivative (c, H, W) of `focal` * loss + `dice` (c,) * score; overwrites what is held."""
        score = self.score
        slopes = self.crossentropy.mul_(self.rest).mul_(self.gamma)
        slopes.add_(score).mul_(self.power).mul_(focal)
        return slopes.addcmul_(self.rest.mul_(score), dice[:, None, None])


class _OwnClasses(NamedTuple):
    """Every pixel with the class that its label names: fields (H, W)."""

    classes: Tensor  # int64; 0 where there is no label
    labelled: Tensor  # 1, or 0 where there is no label
    logits: Tensor
    corners: tuple[tuple[Tensor, Tensor], ...]  # four times: index into flat logits, weight
    class_count: int  # C

    @property
    def score(self) -> Tensor:
        """Sigmoid of the logits."""
        return self.logits.sigmoid()

    @property
    def steepness(self) -> Tensor:
        """Derivative of the score."""
        return self.logits.sigmoid() * (-self.logits).sigmoid()

    def per_class(self, values: Tensor) -> Tensor:
        """Sums (C,) of values (H, W) over the pixels of each class."""
        sums = values.new_zeros(self.class_count)
        return sums.scatter_add_(0, self.classes.flatten(), values.flatten())

    def focal(self, config: LossConfig) -> Tensor:
        """What the focal loss gains when these pixels turn from negatives into positives."""
        alpha, gamma = config.alpha, config.gamma
        positive = alpha * (-self.logits).sigmoid() ** gamma * F.softplus(-self.logits)
        negative = (1 - alpha) * self.score**gamma * F.softplus(self.logits)
        return (positive - negative) * self.labelled

    def focal_slopes(self, config: LossConfig) -> Tensor:
        """Derivative of `focal` with respect to the logits, without regard to `labelled`."""
        score, rest, alpha, gamma = self.score, (-self.logits).sigmoid(), config.alpha, config.gamma
        positive = alpha * rest**gamma * (gamma * score * F.softplus(-self.logits) + rest)
        negative = (1 - alpha) * score**gamma * (gamma * rest * F.softplus(self.logits) + score)
        return -positive - negative

    def add_slopes(self, gradient: Tensor, slopes: Tensor) -> None:
        """Add derivatives (H, W) of these logits to those of the small logits (C, h, w)."""
        for index, weight in self.corners:
            added = (slopes * self.labelled * weight).flatten()
            gradient.view(-1).scatter_add_(0, index.flatten(), added)


def _own_classes(maps: Tensor, labels: Tensor, rows: Places, columns: Places) -> _OwnClasses:
    """Look up, at pixels (H, W), the upsampled logit of the own class in logits (C, h, w)."""
    classes = labels.clamp(min=0)
    corners = []
    for row, height in ((rows.low, 1 - rows.share), (rows.high, rows.share)):
        for column, width in ((columns.low, 1 - columns.share), (columns.high, columns.share)):
            index = (classes * rows.cells + row[:, None]) * columns.cells + column  # (H, W)
            corners.append((index, height[:, None] * width))
    flat = maps.flatten()
    logits = torch.stack([flat[index] * weight for index, weight in corners]).sum(dim=0)  # (H, W)
    return _OwnClasses(classes, (labels != IGNORED).float(), logits, tuple(corners), len(maps))
