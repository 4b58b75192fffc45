"""Models for other runtimes: ONNX with a runner beside it, and torch.export.

The exported graph is the network of the predictor: raw pixels and text embeddings to mask logits at
patch resolution. Batch, height and width (multiples of the patch) and the number of class names
stay free. Resizing, windows, sigmoid and argmax are the runner's part. Letters: B images, C
classes, R rows of text that compete, D joint width, h x w patches, H x W pixels.
"""

import copy
import importlib
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from cascade_clip.checkpoints import read_versions
from cascade_clip.config import InferenceConfig
from cascade_clip.encoders import Grid, PositionEmbedding, resize_positions
from cascade_clip.errors import MissingPackageError, SettingError, StorageError
from cascade_clip.files import file_sha256, write_json, write_whole
from cascade_clip.inference import BoundClasses, Predictor

FORMAT = 1
OPSET = 20
RUNNER = Path(__file__).with_name("runner.py")
"""Copied, never imported: it needs onnxruntime."""
RUNNER_SETTINGS = ("window", "stride", "score_size", "resize", "flip")
LARGEST_GRID = 4096
"""Most patches along one side that an exported graph accepts."""
TOLERANCE = 1e-4
"""Largest difference from PyTorch, as a part of the largest mask logit (at least of 1)."""
LARGEST_FILE = 2_000_000_000
"""Bytes of weights that one ONNX file can hold, rounded down."""


class ExportedPositions(nn.Module):
    """Position embeddings resized inside the graph, for whatever grid comes."""

    def __init__(self, source: PositionEmbedding) -> None:
        super().__init__()
        self.grid, self.positions = source.grid, source.positions

    def forward(self, grid: Grid) -> Tensor:
        """Positions (N, W) of a grid of patches; of its own grid the parameter, up to rounding."""
        return resize_positions(self.positions, self.grid, grid)


def check_exportable(settings: InferenceConfig) -> None:
    """Refuse settings of inference that neither a graph nor its runner can follow.

    Raises:
        ValueError: stages combined by confidence, or a guided upsampler.
    """
    for name, value in {"combine": "sum", "upsampler": "bilinear"}.items():
        if (found := getattr(settings, name)) != value:
            advice = f"set it to {value} in the checkpoint's config.yaml"
            raise SettingError(f"inference.{name} {found} cannot be exported; {advice}")


class ExportedModel(nn.Module):
    """Raw pixels to mask logits: normalisation and the predictor's network."""

    mean: Tensor
    std: Tensor
    text: Tensor | None

    def __init__(self, predictor: Predictor, text: Tensor | None = None) -> None:
        """Copy a predictor's network to the CPU; `text` (C, D) bakes its class names in."""
        super().__init__()
        check_exportable(predictor.settings)
        config = predictor.checkpoint.config.model
        self.network = copy.deepcopy(predictor.model).cpu().float().eval().requires_grad_(False)
        tower = cast(Any, self.network.backbone.tower)
        tower.position_embedding = ExportedPositions(tower.position_embedding)
        for name, values in (("mean", config.mean), ("std", config.std)):
            buffer = 255 * torch.tensor(values, dtype=torch.float32)[:, None, None]  # (3, 1, 1)
            self.register_buffer(name, buffer)
        self.register_buffer("text", None if text is None else text.detach().cpu().float())

    def forward(self, pixels: Tensor, text: Tensor | None = None) -> Tensor:
        """Mask logits (B, C, h, w) of RGB 0..255 (B, 3, H, W) for text (C, D) or that baked in."""
        chosen = self.text if text is None else text
        logits: Tensor = self.network((pixels - self.mean) / self.std, chosen)  # (B, C, h, w)
        return logits


def trace(model: ExportedModel) -> torch.export.ExportedProgram:
    """Record the graph; batch, height, width and class names (unless baked in) stay free."""
    patch, width = model.network.patch_size, model.network.joint_width
    pixels = torch.full((2, 3, 3 * patch, 5 * patch), 128.0)
    rows, columns = (
        torch.export.Dim(name, min=2, max=LARGEST_GRID) for name in ("rows", "columns")
    )
    shapes: list[Any] = [{0: torch.export.Dim("batch", min=1), 2: patch * rows, 3: patch * columns}]
    arguments: tuple[Tensor, ...] = (pixels,)
    if model.text is None:
        arguments = (pixels, torch.nn.functional.normalize(torch.ones(4, width), dim=-1))
        shapes.append({0: torch.export.Dim("classes", min=1)})
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model, arguments, dynamic_shapes=tuple(shapes), strict=False)


