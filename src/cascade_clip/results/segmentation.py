"""What a segmentation is: labels with names and colours, and the files that people take away.

H, W: size of the image in pixels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from cascade_clip.errors import DataError
from cascade_clip.files import open_picture, read_picture, write_json, write_whole
from cascade_clip.results.fonts import drawable, font_for
from cascade_clip.results.polygons import outline_mask
from cascade_clip.results.rle import encode_mask

UNLABELLED = -1
Output = Literal["overlay", "index", "coco", "labelme", "heatmaps"]
_LEGEND_ROWS = 24
_STRIP = 2**20


@dataclass(frozen=True, eq=False)
class Segmentation:
    """One label per pixel, with the names the labels stand for."""

    labels: NDArray[np.int64]
    """Index into `class_names` per pixel, shape (H, W); -1 where no class was given."""
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    """Red, green and blue of every class, 0..255."""
    scores: NDArray[np.float32] | None = None
    """Score of the winning class per pixel, shape (H, W)."""
    class_maps: NDArray[np.floating[Any]] | None = None
    """Scores of every class at lower resolution, shape (C, h, w), for heat maps."""

    def __post_init__(self) -> None:
        shape, count = self.labels.shape, len(self.class_names)
        if self.labels.ndim != 2 or 0 in shape:
            raise ValueError(f"labels must have shape (H, W) with no empty side, got {shape}")
        if self.labels.dtype.kind not in "iu":
            raise ValueError(f"labels must be whole numbers, got {self.labels.dtype}")
        if count != len(self.colors) or not count:
            needed = "as many colours and at least one"
            raise ValueError(f"{count} class names need {needed}, got {len(self.colors)}")
        if len(set(self.class_names)) != count:
            raise ValueError("class names must differ, so that each has a coverage of its own")
        # small types cannot count beyond their classes
        object.__setattr__(self, "labels", self.labels.astype(np.int64, copy=False))
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < UNLABELLED or high >= count:
            raise ValueError(f"labels must lie in -1..{count - 1}, got values from {low} to {high}")
        if self.scores is not None and self.scores.shape != shape:
            found = self.scores.shape
            raise ValueError(f"scores must have the shape of labels {shape}, got {found}")
        maps = self.class_maps
        if maps is not None and (maps.ndim != 3 or len(maps) != count):
            raise ValueError(f"class maps must have shape ({count}, h, w), got {maps.shape}")

    @property
    def coverage(self) -> dict[str, float]:
        """Share of the pixels of every class, in label order."""
        counts = zip(self.class_names, self._sums(None), strict=True)
        return {name: float(count) / self.labels.size for name, count in counts}

    @property
    def mean_scores(self) -> dict[str, float]:
        """Mean score of the pixels of every class that occurs; empty without scores."""
        if self.scores is None:
            return {}
        sums, counts = self._sums(self.scores), self._sums(None)
        named = zip(self.class_names, sums, counts, strict=True)
        return {name: float(total / count) for name, total, count in named if count}

    def _sums(
        self, weights: NDArray[np.float32] | None
    ) -> NDArray[np.floating[Any] | np.integer[Any]]:
        """Sum of the weights of every class's pixels (C,), or their number."""
        parts, size = [], len(self.class_names) + 1
        for rows in _strips(self.labels.shape):  # bincount copies
            values = None if weights is None else weights[rows].ravel()
            parts.append(np.bincount(self.labels[rows].ravel() + 1, values, minlength=size))
        return np.sum(parts, axis=0)[1:]  # type: ignore[no-any-return]

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Where a class is, bool (H, W).

        Raises:
            ValueError: a name that was not asked for.
        """
        if name not in self.class_names:
            names = list(self.class_names)
            raise ValueError(f"no class {name!r} in this segmentation; it has {names}")
        return np.asarray(self.labels == self.class_names.index(name))

    def heatmap(self, name: str) -> NDArray[np.float32]:
        """The score of one class everywhere, float32 (H, W), won or not; resized from `class_maps`.

        Raises:
            ValueError: a name that was not asked for, or a segmentation that was read from files.
        """
        self.mask(name)  # refuses unknown names
        if self.class_maps is None:
            advice = "segment the image again for heat maps"
            raise ValueError(f"this segmentation carries no class maps; {advice}")
        coarse = Image.fromarray(self.class_maps[self.class_names.index(name)].astype(np.float32))
        size = (self.labels.shape[1], self.labels.shape[0])
        return np.asarray(coarse.resize(size, Image.Resampling.BILINEAR), dtype=np.float32)

    def heatmap_image(self, name: str, image: Any = None, opacity: float = 0.7) -> Image.Image:
        """The heat map of a class, black to yellow over scores 0..1, over the image if given."""
        shades = Image.fromarray(np.round(255 * self.heatmap(name).clip(0, 1)).astype(np.uint8))
        colored = ImageOps.colorize(shades, "#000010", "#fff3b0", "#d1495b")
        return colored if image is None else Image.blend(_open(image), colored, opacity)

    def to_labelme(self, image_name: str) -> dict[str, Any]:
        """The classes as polygons in Labelme's JSON; `image_name` is the image's file name."""
        rest: dict[str, Any] = {"group_id": None, "shape_type": "polygon", "flags": {}}
        shapes: list[dict[str, Any]] = [
            {"label": name, "points": [list(point) for point in part], **rest}
            for name, share in self.coverage.items()
            if share > 0
            for part in outline_mask(self.mask(name))
        ]
        image = {"imagePath": image_name, "imageData": None}
        size = dict(zip(("imageHeight", "imageWidth"), self.labels.shape, strict=True))
        return {"version": "5.0.1", "flags": {}, "shapes": shapes, **image, **size}

    def color_image(self) -> Image.Image:
        """The classes in their colours; unlabelled pixels are grey."""
        return Image.fromarray(self._color_table()[self.labels])

    def _color_table(self) -> NDArray[np.uint8]:
        # (C + 1, 3), the last one at index -1
        return np.array([*self.colors, (128, 128, 128)], dtype=np.uint8)

    def overlay(self, image: Any, opacity: float = 0.55, *, legend: bool = True) -> Image.Image:
        """The image under its classes' colours, with borders and a legend on the right.

        Args:
            image: a Pillow image, an array (H, W, 3) of 8-bit values, or a path; of the size of
                `labels`.
            opacity: how much the colours cover, 0..1.
            legend: whether the names and their share of the image are written beside it.
        """
        pixels = _pixels(image)  # (H, W, 3)
        if pixels.shape[:2] != self.labels.shape:
            size = f"{pixels.shape[1]} x {pixels.shape[0]} pixels"
            raise ValueError(f"the image has {size}, the labels {self.labels.shape[::-1]}")
        if not 0 <= opacity <= 1:
            raise ValueError(f"opacity must lie in 0..1, got {opacity}")
        canvas = self._panel() if legend else Image.new("RGB", self.labels.shape[::-1])
        # a large picture is not held in several forms at once
        for rows in _strips(self.labels.shape):
            colors = Image.fromarray(self._color_table()[self.labels[rows]])
            # (h, W, 3)
            blended = np.array(Image.blend(Image.fromarray(pixels[rows]), colors, opacity))
            blended[_borders(self.labels[rows.start : rows.stop + 1])[: len(blended)]] = 255
            canvas.paste(Image.fromarray(blended), (0, rows.start))
        return canvas

    def index_image(self) -> Image.Image:
        """The labels as an image file holds them: 8-bit palette up to 255 classes (255 =
        unlabelled), else 16-bit (65535 = unlabelled)."""
        if len(self.class_names) > 255:
            return Image.fromarray(self.labels.astype(np.uint16))  # -1 becomes the largest number
        index = Image.fromarray(self.labels.astype(np.uint8))
        palette = np.full((256, 3), 128, dtype=np.uint8)
        palette[: len(self.colors)] = self.colors
        index.putpalette(palette.tobytes())
        return index

    def to_json(self) -> dict[str, Any]:
        """Names, colours, coverage (0: absent) and mean scores as plain values."""
        scores, coverage = self.mean_scores, self.coverage
        classes = [
            {
                "index": index,
                "name": name,
                "color": list(self.colors[index]),
                "coverage": coverage[name],
                "mean_score": scores.get(name),
            }
            for index, name in enumerate(self.class_names)
        ]
        height, width = self.labels.shape
        unlabelled = float((self.labels < 0).mean())
        return {"width": width, "height": height, "unlabelled": unlabelled, "classes": classes}

    def to_coco_rle(self) -> list[dict[str, Any]]:
        """The present classes in COCO form: category_id (label + 1), RLE, area, bbox, score."""
        scores = self.mean_scores
        found: list[dict[str, Any]] = []
        for index, name in enumerate(self.class_names):
            mask = self.labels == index
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            if len(rows) == 0:
                continue
            left, top = int(columns[0]), int(rows[0])
            box = [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
            annotation = {
                "category_id": index + 1,
                "name": name,
                "segmentation": encode_mask(mask),
                "area": int(np.count_nonzero(mask)),
                "bbox": box,
            }
            found.append({**annotation, "iscrowd": 1, "score": scores.get(name)})
        return found

    def save(
        self,
        folder: Path | str,
        stem: str,
        image: Any = None,
        outputs: tuple[Output, ...] = ("overlay", "index"),
        extra: Mapping[str, Any] | None = None,
    ) -> list[Path]:
        """Write the wanted files, each under a temporary name first, and `STEM.json` last.

        Args:
            folder: where to; made if it is not there.
            stem: how the files begin.
            image: the picture, for overlays and heat maps; without it there is no overlay.
            outputs: `overlay` (STEM_overlay.png), `index` (STEM_index.png), `coco`
                (STEM_coco.json), `labelme` (STEM_labelme.json), `heatmaps`
                (STEM_heat_NUMBER_NAME.png for every class that occurs).
            extra: more values for STEM.json.
        """
        if not stem or Path(stem).name != stem:
            raise ValueError(f"the stem of result files must be a plain file name, got {stem!r}")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        pictures: dict[str, Image.Image] = {}
        texts: dict[str, Any] = {}
        if "overlay" in outputs and image is not None:
            pictures["_overlay.png"] = self.overlay(image)
        if "index" in outputs:
            pictures["_index.png"] = self.index_image()
        if "heatmaps" in outputs:
            for number, (name, share) in enumerate(self.coverage.items()):
                if share > 0:
                    end = f"_heat_{number:03d}_{file_name(name)}.png"
                    pictures[end] = self.heatmap_image(name, image)
        if "coco" in outputs:
            texts["_coco.json"] = self.to_coco_rle()
        if "labelme" in outputs:
            source = f"{stem}.jpg" if extra is None else str(extra.get("source", stem))
            texts["_labelme.json"] = self.to_labelme(source)
        names = [f"{stem}{end}" for end in (*pictures, *texts)]
        texts[".json"] = {**self.to_json(), **(extra or {}), "files": names}
        start = str(folder / stem)
        written = [write_whole(Path(start + end), one.save) for end, one in pictures.items()]
        return written + [write_json(Path(start + end), values) for end, values in texts.items()]

    @classmethod
    def load(cls, file: Path | str) -> Segmentation:
        """Read back what `save` wrote, from its JSON file (scores are not kept)."""
        file = Path(file)
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            names = tuple(str(entry["name"]) for entry in values["classes"])
            parts = [[int(value) for value in entry["color"][:3]] for entry in values["classes"]]
            colors = tuple((red, green, blue) for red, green, blue in parts)
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
            raise DataError(f"{file} is not the JSON of a segmentation: {error!r}") from error
        picture = file.with_name(f"{file.stem}_index.png")
        index = read_picture(picture, f"index picture {picture}", mask=True)
        labels = np.array(index).astype(np.int64)  # (H, W)
        labels[labels == (255 if len(names) <= 255 else 65535)] = UNLABELLED
        return cls(labels, names, colors)

    def _panel(self) -> Image.Image:
        """Draw swatches, names and shares on white, with space for the image on the left."""
        height, space = self.labels.shape
        entries = zip(self.coverage.items(), self.colors, strict=True)
        present = sorted((-share, name, color) for (name, share), color in entries if share > 0)
        rows = [(color, _shorten(name), f"{-100 * share:.1f} %") for share, name, color in present]
        unlabelled = float((self.labels < 0).mean())
        if unlabelled:
            rows.append(((128, 128, 128), "unlabelled", f"{100 * unlabelled:.1f} %"))
        if len(rows) > _LEGEND_ROWS:
            more = ((255, 255, 255), f"and {len(rows) - _LEGEND_ROWS} more", "")
            rows = [*rows[:_LEGEND_ROWS], more]
        size = min(max(12, height // 28), 32)
        font = ImageFont.load_default(size)
        gap, line = size // 2, int(size * 1.7)
        names = max(int(font_for(name, size).getlength(drawable(name))) for _, name, _ in rows)
        shares = max(int(font.getlength(share)) for _, _, share in rows)
        width = gap + size + gap + names + 2 * gap + shares + gap
        canvas = Image.new("RGB", (space + width, max(height, line * len(rows) + gap)), "white")
        draw = ImageDraw.Draw(canvas)
        for number, (color, name, share) in enumerate(rows):
            left, top = space + gap, gap + number * line
            draw.rectangle((left, top, left + size, top + size), fill=color)
            middle = top + size // 2
            place, right = (left + size + gap, middle), (canvas.width - gap, middle)
            draw.text(place, drawable(name), (20, 20, 20), font_for(name, size), anchor="lm")
            draw.text(right, share, (90, 90, 90), font, anchor="rm")
        return canvas


def _open(image: Any) -> Image.Image:
    if isinstance(image, (str, Path)):
        image = ImageOps.exif_transpose(open_picture(image))
    elif not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    picture: Image.Image = image.convert("RGB")
    return picture


def _pixels(image: Any) -> NDArray[np.uint8]:
    """An image as 8-bit RGB (H, W, 3); not copied if it is that already."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,):
        return image
    return np.asarray(_open(image))


def _strips(shape: tuple[int, ...]) -> list[slice]:
    """Rows 0..H of an image (H, W) in strips of about a million pixels."""
    height, step = shape[0], max(1, _STRIP // shape[1])
    return [slice(start, min(start + step, height)) for start in range(0, height, step)]


def _borders(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour has another label, bool (H, W)."""
    borders = np.zeros(labels.shape, dtype=bool)
    borders[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    borders[:-1] |= labels[:-1] != labels[1:]
    return borders


def file_name(text: str) -> str:
    """A class name for a file name: letters and digits, else dashes, at most 60 bytes."""
    name = re.sub(r"[^\w]+", "-", text).strip("-").encode()[:60].decode(errors="ignore")
    return name or "class"


def _shorten(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "\u2026"
