"""SSIM and softmax cross-entropy against direct computations, in chunks and micro-batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.image import StructuralSimilarityIndexMeasure

from cascade_clip.config import Config, LossConfig, TrainConfig
from cascade_clip.config.serialization import config_from_dict
from cascade_clip.losses.objective import image_terms, step_loss
from cascade_clip.models.builder import build_segmenter
from cascade_clip.ops.ssim import similarity_map
from cascade_clip.training.task import SegmentationTask
from tiny_models import TINY_MODEL

SSIM = LossConfig(focal=0, dice=0, ssim=2.0)
ENTROPY = LossConfig(focal=0, dice=0, cross_entropy=3.0)


def similarity_by_hand(first: Tensor, second: Tensor) -> Tensor:
    """One pixel after the other, in float64, from the weighted 11 x 11 values around it."""
    places = np.arange(11) - 5
    weights = np.exp(-(places**2) / (2 * 1.5**2))
    weights = np.outer(weights, weights) / weights.sum() ** 2
    x, y = (np.pad(values.double().numpy(), 5) for values in (first, second))
    found = np.zeros(first.shape)
    for row, column in np.ndindex(*first.shape):
        a, b = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        variance_a, variance_b = (
            (weights * (a - mean_a) ** 2).sum(),
            (weights * (b - mean_b) ** 2).sum(),
        )
        covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
        found[row, column] = ((2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)) / (
            (mean_a**2 + mean_b**2 + 1e-4) * (variance_a + variance_b + 9e-4)
        )
    return torch.from_numpy(found)


def test_similarity_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 13, 9, generator=generator)
    target = (torch.rand(2, 13, 9, generator=generator) < 0.3).float()
    found = similarity_map(logits, target)
    for index in range(2):
        torch.testing.assert_close(
            found[index].double(),
            similarity_by_hand(logits[index], target[index]),
            rtol=1e-4,
            atol=1e-5,
        )
    assert torch.equal(
        similarity_map(target, target) > 1 - 1e-5, torch.ones_like(target, dtype=torch.bool)
    )


def test_maps_of_zeros_need_no_second_map() -> None:
    first = torch.randn(3, 12, 14)
    torch.testing.assert_close(
        similarity_map(first, None), similarity_map(first, torch.zeros_like(first))
    )


def test_similarity_agrees_with_torchmetrics_inside() -> None:
    """At the border torchmetrics reflects and this pads with zeros."""
    generator = torch.Generator().manual_seed(1)
    first, second = torch.rand(2, 3, 20, 24, generator=generator)
    measure = StructuralSimilarityIndexMeasure(
        sigma=1.5, kernel_size=11, data_range=1.0, return_full_image=True
    )
    _, expected = measure(first[:, None], second[:, None])
    inside = (slice(None), slice(5, -5), slice(5, -5))
    torch.testing.assert_close(
        similarity_map(first, second)[inside], expected[:, 0][inside], rtol=1e-3, atol=1e-5
    )


def dense_ssim(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """Sum over images of 1 - SSIM with one 11 x 11 convolution over all classes at once, in
    float64."""
    masks = F.interpolate(logits.double(), scale_factor=4, mode="bilinear")[
        ..., : labels.shape[1], : labels.shape[2]
    ]
    masks = masks.sigmoid() if config.ssim_on == "sigmoid" else masks
    target = torch.stack([labels == index for index in range(logits.shape[1])], dim=1).double()
    places = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(places**2) / 4.5)
    window = (line[:, None] * line / line.sum() ** 2)[None, None]

    def blur(values: Tensor) -> Tensor:
        return F.conv2d(values.flatten(0, 1)[:, None], window, padding=5)[:, 0].view_as(values)

    mean, other = blur(masks), blur(target)
    spread, other_spread, joint = (
        blur(masks**2) - mean**2,
        blur(target**2) - other**2,
        blur(masks * target) - mean * other,
    )
    found = (
        (2 * mean * other + 1e-4)
        * (2 * joint + 9e-4)
        / ((mean**2 + other**2 + 1e-4) * (spread + other_spread + 9e-4))
    )
    counted = (
        labels >= 0 if config.ignored == "masked" else torch.ones_like(labels, dtype=torch.bool)
    )
    means = [1 - found[image][:, counted[image]].mean() for image in range(len(logits))]
    return config.ssim * torch.stack(means).sum()


def dense_entropy(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    masks = F.interpolate(logits.double(), scale_factor=4, mode="bilinear")[
        ..., : labels.shape[1], : labels.shape[2]
    ]
    means = [
        F.cross_entropy(masks[None, image], labels[None, image], ignore_index=-1)
        for image in range(len(logits))
    ]
    return config.cross_entropy * torch.stack(means).sum()


def sample() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 5, 4, 5, generator=generator, requires_grad=True)
    labels = (
        torch.randint(-1, 4, (2, 4, 5), generator=generator)
        .repeat_interleave(4, 1)
        .repeat_interleave(4, 2)[:, :15, :18]
    )
    return logits, labels  # class 4 is absent; the crop is not a multiple of the patch


@pytest.mark.parametrize(
    ("config", "place", "dense"),
    [
        (SSIM, 0, dense_ssim),
        (dataclasses.replace(SSIM, ssim_on="sigmoid"), 0, dense_ssim),
        (dataclasses.replace(SSIM, ignored="masked"), 0, dense_ssim),
        (dataclasses.replace(SSIM, class_chunk=2), 0, dense_ssim),
        (ENTROPY, 1, dense_entropy),
        (dataclasses.replace(ENTROPY, class_chunk=2), 1, dense_entropy),
    ],
    ids=["logits", "sigmoid", "masked", "ssim-chunks", "entropy", "entropy-chunks"],
)
def test_value_and_gradient(config: LossConfig, place: int, dense: Any) -> None:
    logits, labels = sample()
    terms = image_terms(logits, labels, 4, config)
    (gradient,) = torch.autograd.grad(2.5 * terms[place], logits)
    expected = dense(logits, labels, config)
    (wanted,) = torch.autograd.grad(2.5 * expected, logits)
    assert float(terms[place].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(terms[1 - place].detach()) == 0
    torch.testing.assert_close(gradient, wanted.float(), rtol=1e-3, atol=1e-6)


def test_the_division_by_masks_leaves_the_mean_over_images() -> None:
    logits, labels = sample()
    config = dataclasses.replace(SSIM, focal=10.0, dice=1.0, cross_entropy=3.0)
    found = step_loss(logits, labels, 4, config)
    assert float(found.ssim / found.masks) == pytest.approx(
        float(dense_ssim(logits, labels, config).detach()) / 2, rel=1e-5
    )
    assert float(found.cross_entropy / found.masks) == pytest.approx(
        float(dense_entropy(logits, labels, config).detach()) / 2, rel=1e-5
    )
    parts = found.focal + found.dice + found.ssim + found.cross_entropy
    assert float(found.total.detach()) == pytest.approx(float(parts), rel=1e-6)
    scaled = step_loss(logits, labels, 4, config, torch.tensor(0.5))
    assert float(scaled.ssim) == pytest.approx(
        0.5 * float(dense_ssim(logits, labels, config).detach()), rel=1e-5
    )


@pytest.mark.parametrize(
    "config", [SSIM, ENTROPY, dataclasses.replace(SSIM, ignored="masked")], ids=str
)
def test_all_ignored_is_finite(config: LossConfig) -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    result = step_loss(logits, torch.full((1, 8, 8), -1), 4, config)
    result.total.backward()
    assert bool(torch.isfinite(result.total)) and bool(torch.isfinite(logits.grad).all())
    if config.ssim == 0 or config.ignored == "masked":
        assert not bool(logits.grad.any())


def test_what_is_kept_has_the_size_of_a_chunk() -> None:
    saved: list[int] = []
    logits = torch.randn(1, 32, 4, 4, requires_grad=True)
    config = dataclasses.replace(SSIM, class_chunk=2, cross_entropy=1.0)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        step_loss(logits, torch.zeros(1, 64, 64, dtype=torch.long), 16, config).total.backward()
    assert 0 < max(saved) <= 5 * 2 * 64 * 64  # five blurred maps of two classes, never of 32


def task(micro_batch: int, **train: Any) -> SegmentationTask:
    torch.manual_seed(0)
    model = {**TINY_MODEL, "stages": [[12]]}
    loss = {"focal": 5.0, "dice": 1.0, "ssim": 2.0, "cross_entropy": 3.0}
    config = config_from_dict(
        Config,
        {
            "model": model,
            "train": {"loss": loss, "micro_batch": micro_batch, "batch_size": 4, **train},
        },
    )
    return SegmentationTask(
        build_segmenter(config.model),
        torch.randn(4, 32),
        torch.tensor([True, True, True, False]),
        config,
    )


def gradients(task: SegmentationTask) -> tuple[dict[str, float], Tensor]:
    generator = torch.Generator().manual_seed(3)
    images, labels = (
        torch.randn(4, 3, 32, 32, generator=generator),
        torch.randint(-1, 4, (4, 32, 32), generator=generator),
    )
    labels[0] = 0  # images with other numbers of masks
    found = task.accumulate_gradients(images, labels)
    figures = {name: float(value) for name, value in found._asdict().items()}
    return figures, torch.cat(
        [parameter.grad.flatten() for parameter in task.parameters() if parameter.grad is not None]
    )


def test_micro_batches_change_nothing() -> None:
    whole, wanted = gradients(task(0))
    for share in (1, 2):
        found, gradient = gradients(task(share))
        assert found == pytest.approx(whole, rel=1e-5)
        assert float((gradient - wanted).norm() / wanted.norm()) < 1e-5


def test_masks_of_other_devices_do_not_change_the_mean_over_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone, _ = gradients(task(0))

    def mean(self: SegmentationTask, value: Tensor) -> Tensor:
        """M is 20 over all devices, losses are everywhere the same."""
        return torch.cat([value.view(-1)[:-1], value.new_tensor([20.0])]).view_as(value)

    monkeypatch.setattr(SegmentationTask, "_mean_over_ranks", mean)
    shared, _ = gradients(task(0))
    assert (shared["ssim"], shared["cross_entropy"]) == pytest.approx(
        (alone["ssim"], alone["cross_entropy"]), rel=1e-5
    )
    # that one is a mean over masks
    assert shared["focal"] != pytest.approx(alone["focal"], rel=1e-3)


def test_pseudo_labels_take_the_masks_of_their_own_step() -> None:
    found, gradient = gradients(task(0, protocol="transductive"))
    assert found["ssim"] > 0 and bool(torch.isfinite(gradient).all())
    with pytest.raises(ValueError, match="in self-training need all images of a device at once"):
        task(2, protocol="transductive")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"focal": 0, "dice": 0},
            "every weight of train.loss is 0; set one of focal, dice, ssim, cross_entropy",
        ),
        ({"ssim": -1}, "train.loss.ssim must be 0 or more, got -1"),
        ({"ssim_on": "scores"}, "ssim_on must be one of"),
    ],
)
def test_wrong_weights(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_dict(TrainConfig, {"loss": values})
