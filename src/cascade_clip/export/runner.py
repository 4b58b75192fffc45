"""Segment pictures with an exported model; needs only onnxruntime, numpy and Pillow.

    python NAME_run.py photo.jpg --out output

This file stands beside NAME.onnx and NAME.json and reads both. It computes what the predictor of
cascade-clip computes: resize, windows, sigmoid, calibration, mean over windows, argmax. Letters: R
rows of text, n windows, h x w patches, H x W pixels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageOps

UNLABELLED = -1
Floats = NDArray[np.float32]


class Runner:
    """An exported model with its class names, ready to label pictures."""

    def __init__(
        self, sidecar: Path | str, words: Path | str | None = None, windows_at_once: int = 4
    ) -> None:
        """Open NAME.json and the files that it names.

        Args:
            sidecar: NAME.json, in the folder of NAME.onnx.
            words: JSON file of other class names with their embeddings, from `cascade-clip export
                text`.
            windows_at_once: windows that go through the network together.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file does not have the hash in the sidecar; other words for a model whose
                names are baked in.
        """
        sidecar = Path(sidecar)
        self.facts = json.loads(sidecar.read_text(encoding="utf-8"))
        self.windows_at_once = windows_at_once
        baked = self.facts["text"] == "baked in"
        if words is not None and baked:
            raise ValueError(
                f"{sidecar} has its class names baked in; export the model without --classes to"
                " choose names later"
            )
        place = sidecar if words is None else Path(words)
        facts = self.facts if words is None else json.loads(place.read_text(encoding="utf-8"))
        self.words = facts["words"]
        self.text = None if baked else self._read_text(place)
        graph = self.facts["onnx"]
        model = read_checked(sidecar.with_name(graph["file"]), graph["sha256"])
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        self.session = onnxruntime.InferenceSession(model, providers=providers)

    @property
    def names(self) -> list[str]:
        """The class names that labels stand for."""
        return list(self.words["names"])

    def label(self, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The class (H, W), -1 below a threshold, of every pixel of 8-bit RGB (H, W, 3)."""
        size = pixels.shape[:2]
        mirrors = (False, True) if self.facts["inference"]["flip"] else (False,)
        found = [self._view(view, mirror) for view in self._views(pixels) for mirror in mirrors]
        best, labels = np.full(size, -np.inf, np.float32), np.zeros(size, np.int64)
        for row, label in enumerate(self.words["labels"]):
            shift = np.float32(self.words["calibration"] if self.words["seen"][row] else 0)
            total = sum(self._scores(view, row, shift, size) for view in found)
            scores = total / np.float32(len(found))  # (H, W)
            wins = scores > best
            best = np.where(wins, scores, best)
            labels = np.where(wins, label, labels)
        threshold = self.words["threshold"]
        if threshold is None:
            return labels
        return np.where(best < np.float32(threshold), self.words["below"], labels)

    def _read_text(self, place: Path) -> Floats:
        """The embeddings (R, D) that a JSON file names."""
        file = place.with_name(self.words["embeddings"])
        read_checked(file, self.words["embeddings_sha256"])
        text: Floats = np.load(file, allow_pickle=False)
        expected = (len(self.words["labels"]), self.facts["width"])
        if text.shape != expected:
            raise ValueError(f"{file} has shape {text.shape}, expected {expected}")
        return text

    def _views(self, pixels: NDArray[np.uint8]) -> Iterator[Floats]:
        """The picture in every size of the test-time augmentation, (3, H', W') of values 0..255."""
        settings, patch = self.facts["inference"], self.facts["patch"]
        height, width = pixels.shape[:2]
        if min(height, width) < patch:
            size, advice = f"{width} x {height} pixels", "give a larger one"
            raise ValueError(
                f"a picture of {size} is smaller than one patch ({patch} pixels); {advice}"
            )
        image = pixels.transpose(2, 0, 1)  # (3, H, W)
        for scale in settings["scales"]:
            shape = (height, width)
            if settings["resize"]:
                factor = max(patch, round(settings["window"] * scale)) / min(height, width)
                shape = (max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5)))
            elif scale != 1:
                shape = (max(patch, round(height * scale)), max(patch, round(width * scale)))
            yield resize_bytes(image, shape).astype(np.float32)

    def _view(self, image: Floats, mirrored: bool) -> dict[str, Any]:
        """Mask logits (n, R, h, w) of the windows of one view."""
        settings, patch = self.facts["inference"], self.facts["patch"]
        side, stride = settings["window"], settings["stride"]
        if mirrored:
            image = image[:, :, ::-1]
        canvas = image.shape[1:]
        rows, columns = (starts(length, side, stride) for length in canvas)
        windows = [(top, left) for top in rows for left in columns]
        padded = math.ceil(side / patch) * patch
        # becomes 0 when the graph normalises
        mean = np.array(self.facts["padding"], np.float32)[:, None, None]
        parts = []
        for first in range(0, len(windows), self.windows_at_once):
            some = windows[first : first + self.windows_at_once]
            batch = np.broadcast_to(mean, (len(some), 3, padded, padded)).copy()
            for index, (top, left) in enumerate(some):
                part = image[:, top : top + side, left : left + side]
                batch[index, :, : part.shape[1], : part.shape[2]] = part
            text = {} if self.text is None else {"text": self.text}
            parts.append(self.session.run(["logits"], {"pixels": batch, **text})[0])
        view = {"windows": windows, "canvas": canvas, "mirrored": mirrored}
        return {"logits": np.concatenate(parts), **view}

    def _scores(
        self, view: dict[str, Any], row: int, shift: np.float32, size: tuple[int, int]
    ) -> Floats:
        """Scores (H, W) of one row from one view."""
        side = self.facts["inference"]["window"]
        total: Floats = np.zeros(view["canvas"], np.float32)
        count: Floats = np.zeros(view["canvas"], np.float32)
        for (top, left), logits in zip(view["windows"], view["logits"][:, row], strict=True):
            part = total[top : top + side, left : left + side]
            part += self._window_scores(logits)[: part.shape[0], : part.shape[1]] - shift
            count[top : top + side, left : left + side] += 1
        scores: Floats = total / count
        scores = scores[:, ::-1] if view["mirrored"] else scores
        return scores if size == view["canvas"] else resize(scores, size)

    def _window_scores(self, logits: Floats) -> Floats:
        """Mask logits (h, w) of one window to probabilities (window, window)."""
        side, patch = self.facts["inference"]["window"], self.facts["patch"]
        score_side = self.facts["inference"]["score_size"] or side
        full = round(math.ceil(side / patch) * patch * score_side / side)
        masks = resize(logits, (full, full))[:score_side, :score_side]
        scores = sigmoid(masks)
        return scores if score_side == side else resize(scores, (side, side))