def export_torch(predictor: Predictor, file: Path, bound: BoundClasses | None = None) -> Path:
    """Write a torch.export program, to run with `torch.export.load(file).module()(pixels, text)`.

    Args:
        predictor: the model.
        file: where to, ending in .pt2.
        bound: class names to bake in; by default text embeddings stay an input.
    """
    _check_ending(file, ".pt2")
    program = trace(ExportedModel(predictor, None if bound is None else bound.text))
    return write_whole(file, lambda part: torch.export.save(program, part))


def export_onnx(
    predictor: Predictor,
    file: Path,
    bound: BoundClasses,
    *,
    bake: bool = False,
    int8: bool = False,
    name: str = "",
) -> list[Path]:
    """Write FILE.onnx, FILE.json (how to run it), FILE.npy (text embeddings, unless baked in) and
    FILE_run.py (the runner).

    Args:
        predictor: the model.
        file: where to, ending in .onnx.
        bound: class names; their embeddings are baked in with `bake`, else stand in FILE.npy and
            can be replaced.
        bake: see `bound`.
        int8: store the weights of matrix products in 8 bits (7 of them used), quantise their inputs
            while running; the patch embedding stays as it is.
        name: how the model is called in FILE.json.

    Raises:
        ImportError: a package of the extra `export` is missing.
        ValueError: another ending, more weights than one ONNX file can hold, or a graph that does
            not compute what the model computes.
    """
    _check_ending(file, ".onnx")
    require("onnx", "onnxscript", "onnxruntime")
    model = ExportedModel(predictor, bound.text if bake else None)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size > LARGEST_FILE:
        raise SettingError(
            f"this model has {size / 1e9:.1f} GB of weights, one ONNX file holds 2 GB; use"
            " `cascade-clip export torch`"
        )
    write_whole(file, lambda part: _write_graph(model, part, int8=int8))
    written = [file]
    words = describe_words(bound)
    if not bake:
        embeddings = write_embeddings(bound, file.with_suffix(".npy"))
        words |= {"embeddings": embeddings.name, "embeddings_sha256": file_sha256(embeddings)}
        written.append(embeddings)
    facts = describe_model(predictor, model, name)
    facts |= {"text": "baked in" if bake else "input", "words": words}
    graph = {"file": file.name, "sha256": file_sha256(file), "bytes": file.stat().st_size}
    facts["onnx"] = {**graph, "opset": OPSET, "int8": int8}
    written.append(write_json(file.with_suffix(".json"), facts))
    runner = file.with_name(f"{file.stem}_run.py")
    return [*written, write_whole(runner, RUNNER.read_bytes())]


def export_text(predictor: Predictor, file: Path, bound: BoundClasses) -> list[Path]:
    """Write FILE.json and FILE.npy: other class names for a model that takes text embeddings."""
    _check_ending(file, ".json")
    embeddings = write_embeddings(bound, file.with_suffix(".npy"))
    words = describe_words(bound)
    words |= {"embeddings": embeddings.name, "embeddings_sha256": file_sha256(embeddings)}
    facts = {"format": FORMAT, "clip_sha256": predictor.checkpoint.clip_fingerprint, "words": words}
    return [write_json(file, facts), embeddings]


def describe_words(bound: BoundClasses) -> dict[str, Any]:
    """Class names and what is computed with each row of text, as plain values."""
    every = list(range(len(bound.names)))
    return {
        "names": list(bound.names),
        "colors": [list(color) for color in bound.colors],
        "labels": every if bound.labels is None else bound.labels.tolist(),
        "seen": bound.seen.tolist(),
        **{key: getattr(bound, key) for key in ("calibration", "threshold", "below", "background")},
    }


