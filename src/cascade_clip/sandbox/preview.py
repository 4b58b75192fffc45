"""Show the built-in world, and export it to disk in the folder layout of the dataset reader."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cascade_clip.errors import SettingError
from cascade_clip.files import write_whole
from cascade_clip.sandbox.scenes import (
    CLASS_NAMES,
    IGNORE,
    PALETTE,
    UNSEEN_NAMES,
    Scene,
    SceneConfig,
    make_scene,
)

_LEGEND_ROW = 14
_GAP = 6


def preview_sheet(seed: int = 0, count: int = 8, size: int = 128) -> Image.Image:
    """Pictures of the world beside their coloured masks, with the names of the classes below."""
    if count < 1:
        raise SettingError(f"count must be at least 1, got {count}")
    config = SceneConfig(size=size)
    cells = [_cell(make_scene(seed, index, config)) for index in range(count)]
    columns = min(count, 4)
    width, height = cells[0].width + _GAP, max(cell.height for cell in cells) + _GAP
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    for number, cell in enumerate(cells):
        sheet.paste(cell, (_GAP + number % columns * width, _GAP + number // columns * height))
    return sheet


def mask_image(mask: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> Image.Image:
    """A palette picture whose pixel values are the labels."""
    image = Image.fromarray(mask).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    colours = [channel for colour in PALETTE for channel in colour]
    image.putpalette(colours + [0] * (3 * IGNORE - len(colours)) + [255, 255, 255])
    return image


def export_world(
    folder: Path, train: int = 2000, val: int = 200, size: int = 128, seed: int = 0
) -> Path:
    """Write images, masks, classes.txt and unseen.txt; started again, it gives the same files."""
    folder = Path(folder)
    config = SceneConfig(size=size)
    write_whole(folder / "classes.txt", "".join(f"{name}\n" for name in CLASS_NAMES))
    write_whole(folder / "unseen.txt", "".join(f"{name}\n" for name in UNSEEN_NAMES))
    for split, first, count in (("train", 0, train), ("val", 1_000_000_000, val)):
        for number in range(count):
            picture, labels = (
                folder / kind / split / f"{number:06d}.png" for kind in ("images", "masks")
            )
            scene = make_scene(seed, first + number, config)
            write_whole(picture, Image.fromarray(scene.image).save)
            write_whole(labels, mask_image(scene.mask).save)
    return folder


def _cell(scene: Scene) -> Image.Image:
    """One picture, its mask and the legend."""
    size = scene.image.shape[0]
    rows = -(-len(scene.present) // 2)
    cell = Image.new("RGB", (2 * size + _GAP // 2, size + 4 + max(rows, 4) * _LEGEND_ROW), "white")
    cell.paste(Image.fromarray(scene.image), (0, 0))
    cell.paste(mask_image(scene.mask).convert("RGB"), (size + _GAP // 2, 0))
    draw = ImageDraw.Draw(cell)
    for number, name in enumerate(scene.present):
        left, top = number % 2 * (size + _GAP // 2), size + 4 + number // 2 * _LEGEND_ROW
        colour, mark = PALETTE[CLASS_NAMES.index(name)], " (unseen)" * (name in UNSEEN_NAMES)
        draw.rectangle((left, top + 1, left + 9, top + 10), colour, outline=(90, 90, 90))
        draw.text((left + 14, top), name + mark, fill=(30, 30, 30))
    return cell
