"""Looking inside a model: cosine maps of a patch, masks as stages are added, and centred kernel
alignment between blocks.

Letters: B images, N patches, W tower width, n images of a minibatch, L blocks.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

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

    stages: tuple[int, ...]
    """Numbers of the stages that are summed, counted from 1."""
    result: Segmentation


def patch_similarity(
    predictor: Predictor, image: Picture, point: tuple[int, int], blocks: Sequence[int]
) -> dict[int, NDArray[np.float32]]:
    """Cosine between the hidden state at one point and at every patch, per block: maps (h, w) in
    -1..1 (paper Figures 1 and 6).

    Args:
        predictor: the model.
        image: the picture; its short side is resized to the window, and it goes through the encoder
            whole.
        point: x and y in pixels of the picture.
        blocks: block numbers, counted from 1.

    Raises:
        ValueError: a point outside the picture, a block that does not exist.
    """
    pixels = load_image(image)  # (3, H, W)
    height, width = pixels.shape[-2:]
    x, y = point
    if not (0 <= x < width and 0 <= y < height):
        raise SettingError(
            f"the point {x},{y} lies outside the picture of {width} x {height} pixels"
        )
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
    """The same model with the masks of some stages alone (counted from 1)."""
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
    return Predictor(
        dataclasses.replace(predictor.checkpoint, model=part),
        predictor.settings,
        predictor.device.type,  # type: ignore[arg-type]
    )


def compare_stages(predictor: Predictor, image: Picture, bound: BoundClasses) -> list[StageResult]:
    """An image segmented by every stage alone, and by the sum of the first two, three, ... stages
    (paper Figure 6)."""
    count = len(predictor.model.stages)
    choices = [(stage,) for stage in range(1, count + 1)] + [
        tuple(range(1, last + 1)) for last in range(2, count + 1)
    ]
    return [
        StageResult(choice, keep_stages(predictor, choice).segment_with(image, bound))
        for choice in choices
    ]


def block_alignment(
    predictor: Predictor, images: Iterable[Tensor], batch: int = 16
) -> NDArray[np.float64]:
    """Centred kernel alignment between the patch features of all blocks, (L, L), over minibatches
    (paper Figure 4).

    HSIC is estimated without bias in every minibatch and averaged over them before the quotient
    (Nguyen, Raghu, Kornblith 2021).

    Args:
        predictor: the model.
        images: normalised images (3, H, W) of one size; what does not fill a minibatch is left out.
        batch: images per minibatch, at least 4.

    Raises:
        ValueError: not one whole minibatch.
    """
    if batch < 4:
        raise SettingError(
            f"the unbiased estimator needs at least 4 images in a minibatch, got {batch}"
        )
    depth = predictor.model.backbone.depth
    total = np.zeros((depth, depth))
    count, waiting = 0, []
    for image in images:
        waiting.append(image)
        if len(waiting) < batch:
            continue
        total += minibatch_hsic(_features(predictor, torch.stack(waiting), depth))
        count, waiting = count + 1, []
    if count == 0:
        raise SettingError(f"centred kernel alignment needs at least {batch} images")
    scale = np.sqrt(np.maximum(np.diag(total), 1e-30))
    alignment: NDArray[np.float64] = total / scale[:, None] / scale[None]
    return alignment


def _features(predictor: Predictor, images: Tensor, depth: int) -> list[Tensor]:
    """Hidden states of every block as one row per image: L tensors (n, N * W)."""
    with torch.inference_mode():
        found = predictor.model.features(
            images.to(predictor.device), range(1, depth + 1), projected=False
        )
    return [found.patches[block].float().flatten(1).cpu() for block in range(1, depth + 1)]


def minibatch_hsic(features: Sequence[Tensor]) -> NDArray[np.float64]:
    """Unbiased HSIC with linear kernels between all pairs of feature matrices (n, p): (L, L) (Song
    et al. 2012)."""
    size = len(features[0])
    kernels = []
    for matrix in features:
        values = matrix.double()
        kernel = (values @ values.T).numpy()
        np.fill_diagonal(kernel, 0.0)
        kernels.append(kernel)
    stack = np.stack(kernels)  # (L, n, n)
    sums, rows = stack.sum(axis=(1, 2)), stack.sum(axis=2)  # (L,), (L, n)
    products = np.einsum("aij,bji->ab", stack, stack)
    middle = np.outer(sums, sums) / ((size - 1) * (size - 2))
    last = 2 / (size - 2) * (rows @ rows.T)
    hsic: NDArray[np.float64] = (products + middle - last) / (size * (size - 3))
    return hsic