def starts(length: int, side: int, stride: int) -> list[int]:
    """Where windows begin along one direction; the last one is shifted back inside."""
    count = max(math.ceil((length - side) / stride), 0) + 1
    return [max(min(index * stride, length - side), 0) for index in range(count)]


def sigmoid(values: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(values))
    result: Floats = np.where(values >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
    return result


def resize(values: Floats, shape: tuple[int, int]) -> Floats:
    """Resize (..., H, W) bilinearly, without antialias, as torch with align_corners=False."""
    values = np.asarray(values, np.float32)
    for axis, length in ((-1, shape[1]), (-2, shape[0])):
        old = values.shape[axis]
        if old == length:
            continue
        half, factor = np.float32(0.5), np.float32(old) / np.float32(length)
        place = np.maximum((np.arange(length, dtype=np.float32) + half) * factor - half, 0)
        low = np.minimum(place.astype(np.int64), old - 1)
        high = np.minimum(low + 1, old - 1)
        weight = (place - low).astype(np.float32)
        weight = weight if axis == -1 else weight[:, None]
        values = np.take(values, low, axis) * (1 - weight) + np.take(values, high, axis) * weight
    return values


def resize_bytes(values: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize 8-bit values (..., H, W) so, rounding twice, with torch's fixed-point weights."""
    for axis, length in ((-1, shape[1]), (-2, shape[0])):
        old = values.shape[axis]
        if old == length:
            continue
        place = np.maximum((np.arange(length) + 0.5) * (old / length) - 0.5, 0)
        low = np.minimum(place.astype(np.int64), old - 1)
        weights = np.stack([1 - (place - low), place - low])  # (2, length)
        bits = next(
            bits for bits in range(16) if int(0.5 + weights.max() * 2 ** (bits + 1)) >= 2**15
        )
        whole = np.floor(weights * 2**bits + 0.5).astype(np.int32)
        first, second = whole if axis == -1 else whole[..., None]  # (length) or (length, 1)
        before, after = (
            np.take(values, place_of, axis).astype(np.int32)
            for place_of in (low, np.minimum(low + 1, old - 1))
        )
        total = (before * first + after * second + 2 ** (bits - 1)) >> bits
        values = np.clip(total, 0, 255).astype(np.uint8)
    return values


def read_checked(path: Path, digest: str) -> bytes:
    """The bytes of a file whose SHA-256 is known."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; it belongs beside the JSON file that names it")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        differs = "its SHA-256 differs from the JSON file's; export again"
        raise ValueError(f"{path} is not the file that was exported: {differs}")
    return data


def load_picture(path: Path | str) -> NDArray[np.uint8]:
    """Read (H, W, 3) 8-bit RGB: turned as EXIF says, transparency over white, 16-bit grey as 8."""
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I"):
        grey = ((np.array(picture).astype(np.uint32) + 128) // 257).astype(np.uint8)  # (H, W)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.array(picture.convert("RGB"))


def write_result(
    runner: Runner, labels: NDArray[np.int64], picture: NDArray[np.uint8], folder: Path, stem: str
) -> dict[str, float]:
    """Write STEM_index.png, STEM_overlay.png and STEM.json whole; return each name's share."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = np.bincount(labels.ravel() + 1, minlength=len(runner.names) + 1)[1:]
    coverage = {
        name: float(count) / labels.size for name, count in zip(runner.names, counts, strict=True)
    }
    # (1 + C, 3), unlabelled first
    colors = np.array([(128, 128, 128), *runner.words["colors"]], np.uint8)
    many = len(runner.names) > 255
    index = Image.fromarray(labels.astype(np.uint16 if many else np.uint8))  # -1: the largest
    if not many:
        palette = np.full((256, 3), 128, np.uint8)
        palette[: len(colors) - 1] = colors[1:]
        index.putpalette(palette.tobytes())
    overlay = Image.blend(Image.fromarray(picture), Image.fromarray(colors[labels + 1]), 0.55)
    entries = [
        {"index": number, "name": name, "coverage": share}
        for number, (name, share) in enumerate(coverage.items())
    ]
    values = {"height": labels.shape[0], "width": labels.shape[1], "classes": entries}
    text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    for end, image in (("_index.png", index), ("_overlay.png", overlay), (".json", None)):
        handle, name = tempfile.mkstemp(dir=folder, suffix=Path(end).suffix)
        with os.fdopen(handle, "wb") as file:
            if image is None:
                file.write(text.encode())
            else:
                image.save(file, format="PNG")
        os.chmod(name, 0o644)
        os.replace(name, folder / f"{stem}{end}")
    return coverage


def main() -> int:
    """Label the images on the command line; exit code 2: something is wrong with what was given."""
    own = Path(__file__).resolve()
    parser = argparse.ArgumentParser(description="Segment pictures with an exported model.")
    parser.add_argument("pictures", nargs="+", help="picture files")
    sidecar = str(own.with_name(own.stem.removesuffix("_run") + ".json"))
    parser.add_argument("--model", default=sidecar, help="NAME.json of the model")
    other = "JSON file of other class names, from: cascade-clip export text"
    parser.add_argument("--words", help=other)
    parser.add_argument("--out", default="output", help="folder for the results")
    given = parser.parse_args()
    try:
        runner = Runner(given.model, given.words)
        for path in given.pictures:
            picture, out = load_picture(path), Path(given.out)
            coverage = write_result(runner, runner.label(picture), picture, out, Path(path).stem)
            found = ((share, name) for name, share in coverage.items() if share > 0)
            shares = sorted(found, reverse=True)[:8]
            text = ", ".join(f"{name} {100 * share:.1f} %" for share, name in shares)
            sys.stdout.write(f"{path}: {text}\n")
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
