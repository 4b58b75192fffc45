"""The paper's figures from the trained models: patches, blocks, stages and training lengths.

Scenes are fresh: neither training nor evaluation has seen them. On other datasets they are those of
the evaluation set. Letters: L blocks, h x w patches, H x W pixels.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.stats import rankdata
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from cascade_clip.data import LabelledImages, build_dataset
from cascade_clip.evaluation import default_calibration
from cascade_clip.inference import Predictor, load_predictor
from cascade_clip.ops import normalise, resize_image
from cascade_clip.research.analysis import block_alignment, compare_stages, patch_similarity
from cascade_clip.research.reproduction.charts import draw_lengths, save_picture
from cascade_clip.research.reproduction.entries import Entry
from cascade_clip.research.reproduction.runs import Reproduction, is_trained
from cascade_clip.research.reproduction.settings import ReproductionSettings
from cascade_clip.results import Segmentation
from cascade_clip.training import prepare

FRESH_SEED = 7
"""Seed of the sandbox scenes that are drawn; training and evaluation have 1 and 2."""
SHOWN, MEASURED = 4, 64
"""Scenes in a plot, and scenes over which the values in its caption are averaged."""
PICTURES = "pictures"


def draw_figure(entry: Entry, reproduction: Reproduction) -> list[Path]:
    """Draw a figure from the first seed with a model; empty for other entries or missing runs."""
    painter, painted = _PAINTERS.get(entry.key), None
    if entry.key == "figure7":
        painted = _draw_lengths(entry, reproduction)
    elif painter and (predictor := _trained(entry, reproduction)):
        painted = painter(predictor, fresh_scenes(reproduction.settings, entry))
    if painted is None:
        return []
    return [save_picture(painted[0], reproduction.out / PICTURES / f"{entry.key}.png", painted[1])]


Painted = tuple[Figure, str]
"""A plot and its description."""


def _draw_similarity(predictor: Predictor, dataset: LabelledImages) -> Painted:
    """Figure 1: cosine maps of one patch, and how well every block separates the patch's class."""
    depth = predictor.model.backbone.depth
    blocks = sorted({max(1, round(depth * part / 6)) for part in range(1, 7)})
    figure, axes = _grid(min(SHOWN, len(dataset)), 1 + len(blocks))
    for row, index in zip(axes, range(len(axes)), strict=True):
        sample = dataset.sample(index)
        place = choose_point(sample.labels.numpy())
        pixels = _picture(sample.image)
        maps = patch_similarity(predictor, pixels, place, blocks)
        row[0].imshow(pixels)
        row[0].plot(*place, "o", color="white", markeredgecolor="black", markersize=6)
        for axis, block in zip(row[1:], blocks, strict=True):
            drawn = axis.imshow(maps[block], cmap="magma", vmin=0, vmax=1)
    _name_columns(axes, ["picture", *(f"block {block}" for block in blocks)])
    figure.colorbar(drawn, ax=axes, shrink=0.6, aspect=30, label="cosine")
    shares = measure_similarity(predictor, dataset, blocks)
    pairs = zip(blocks, shares, strict=True)
    wording = ", ".join(f"{100 * share:.0f} % in block {block}" for block, share in pairs)
    return figure, (
        "Cosine between the hidden state of the marked patch and of every patch, in six blocks of"
        f" the trained cascade. Over {len(dataset)} scenes, a patch of the marked patch's class is"
        f" more like it than a patch of another class is: {wording} (50 % would be chance)."
    )


