"""Looking inside a model: patch similarity, masks stage by stage, and alignment between blocks.

Letters: B images, N patches, W tower width, n images of a minibatch, L blocks.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cascade_clip.errors import SettingError
from cascade_clip.files import load_image
from cascade_clip.inference import BoundClasses, Picture, Predictor
from cascade_clip.models import Segmenter
from cascade_clip.ops import normalise, resize_image, short_side_shape
from cascade_clip.results import Segmentation


class StageResult(NamedTuple):
    """What one choice of stages makes of an image."""

    stages: tuple[int, ...]  # numbers of the stages that are summed, counted from 1
    result: Segmentation


def patch_similarity(
    predictor: Predictor, image: Picture, point: tuple[int, int], blocks: Sequence[int]
) -> dict[int, NDArray[np.float32]]:
    """Return cosine maps (h, w) of one point with every patch, per block (paper Figures 1 and 6).

    Args:
        predictor: the model.
        image: resized so that its short side fits the window; the encoder sees all of it.
        point: x and y in pixels of the image.
        blocks: block numbers, counted from 1.

    Raises:
        ValueError: a point outside the image, a block that does not exist.
    """
    pixels = load_image(image)  # (3, H, W)
    height, width = pixels.shape[-2:]
    x, y = point
    if not (0 <= x < width and 0 <= y < height):
        raise SettingError(f"the point {x},{y} is outside the image of {width} x {height} pixels")
    resized = resize_image(pixels, short_side_shape(height, width, predictor.settings.window))
    config = predictor.checkpoint.config.model
    with torch.inference_mode():
        batch = normalise(resized.to(predictor.device), config.mean, config.std)[None]
        features = predictor.model.features(batch, blocks, projected=False)
    rows, columns = features.grid
    place = min(y * rows // height, rows - 1) * columns + min(x * columns // width, columns - 1)
    maps = {}
    for block in blocks:
        tokens = F.normalize(features.patches[block][0].float(), dim=-1)  # (N, W)
        maps[block] = (tokens @ tokens[place]).view(rows, columns).cpu().numpy().astype(np.float32)
    return maps


def keep_stages(predictor: Predictor, stages: Sequence[int]) -> Predictor:
    """Return the same model with only the masks of some stages (counted from 1)."""
    model = predictor.model
    index = [stage - 1 for stage in stages]
    if not index or min(index) < 0 or max(index) >= len(model.stages):
        raise SettingError(f"this model has stages 1 to {len(model.stages)}, got {list(stages)}")
    part = Segmenter(
        model.backbone,
        [model.stages[stage] for stage in index],
        [model.aggregations[stage] for stage in index],
        [model.queries[min(stage, len(model.queries) - 1)] for stage in index],
        [model.decoders[stage] for stage in index],
        None if model.stage_weights is None else model.stage_weights.detach()[index],
    ).eval()
    device: Any = predictor.device.type
    checkpoint = dataclasses.replace(predictor.checkpoint, model=part)
    return Predictor(checkpoint, predictor.settings, device)


def compare_stages(predictor: Predictor, image: Picture, bound: BoundClasses) -> list[StageResult]:
    """Segment with every stage alone, and with the first two, three, ... stages (Figure 6)."""
    numbers = tuple(range(1, len(predictor.model.stages) + 1))
    choices = [*((stage,) for stage in numbers), *(numbers[:last] for last in numbers[1:])]
    parts = [(choice, keep_stages(predictor, choice)) for choice in choices]
    return [StageResult(choice, part.segment_with(image, bound)) for choice, part in parts]


def block_alignment(
    predictor: Predictor, images: Iterable[Tensor], batch: int = 16
) -> NDArray[np.float64]:
    """Centred kernel alignment (L, L) between the patch features of all blocks (paper Figure 4).

    HSIC is estimated without bias and averaged over minibatches before the quotient (Nguyen, Raghu,
    Kornblith 2021).

    Args:
        predictor: the model.
        images: normalised images (3, H, W) of one size; an incomplete minibatch is left out.
        batch: images per minibatch, at least 4.

    Raises:
        ValueError: not one complete minibatch.
    """
    if batch < 4:
        raise SettingError(f"a minibatch needs at least 4 images, got {batch}")
    model, blocks = predictor.model, range(1, predictor.model.backbone.depth + 1)
    total = np.zeros((len(blocks), len(blocks)))
    count, waiting = 0, []
    for image in images:
        waiting.append(image)
        if len(waiting) < batch:
            continue
        with torch.inference_mode():
            stacked = torch.stack(waiting).to(predictor.device)  # (n, 3, H, W)
            patches = model.features(stacked, blocks, projected=False).patches
        # L matrices (n, N * W)
        total += minibatch_hsic([patches[block].float().flatten(1).cpu() for block in blocks])
        count, waiting = count + 1, []
    if count == 0:
        raise SettingError(f"centred kernel alignment needs at least {batch} images")
    scale = np.sqrt(np.maximum(np.diag(total), 1e-30))
    alignment: NDArray[np.float64] = total / scale[:, None] / scale[None]
    return alignment


def minibatch_hsic(features: Sequence[Tensor]) -> NDArray[np.float64]:
    """Unbiased linear HSIC (L, L) between all pairs of L matrices (n, p) (Song et al. 2012)."""
    size = len(features[0])
    matrices = (matrix.double() for matrix in features)
    stack = np.stack([(values @ values.T).numpy() for values in matrices])  # (L, n, n)
    stack[:, range(size), range(size)] = 0.0
    sums, rows = stack.sum(axis=(1, 2)), stack.sum(axis=2)  # (L,), (L, n)
    products = np.einsum("aij,bji->ab", stack, stack)
    middle = np.outer(sums, sums) / ((size - 1) * (size - 2))
    last = 2 / (size - 2) * (rows @ rows.T)
    hsic: NDArray[np.float64] = (products + middle - last) / (size * (size - 3))
    return hsic