def describe_model(predictor: Predictor, model: ExportedModel, name: str) -> dict[str, Any]:
    """What a runner needs beside the graph, and where the model comes from."""
    checkpoint, settings = predictor.checkpoint, predictor.settings
    config, record = checkpoint.config, checkpoint.record
    unknown = "as the CLIP weights and the training data; none is granted here"
    inference = {key: getattr(settings, key) for key in RUNNER_SETTINGS}
    return {
        "format": FORMAT,
        "model": name,
        "pixels": (
            "float32 RGB 0..255, (batch, 3, height, width), sides are multiples of `patch`;"
            " normalisation is in the graph"
        ),
        "logits": "float32 mask logits, (batch, classes, height / patch, width / patch)",
        "patch": model.network.patch_size,
        "width": model.network.joint_width,
        "mean": list(config.model.mean),
        "std": list(config.model.std),
        "padding": model.mean.flatten().tolist(),
        "inference": {**inference, "scales": list(settings.scales)},
        "templates": list(checkpoint.templates),
        "protocol": record.get("protocol", config.train.protocol),
        "licence": record.get("licence", unknown),
        "clip": {"name": config.model.clip.name, "sha256": checkpoint.clip_fingerprint},
        "versions": read_versions(),
        "exported": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def write_embeddings(bound: BoundClasses, file: Path) -> Path:
    """Text embeddings (R, D) as float32 in a .npy file."""
    embeddings = bound.text.detach().cpu().float().numpy()
    return write_whole(file, lambda part: np.save(part, embeddings, allow_pickle=False))


def require(*packages: str) -> None:
    """Check that packages of the extra `export` are here.

    Raises:
        ImportError: one is missing.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingPackageError(
                f"exporting to ONNX needs {package}: pip install 'cascade-clip[export]'"
            ) from error


def _write_graph(model: ExportedModel, file: Path, *, int8: bool) -> None:
    """Write the graph, once it is known to compute what the model computes."""
    names = ["pixels"] if model.text is not None else ["pixels", "text"]
    try:
        program = trace(model)
        with _quiet(), torch.no_grad():
            found = torch.onnx.export(
                program, input_names=names, output_names=["logits"], opset_version=OPSET,
                dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
            assert found is not None
            found.save(str(file), external_data=False)
            difference = _largest_difference(model, file)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # the exporter raises many kinds
        raise SettingError(
            f"this model has a part that cannot be written as ONNX ({_reason(error)}); try"
            " `cascade-clip export torch`"
        ) from error
    if not difference < TOLERANCE:
        differ = f"the ONNX graph's mask logits differ by {difference:.1e} from PyTorch's"
        raise SettingError(f"nothing was written: {differ}")
    if int8:
        _quantise(file)


def _quantise(file: Path) -> None:
    """Replace a graph by one whose matrix products have weights of 8 bits.

    Raises:
        OSError: it could not be written.
    """
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(dir=file.parent) as folder, _quiet():
        folded, short = Path(folder) / "folded.onnx", Path(folder) / "int8.onnx"
        options = SessionOptions()
        # computes what is constant, such as slices of weights
        options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        try:
            InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            # Convolutions stay: onnxruntime before 1.24 cannot run them in 8 bits. CPUs without
            # VNNI add two products of 8 bits in 16 bits: weights of 7 bits cannot overflow there.
            quantize_dynamic(
                str(folded), str(short), op_types_to_quantize=["MatMul"],
                weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
            )  # fmt: skip
        except (MemoryError, OSError):
            raise
        except Exception as error:  # onnxruntime has exceptions of its own
            problem = f"its weights could not be written in 8 bits ({_reason(error)})"
            raise StorageError(f"{file}: {problem}; is the disk full?") from error
        os.replace(short, file)


def _reason(error: BaseException) -> str:
    """The first line of what lies at the bottom of a chain of errors, without colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


@torch.no_grad()
def _largest_difference(model: ExportedModel, file: Path) -> float:
    """Compare mask logits at two sizes, as a part of the largest one (at least of 1)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    patch, generator, worst = model.network.patch_size, torch.Generator().manual_seed(0), 0.0
    for rows, columns in ((2, 7), (6, 3)):
        pixels = 255 * torch.rand(1, 3, rows * patch, columns * patch, generator=generator)
        inputs = {"pixels": pixels}
        if model.text is None:
            text = torch.randn(3, model.network.joint_width, generator=generator)
            inputs["text"] = nn.functional.normalize(text, dim=-1)
        expected = model(**inputs)  # (1, C, h, w)
        values = {name: value.numpy() for name, value in inputs.items()}
        given = torch.from_numpy(session.run(["logits"], values)[0])  # (1, C, h, w)
        difference = float((expected - given).abs().max())
        worst = max(worst, difference / max(1.0, float(expected.abs().max())))
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' advice off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _check_ending(file: Path, ending: str) -> None:
    if file.suffix != ending:
        raise SettingError(f"--out must end in {ending}, got {file}")
