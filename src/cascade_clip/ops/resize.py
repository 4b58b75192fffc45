"""Resizing and normalisation of image tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional


def resize_shape(height: int, width: int, scale: tuple[int, int]) -> tuple[int, int]:
    """Largest size of the same proportions that fits the longer and shorter side of `scale`."""
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return _scaled(height, factor), _scaled(width, factor)


def short_side_shape(height: int, width: int, short: int) -> tuple[int, int]:
    """Size of the same proportions whose short side is exactly `short`, however long the other."""
    factor = short / min(height, width)
    return _scaled(height, factor), _scaled(width, factor)


def _scaled(side: int, factor: float) -> int:
    return max(1, int(side * factor + 0.5))


def resize_image(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resize (..., H, W) uint8 or float, bilinear, no antialias, as in training and tests."""
    resized: Tensor = functional.resize_image(
        image, list(shape), functional.InterpolationMode.BILINEAR, antialias=False
    )
    return resized


def resize_mask(labels: Tensor, shape: tuple[int, int]) -> Tensor:
    """Nearest-neighbour resize of (..., H, W) labels, so that no new labels appear."""
    resized: Tensor = functional.resize_mask(labels, list(shape))
    return resized


def normalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bring (..., 3, H, W) from uint8 to float32: (x / 255 - mean) / std."""
    if image.dtype != torch.uint8 or image.ndim < 3 or image.shape[-3] != 3:
        found = f"{image.dtype} of shape {tuple(image.shape)}"
        raise ValueError(f"an image must be uint8 of shape (3, H, W), got {found}")
    scaled = functional.to_dtype(image, torch.float32, scale=True)
    normalised: Tensor = functional.normalize(scaled, list(mean), list(std), inplace=True)
    return normalised