def _draw_alignment(trained: Predictor, dataset: LabelledImages) -> Painted:
    """Figure 4: centred kernel alignment between all pairs of blocks, before and after training."""
    config, side = trained.checkpoint.config.model, trained.settings.window
    images = []
    for index in range(len(dataset)):
        image = dataset.sample(index).image  # (3, H, W)
        square = resize_image(center_crop(image, [min(image.shape[-2:])]), (side, side))
        images.append(normalise(square, config.mean, config.std))
    found = [block_alignment(predictor, images) for predictor in (untrained(trained), trained)]
    figure = Figure(figsize=(7.4, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    last = len(found[0])
    extent = (0.5, last + 0.5, 0.5, last + 0.5)
    for axis, alignment, when in zip(axes, found, ("before", "after"), strict=True):
        drawn = axis.imshow(alignment, cmap="magma", vmin=0, vmax=1, origin="lower", extent=extent)
        axis.set_title(f"{when} training", fontsize=10)
        axis.set_xlabel("block", fontsize=9)
        axis.set_ylabel("block", fontsize=9)
        axis.tick_params(labelsize=8)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="centred kernel alignment")
    before, after = (alignment[:, -1] for alignment in found)
    wording = "; of ".join(
        f"blocks {one} and {last}: {before[one - 1]:.2f} before, {after[one - 1]:.2f} after"
        for one in sorted({max(1, last // 2), max(1, last - 1)})
    )
    return figure, (
        "Centred kernel alignment between the patch features of all pairs of blocks over"
        f" {len(images)} scenes, with the prompt tokens as they start and after training; 1 is"
        f" alike. Alignment of {wording}."
    )


def _draw_stages(predictor: Predictor, dataset: LabelledImages) -> Painted:
    """Figure 6: what every stage alone says, and the sums of the first two, three, ... stages."""
    calibration = default_calibration(predictor.checkpoint)
    bound = predictor.bind(dataset.vocabulary, calibration=calibration)
    stages = predictor.model.stages
    shown = min(SHOWN, len(dataset))
    rights: dict[tuple[int, ...], list[float]] = {}
    figure, axes = _grid(shown, 1 + 2 * len(stages))
    for index in range(len(dataset)):
        sample = dataset.sample(index)
        pixels, labels = _picture(sample.image), sample.labels.numpy()
        found = compare_stages(predictor, pixels, bound)
        for choice, result in found:
            right = (result.labels == labels)[labels >= 0].mean()
            rights.setdefault(choice, []).append(float(right))
        if index < shown:
            truth = Segmentation(labels, dataset.vocabulary.names, dataset.vocabulary.colors)
            views = [truth, *(result for _, result in found)]
            axes[index][0].imshow(pixels)
            for axis, view in zip(axes[index][1:], views, strict=True):
                axis.imshow(view.color_image())
    _name_columns(axes, ["picture", "truth", *(_stage_title(choice, stages) for choice in rights)])
    means = {_stage_name(choice): 100 * float(np.mean(found)) for choice, found in rights.items()}
    wording = ", ".join(f"{name} {mean:.0f} %" for name, mean in means.items())
    return figure, (
        "Masks of the trained cascade from every stage alone, and as stages are added up; a colour"
        " is a class. Stages are trained for their sum, so that one alone need not be right. Pixels"
        f" that are, mean over {len(dataset)} scenes: {wording}."
    )


def _draw_lengths(entry: Entry, reproduction: Reproduction) -> Painted | None:
    """Figure 7: S and U over the steps of training."""
    settings = reproduction.settings
    ours, paper = {}, {}
    for row in entry.rows:
        results = reproduction.results(entry, row)
        if results:
            ours[settings.config(row).train.steps] = [result.scores for result in results]
        if (found := row.published.get(entry.published_on)) is not None:
            steps = int(row.settings["train"]["steps"])
            known = zip("SU", found, strict=False)
            paper[steps] = {name: value for name, value in known if value is not None}
    if len(ours) < 2:
        return None
    wording = "; ".join(
        f"{steps:,} steps: "
        + ", ".join(f"{name} {100 * np.mean([run[name] for run in runs]):.1f}" for name in "SU")
        for steps, runs in sorted(ours.items())
    )
    shown = f"S and U over the steps of training, the paper's beside ours on {settings.name}"
    drawn = draw_lengths(ours, paper, (entry.published_on, settings.name))
    return drawn, f"{shown}. {wording}. Small marks are single seeds."


_PAINTERS: dict[str, Callable[[Predictor, LabelledImages], Painted]] = {
    "figure1": _draw_similarity,
    "figure4": _draw_alignment,
    "figure6": _draw_stages,
}
"""The figures of one model."""


def fresh_scenes(settings: ReproductionSettings, entry: Entry) -> LabelledImages:
    """Build unseen sandbox scenes; on other datasets take the first images for evaluation."""
    config = settings.config(entry.rows[0])
    data = config.evaluation or config.data
    if data.name == "sandbox":
        data = dataclasses.replace(data, seed=FRESH_SEED)
    return build_dataset(dataclasses.replace(data, limit=MEASURED), "val")


def untrained(predictor: Predictor) -> Predictor:
    """Build the model as before its first training step, without touching the random state."""
    config = predictor.checkpoint.config
    device: Any = predictor.device.type
    with isolate_rng():
        return Predictor(prepare(config, build_dataset(config.data)), predictor.settings, device)


def choose_point(labels: NDArray[np.int64]) -> tuple[int, int]:
    """Choose x and y of the innermost pixel of the class with the second most pixels, or the only.

    Args:
        labels: class of every pixel, (H, W); negative where there is none.
    """
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    if not classes.size:
        return labels.shape[1] // 2, labels.shape[0] // 2
    ranked = classes[np.argsort(-counts, kind="stable")]
    # the border of the picture is a border
    inside = np.pad(labels == ranked[min(1, len(ranked) - 1)], 1)
    innermost = int(distance_transform_edt(inside)[1:-1, 1:-1].argmax())
    row, column = np.unravel_index(innermost, labels.shape)
    return int(column), int(row)


def measure_similarity(
    predictor: Predictor, dataset: LabelledImages, blocks: Sequence[int]
) -> list[float]:
    """Return, per block, how often a patch of the chosen patch's class is more similar to it than a
    patch of another class, as the mean over the scenes; ties count half.

    A patch has the class of its middle pixel. Scenes without two such patches are left out.
    """
    found = []
    for index in range(len(dataset)):
        sample = dataset.sample(index)
        labels = sample.labels.numpy()
        x, y = choose_point(labels)
        maps = patch_similarity(predictor, _picture(sample.image), (x, y), blocks)
        height, width = labels.shape
        rows, columns = next(iter(maps.values())).shape
        patches = labels[_middles(rows, height)][:, _middles(columns, width)]  # (h, w)
        kept = patches >= 0
        kept[min(y * rows // height, rows - 1), min(x * columns // width, columns - 1)] = False
        same, other = kept & (patches == labels[y, x]), kept & (patches != labels[y, x])
        if same.any() and other.any():
            found.append([_share_ahead(one[same], one[other]) for one in maps.values()])
    return [float(value) for value in np.mean(found, axis=0)] if found else [math.nan] * len(blocks)


def _share_ahead(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Share of the pairs in which the first is larger (Mann-Whitney), ties as halves."""
    ranks = rankdata(np.concatenate([first, second]))[: len(first)]
    return float((ranks.sum() - len(first) * (len(first) + 1) / 2) / (len(first) * len(second)))


def _middles(patches: int, pixels: int) -> NDArray[np.int64]:
    """The pixel at the middle of every patch along one side."""
    return np.minimum(((np.arange(patches) + 0.5) * pixels / patches).astype(np.int64), pixels - 1)


def _trained(entry: Entry, reproduction: Reproduction) -> Predictor | None:
    """Load the model of the first seed whose checkpoint is there; scores may outlive theirs."""
    for one in reproduction.results(entry, entry.rows[0]):
        if is_trained(one.checkpoint.parent):
            return load_predictor(one.checkpoint)
    return None


def _picture(image: Tensor) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = image.permute(1, 2, 0).numpy().astype(np.uint8)  # (H, W, 3)
    return pixels


def _grid(rows: int, columns: int) -> tuple[Figure, NDArray[Any]]:
    """Axes without frames, (rows, columns)."""
    figure = Figure(figsize=(1.25 * columns, 1.25 * rows + 0.4), layout="constrained")
    axes: NDArray[Any] = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes


def _name_columns(axes: NDArray[Any], names: Sequence[str]) -> None:
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=9)


def _stage_name(choice: Sequence[int]) -> str:
    return f"stage {choice[0]}" if len(choice) == 1 else f"stages {'+'.join(map(str, choice))}"


def _stage_title(choice: Sequence[int], stages: Sequence[Sequence[int]]) -> str:
    blocks = stages[choice[0] - 1]
    where = f"\nblock {blocks[0]}" if len(blocks) == 1 else f"\nblocks {blocks[0]}-{blocks[-1]}"
    return _stage_name(choice) + (where if len(choice) == 1 else "\n(sum)")
