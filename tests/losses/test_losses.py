"""The chunked loss against the same loss written out densely, and its behaviour at the edges."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from cascade_clip.config import LossConfig
from cascade_clip.losses.mask_losses import mask_loss, present_pairs, upsample

CONFIG = LossConfig()


def dense_reference(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """The published formula, one (image, class) after another, in float64."""
    masks = torch.nn.functional.interpolate(
        logits.double(), scale_factor=4, mode="bilinear", align_corners=False
    )
    masks = masks[..., : labels.shape[1], : labels.shape[2]]
    total = torch.zeros((), dtype=torch.float64)
    for image in range(len(masks)):
        counted = (
            torch.ones_like(labels[image], dtype=torch.bool)
            if config.ignored == "negative"
            else labels[image] >= 0
        )
        for index in range(masks.shape[1]):
            p = torch.sigmoid(masks[image, index])
            t = (labels[image] == index).double()
            right = torch.where(t > 0, p, 1 - p)
            weight = torch.where(t > 0, config.alpha, 1 - config.alpha)
            focal = -weight * (1 - right) ** config.gamma * torch.log(right)
            total = total + config.focal * focal[counted].sum() / counted.sum().clamp(min=1)
            if t.sum() > 0:
                p = p * counted
                total = total + config.dice * (
                    1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
                )
    return total


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (CONFIG, (16, 20)),  # whole grid
        (CONFIG, (15, 18)),  # crop that the patch does not divide: the padding is cut off
        # several chunks, the last one smaller
        (dataclasses.replace(CONFIG, class_chunk=2), (16, 20)),
        (dataclasses.replace(CONFIG, class_chunk=1), (16, 20)),
        (dataclasses.replace(CONFIG, ignored="masked"), (16, 20)),  # ignored pixels count nowhere
        (dataclasses.replace(CONFIG, gamma=1.0, alpha=0.5, dice=3.0), (16, 20)),
    ],
    ids=str,
)
def test_value_and_gradient(config: LossConfig, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 5, 4, 5, generator=generator, requires_grad=True)
    labels = torch.randint(-1, 4, (2, *size), generator=generator)  # class 4 is absent everywhere
    labels[1][labels[1] == 2] = 0  # class counts differ per image
    result = mask_loss(logits, labels, 4, config)
    (gradient,) = torch.autograd.grad(2.5 * result.total, logits)
    expected = dense_reference(logits, labels, config)
    (wanted,) = torch.autograd.grad(2.5 * expected, logits)
    assert float(result.total) == pytest.approx(float(expected), rel=1e-5)
    assert float(result.total) == pytest.approx(float(result.focal + result.dice), rel=1e-6)
    torch.testing.assert_close(gradient, wanted.float(), rtol=1e-4, atol=1e-6)
    assert float(result.masks) == 4 + 3


def test_chunks_change_nothing() -> None:
    logits, labels = torch.randn(2, 7, 3, 3), torch.randint(-1, 7, (2, 12, 12))
    totals = [
        float(mask_loss(logits, labels, 4, dataclasses.replace(CONFIG, class_chunk=chunk)).total)
        for chunk in (1, 3, 7, 100)
    ]
    assert totals == pytest.approx([totals[0]] * 4, rel=1e-6)


def test_all_ignored_is_finite_and_pushes_down() -> None:
    """Nothing is present: no dice, and every pixel is a negative of every class."""
    logits = torch.zeros(1, 3, 2, 2, requires_grad=True)
    result = mask_loss(logits, torch.full((1, 8, 8), -1), 4, CONFIG)
    result.total.backward()
    assert float(result.masks) == 0
    assert float(result.dice) == 0
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad > 0).all()
    masked = mask_loss(
        logits, torch.full((1, 8, 8), -1), 4, dataclasses.replace(CONFIG, ignored="masked")
    )
    assert float(masked.total) == 0


def test_present_pairs() -> None:
    labels = torch.tensor([[[0, 2], [-1, 2]], [[-1, -1], [-1, -1]]])
    assert present_pairs(labels, 4).tolist() == [[True, False, True, False], [False] * 4]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2, 8, 8, dtype=torch.long), "shape"),  # another batch size
        (torch.zeros(1, 9, 8, dtype=torch.long), "shape"),  # larger than the grid
        (torch.full((1, 8, 8), 3), "0..2"),  # a class that is no query
        (torch.full((1, 8, 8), 255), "ignored"),  # the file's ignore value, not ours
    ],
)
def test_labels_that_do_not_fit(labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_loss(torch.zeros(1, 3, 2, 2), labels, 4, CONFIG)


def test_upsample_cuts_the_padding() -> None:
    full = upsample(torch.arange(4.0).reshape(1, 1, 2, 2), 16, (32, 32))
    cut = upsample(torch.arange(4.0).reshape(1, 1, 2, 2), 16, (20, 31))
    assert torch.equal(cut, full[..., :20, :31])


def test_memory_does_not_hold_every_full_size_mask() -> None:
    """What is saved for the backward pass has the size of the logits, whatever the image size."""
    saved: list[int] = []
    logits = torch.randn(1, 64, 4, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        mask_loss(
            logits,
            torch.zeros(1, 64, 64, dtype=torch.long),
            16,
            dataclasses.replace(CONFIG, class_chunk=4),
        ).total.backward()
    assert max(saved) <= 4 * 64 * 64  # one chunk of 4 classes, never 64
