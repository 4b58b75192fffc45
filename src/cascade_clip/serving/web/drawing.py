"""What the web page draws: the legend, heat maps and example scenes.

Letters: C classes, H x W pixels, h x w of a coarse score map.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cascade_clip.errors import SettingError
from cascade_clip.results import Segmentation
from cascade_clip.sandbox import SceneConfig, make_scene
from cascade_clip.serving.pages import render

PREVIEW_SIDE = 1280
"""Longer side of the images that the page shows; the files to download have the full size."""
EXAMPLES = ((2, 74), (4, 36), (5, 82), (2, 10))
"""Seed and index of the scenes of the built-in world that the page offers."""


@dataclass(frozen=True, eq=False)
class ResultView:
    """What stays of a result, small, so that a click on the legend needs no network."""

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    coverage: tuple[float, ...]
    unlabelled: float
    unseen: frozenset[str]
    """Names of which the model saw no mask in training; empty for models that saw none at all."""
    maps: NDArray[np.floating]
    """Scores of all classes at low resolution, (C, h, w)."""
    image: Image.Image
    """The image, its longer side at most PREVIEW_SIDE."""

    @property
    def largest(self) -> int:
        """Index of the class with the most pixels."""
        return int(np.argmax(self.coverage))


def view_result(result: Segmentation, image: Image.Image, seen: Collection[str]) -> ResultView:
    """Keep of a result what the page needs; `seen` are the names with masks in training."""
    assert result.class_maps is not None
    known = {name.casefold() for name in seen}
    unseen = {name for name in result.class_names if known and name.casefold() not in known}
    shares, unlabelled = tuple(result.coverage.values()), float((result.labels < 0).mean())
    return ResultView(
        result.class_names, result.colors, shares, unlabelled,
        frozenset(unseen), result.class_maps, shrink(image),
    )  # fmt: skip


def shrink(image: Image.Image) -> Image.Image:
    """Return a copy whose longer side is at most PREVIEW_SIDE."""
    small = image.copy()
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return small


def heat_map(view: ResultView, index: int) -> tuple[Image.Image, str]:
    """Draw the scores of a class over the grey image, and describe them in a line.

    Dark is 0; the brightest is the highest score of any class in this image, so that the heat maps
    of its classes can be compared.

    Raises:
        SettingError: there is no such class.
    """
    if not 0 <= index < len(view.names):
        raise SettingError("no such class in this result; press Segment again")
    scores = view.maps[index].astype(np.float32)  # (h, w)
    full = Image.fromarray(scores).resize(view.image.size, Image.Resampling.BILINEAR)
    brightest = max(float(view.maps.max()), 1e-6)
    levels = (np.asarray(full).clip(0, brightest) * (255 / brightest)).round()  # (H, W)
    table = (matplotlib.colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.uint8)
    colors = table[levels.astype(np.uint8)]  # (H, W, 3)
    heat = Image.blend(view.image.convert("L").convert("RGB"), Image.fromarray(colors), 0.75)
    return heat, f"Heat map of {view.names[index]}: scores up to {scores.max():.2f}"


def legend(view: ResultView, selected: int) -> str:
    """Return the classes as HTML buttons, the largest first, those not found last."""
    order = sorted(range(len(view.names)), key=lambda index: (-view.coverage[index], index))
    found = sum(share > 0 for share in view.coverage)
    return render(
        "legend.html", view=view, selected=selected, found=order[:found], absent=order[found:]
    )


def make_examples(folder: Path) -> list[Path]:
    """Draw the example scenes of the built-in world as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, (seed, index) in enumerate(EXAMPLES, start=1):
        files.append(folder / f"scene{number}.png")
        Image.fromarray(make_scene(seed, index, SceneConfig(size=384)).image).save(files[-1])
    return files
