"""The commands that look inside a model and draw what they see."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.options import read_classes
from cascade_clip.cli.terminal import check_ending, progress_bar, say
from cascade_clip.errors import SettingError
from cascade_clip.files import write_whole
from cascade_clip.inference import DEFAULT_LOADING, LoadOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from cascade_clip.inference import Predictor
    from cascade_clip.results import Segmentation

_ENDINGS = (".png", ".jpg", ".pdf", ".svg")
_NAMED = 12
"""Classes that a legend names at most."""


def similarity(
    image: Path,
    *,
    model: str = "mini",
    point: str = "",
    blocks: str = "",
    out: Path = Path("similarity.png"),
    loading: LoadOptions = DEFAULT_LOADING,
) -> int:
    """Draw how alike every patch is to one point, block by block (cosine of hidden states).

    Args:
        image: the image.
        model: checkpoint folder, run folder, packaged model, or clip:NAME/WEIGHTS.
        point: pixel as X,Y; by default the middle.
        blocks: block numbers separated by commas; by default six, evenly spaced up to the last.
        out: where to draw.
        loading: how to load and run the model.
    """
    from cascade_clip.files import load_image
    from cascade_clip.research import patch_similarity

    check_ending(out, _ENDINGS)
    predictor = loading.load(model)
    pixels = load_image(image)  # (3, H, W)
    middle = [pixels.shape[2] // 2, pixels.shape[1] // 2]
    place = _numbers(point, "--point") if point else middle
    if len(place) != 2:
        raise SettingError(f"--point wants X,Y, got {point!r}")
    depth = predictor.model.backbone.depth
    spaced = sorted({max(1, round(depth * part / 6)) for part in range(1, 7)})
    chosen = _numbers(blocks, "--blocks") if blocks else spaced
    maps = patch_similarity(predictor, image, (place[0], place[1]), chosen)
    figure, axes = _figure(1 + len(chosen))
    axes[0].imshow(pixels.permute(1, 2, 0).numpy())
    axes[0].plot(place[0], place[1], "o", color="white", markeredgecolor="black", markersize=9)
    axes[0].set_title("image")
    for axis, block in zip(axes[1:], chosen, strict=True):
        drawn = axis.imshow(maps[block], cmap="magma", vmin=0, vmax=1)
        axis.set_title(f"block {block}")
    figure.colorbar(drawn, ax=axes, shrink=0.7, aspect=15, label="cosine")
    return _save(figure, out)


def stages(
    image: Path,
    *,
    model: str = "mini",
    classes: str = "",
    out: Path = Path("stages.png"),
    loading: LoadOptions = DEFAULT_LOADING,
) -> int:
    """Draw the masks of every stage alone, and as stages are added up.

    Args:
        image: the image.
        model: checkpoint folder, run folder, or packaged model.
        classes: class names, a file of them, or a packaged list; by default the model's own.
        out: where to draw.
        loading: how to load and run the model.
    """
    from cascade_clip.files import load_image
    from cascade_clip.research import compare_stages

    check_ending(out, _ENDINGS)
    predictor = loading.load(model)
    pixels = load_image(image).permute(1, 2, 0).numpy()  # (H, W, 3)
    found = compare_stages(predictor, image, predictor.bind(read_classes(classes)))
    figure, axes = _figure(1 + len(found))
    axes[0].imshow(pixels)
    axes[0].set_title("image")
    for axis, (numbers, result) in zip(axes[1:], found, strict=True):
        axis.imshow(result.overlay(pixels, 0.75, legend=False))
        blocks = predictor.model.stages[numbers[0] - 1]
        names = f"block{'s' * (len(blocks) > 1)} {', '.join(map(str, blocks))}"
        alone = len(numbers) == 1
        axis.set_title(f"stage {numbers[0]}\n{names}" if alone else "+".join(map(str, numbers)))
    _name_colors(figure, [result for _, result in found])
    return _save(figure, out)


def cka(
    *,
    model: str = "mini",
    images: Path | None = None,
    limit: int = 128,
    out: Path = Path("cka.png"),
    loading: LoadOptions = DEFAULT_LOADING,
) -> int:
    """Draw how alike all pairs of blocks are: unbiased centred kernel alignment of minibatches.

    Args:
        model: checkpoint folder, run folder, packaged model, or clip:NAME/WEIGHTS (untrained).
        images: folder of images, cut to squares; by default scenes of the built-in world.
        limit: images to use.
        out: where to draw.
        loading: how to load and run the model.
    """
    from cascade_clip.files import load_image
    from cascade_clip.inference import find_sources
    from cascade_clip.research import block_alignment
    from cascade_clip.sandbox import SceneConfig, make_scene

    check_ending(out, _ENDINGS)
    predictor = loading.load(model)
    if images is None:
        arrays = [make_scene(9, index, SceneConfig()).image for index in range(limit)]
    else:
        paths = [source.path for source in find_sources([str(images)])[:limit]]
        arrays = [load_image(path).permute(1, 2, 0).numpy() for path in paths]
    with progress_bar("blocks") as step:
        alignment = block_alignment(predictor, _squares(predictor, arrays, step))
    figure, axes = _figure(1, size=4.5)
    extent = (0.5, len(alignment) + 0.5) * 2
    drawn = axes[0].imshow(alignment, cmap="magma", vmin=0, vmax=1, origin="lower", extent=extent)
    axes[0].set_axis_on()
    axes[0].set(xlabel="block", ylabel="block")
    figure.colorbar(drawn, ax=axes[0], shrink=0.8)
    ends = f"blocks 1 and {len(alignment)}: {alignment[0, -1]:.3f}"
    say(f"{len(arrays)} images; {ends}, the last two: {alignment[-2, -1]:.3f}")
    return _save(figure, out)


def _squares(
    predictor: Predictor, arrays: list[Any], step: Callable[[int, int], None]
) -> Iterator[Tensor]:
    """The middle squares of images, of the window's size, normalised."""
    import torch

    from cascade_clip.ops import normalise, resize_image

    side, config = predictor.settings.window, predictor.checkpoint.config.model
    for number, array in enumerate(arrays):
        pixels = torch.from_numpy(array).permute(2, 0, 1)
        short = min(pixels.shape[1:])
        top, left = (pixels.shape[1] - short) // 2, (pixels.shape[2] - short) // 2
        square = pixels[:, top : top + short, left : left + short]
        yield normalise(resize_image(square, (side, side)), config.mean, config.std)
        step(number + 1, len(arrays))


