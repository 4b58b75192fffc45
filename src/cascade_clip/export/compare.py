"""What an exported model costs in exactness, figures and time, compared with its source.

Letters: B images, C classes, D joint width, h x w patches, H x W pixels.
"""

import dataclasses
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_clip.errors import SettingError
from cascade_clip.export.onnx import check_exportable, require
from cascade_clip.files import write_whole
from cascade_clip.inference import Predictor, Words
from cascade_clip.models import Segmenter

CHECKED_PATCHES = ((4, 4), (7, 5), (9, 16))
"""Rows and columns of patches of the sizes at which logits are compared: square, tall, wide."""


@dataclass(frozen=True)
class Difference:
    """Mask logits of one image size, exported against PyTorch."""

    height: int
    width: int
    largest: float
    """Largest absolute difference of a mask logit."""
    range: float
    """Largest absolute mask logit."""


class ExportedNetwork(nn.Module):
    """An ONNX file with the face of the predictor's network, so that a predictor evaluates it."""

    def __init__(self, file: Path, predictor: Predictor) -> None:
        """Open FILE.onnx, which was exported from `predictor` with text embeddings as an input.

        Raises:
            ImportError: onnxruntime is missing.
            ValueError: the class names of the file are baked in.
        """
        super().__init__()
        require("onnxruntime")
        check_exportable(predictor.settings)
        import onnxruntime

        config = predictor.checkpoint.config.model
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session: Any = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        if [entry.name for entry in self.session.get_inputs()] != ["pixels", "text"]:
            raise SettingError(
                f"{file} takes no text embeddings to compare with; export it without --classes"
            )
        self.patch_size, self.joint_width = predictor.model.patch_size, predictor.model.joint_width
        self.mean = torch.tensor(config.mean)[:, None, None] * 255  # (3, 1, 1)
        self.std = torch.tensor(config.std)[:, None, None] * 255  # (3, 1, 1)

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        """Mask logits (B, C, h, w) of normalised images (B, 3, H, W) for text embeddings (C, D)."""
        bottom, right = -images.shape[-2] % self.patch_size, -images.shape[-1] % self.patch_size
        pixels = F.pad(images, (0, right, 0, bottom)) * self.std + self.mean  # (B, 3, H', W')
        inputs = {"pixels": pixels.numpy(), "text": text.float().numpy()}
        (logits,) = self.session.run(["logits"], inputs)
        return torch.from_numpy(logits)  # (B, C, h, w)


def exported_predictor(file: Path, predictor: Predictor) -> Predictor:
    """A predictor on the CPU whose network is the ONNX file."""
    network = cast(Segmenter, ExportedNetwork(file, predictor))
    checkpoint = dataclasses.replace(predictor.checkpoint, model=network)
    return Predictor(checkpoint, predictor.settings, "cpu")


@torch.inference_mode()
def compare_logits(predictor: Predictor, other: Predictor, text: Tensor) -> list[Difference]:
    """Compare mask logits at three sizes, of two random images each, for text embeddings (C, D)."""
    generator = torch.Generator().manual_seed(0)
    patch, found = predictor.model.patch_size, []
    for rows, columns in CHECKED_PATCHES:
        size = (rows * patch, columns * patch)
        images = torch.randn(2, 3, *size, generator=generator)
        expected, given = predictor.model(images, text), other.model(images, text)  # (2, C, h, w)
        largest = float((expected - given).abs().max())
        found.append(Difference(*size, largest, float(expected.abs().max())))
    return found


@torch.inference_mode()
def windows_per_second(predictors: list[Predictor], text: Tensor, rounds: int = 15) -> list[float]:
    """Windows per second, one by one, of each network: medians of `rounds` taken in turns."""
    side = predictors[0].settings.window
    images = torch.zeros(1, 3, side, side)
    times: list[list[float]] = [[] for _ in predictors]
    for turn in range(rounds + 1):
        for predictor, taken in zip(predictors, times, strict=True):
            begin = time.perf_counter()
            predictor.model(images, text)
            if turn:  # the first one warms up
                taken.append(time.perf_counter() - begin)
    return [1 / statistics.median(values) for values in times]


def read_facts(file: Path) -> dict[str, Any]:
    """The JSON file beside an exported model; empty without one."""
    try:
        found = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def draw_models(
    predictors: dict[str, Predictor], pixels: Tensor, classes: Words, file: Path
) -> Path:
    """Draw an image (3, H, W) beside all labels; titles count pixels unlike the first model's."""
    image = pixels.permute(1, 2, 0).numpy()  # (H, W, 3)
    found = {name: predictor.segment(image, classes) for name, predictor in predictors.items()}
    first = next(iter(found.values()))
    panels = [("picture", Image.fromarray(image))]
    for name, one in found.items():
        differing = int((one.labels != first.labels).sum())
        note = "" if one is first else f": {differing} of {one.labels.size} pixels differ"
        panels.append((f"{name}{note}", one.color_image()))
    side, bar = max(300, image.shape[1]), 28
    height = round(side * image.shape[0] / image.shape[1])
    canvas = Image.new("RGB", (len(panels) * (side + 8) - 8, height + bar), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(13)
    for index, (title, panel) in enumerate(panels):
        left = index * (side + 8)
        canvas.paste(panel.resize((side, height), Image.Resampling.NEAREST), (left, bar))
        draw.text((left + 4, bar // 2), title, fill="black", anchor="lm", font=font)
    return write_whole(file, lambda part: canvas.save(part, format="PNG"))


def random_text(classes: int, width: int) -> Tensor:
    """Unit vectors (C, D), the same every time."""
    values = np.random.default_rng(0).standard_normal((classes, width)).astype(np.float32)
    return F.normalize(torch.from_numpy(values), dim=-1)