def _numbers(text: str, flag: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        message = f"{flag} wants whole numbers separated by commas, got {text!r}"
        raise SettingError(message) from None


def _figure(count: int, size: float = 2.4) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size * count, size + 0.7), layout="constrained", dpi=110)
    axes = [figure.add_subplot(1, count, index + 1) for index in range(count)]
    for axis in axes:
        axis.set_axis_off()
    return figure, axes


def _name_colors(figure: Figure, found: Sequence[Segmentation]) -> None:
    """A legend of the classes that any mask shows, those with most pixels first."""
    import numpy as np
    from matplotlib.patches import Patch

    names, colors = found[0].class_names, found[0].colors
    covered = np.concatenate([result.labels[result.labels >= 0] for result in found])
    pixels = np.bincount(covered, minlength=len(names))  # (C,)
    present = [int(index) for index in np.argsort(-pixels, kind="stable") if pixels[index]]
    patches = [
        Patch(color=f"#{bytes(colors[index]).hex()}", label=names[index].replace("$", r"\$"))
        for index in present[:_NAMED]
    ]
    if len(present) > _NAMED:
        patches.append(Patch(color="none", label=f"and {len(present) - _NAMED} more"))
    if patches:
        figure.legend(handles=patches, loc="outside right center", frameon=False, fontsize=9)


def _save(figure: Figure, out: Path) -> int:
    with warnings.catch_warnings():
        # letters that the font lacks are drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph")
        write_whole(out, figure.savefig)
    say(f"wrote {out}")
    return ExitCode.DONE
