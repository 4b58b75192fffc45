"""One piece of work that a benchmark times.

Models have random weights: time and memory do not depend on them.
"""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from cascade_clip.checkpoints import Checkpoint
from cascade_clip.config import (
    ClipConfig,
    Config,
    DecoderConfig,
    InferenceConfig,
    ModelConfig,
    Precision,
    PromptConfig,
)
from cascade_clip.inference import Predictor, list_windows
from cascade_clip.losses import mask_loss
from cascade_clip.models import Segmenter, build_segmenter
from cascade_clip.ops import autocast_type
from cascade_clip.research.benchmark import reference
from cascade_clip.vocabulary import parse_classes

TINY = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 12, "width": 64, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
"""A tower to try the benchmark with."""

CALIBRATION = 0.1
WINDOW, STRIDE = 512, 426

Device = Literal["cpu", "cuda"]
Size = Literal["full", "tiny"]
"""`full`: the published ViT-B/16 with 50 prompt tokens; `tiny`: to try the benchmark."""


@dataclass(frozen=True)
class Work:
    """What is run, and how."""

    kind: Literal["inference", "train"]
    variant: Literal["ours", "textbook"] = "ours"
    precision: Precision = "fp32"
    classes: int = 171
    height: int = 512
    width: int = 512
    batch: int = 1  # images of a training step
    size: Size = "full"
    tuned: bool = False
    """Whether the process starts with an allocator that keeps large blocks (`cases.TUNED`)."""

    @property
    def window(self) -> int:
        """Side of the window, in pixels."""
        return WINDOW if self.size == "full" else 64

    @property
    def stride(self) -> int:
        """Step between windows."""
        return STRIDE if self.size == "full" else 48


def model_config(size: Size) -> ModelConfig:
    """Return the settings of the published COCO-Stuff model, or of a tiny one."""
    if size == "full":
        clip = ClipConfig(weights="random", tokenizer=False)
        return ModelConfig(clip=clip, prompts=PromptConfig(tokens=50))
    return ModelConfig(
        clip=ClipConfig(name="tiny", weights="random", architecture=TINY, tokenizer=False),
        prompts=PromptConfig(tokens=3),
        decoder=DecoderConfig(heads=4, feedforward=128),
        position_grid=(4, 4),
    )


def prepare(work: Work) -> Callable[[], Any]:
    """Build everything and return what is timed: one image segmented, or one training step."""
    torch.manual_seed(0)
    model = build_segmenter(model_config(work.size))
    text = normalize(torch.randn(work.classes, model.joint_width), dim=-1)
    if work.kind == "inference":
        return _inference(work, model.eval(), text)
    return _training(work, model.train(), text)


def _inference(work: Work, model: Segmenter, text: Tensor) -> Callable[[], Any]:
    image = torch.randn(3, work.height, work.width)
    if work.variant == "textbook":
        plain = reference.Textbook(model).eval()
        shift = torch.full((work.classes,), CALIBRATION)
        shift[-1] = 0.0
        return lambda: reference.label_map(plain, image, text, shift, work.window, work.stride)
    settings = InferenceConfig(window=work.window, stride=work.stride, precision=work.precision)
    predictor = build_predictor(model, text, settings)
    bound = predictor.bind(text=text, calibration=CALIBRATION)
    return lambda: predictor.label_map_of_input(image, bound).labels


def build_predictor(
    model: Segmenter, text: Tensor, settings: InferenceConfig, device: Device = "cpu"
) -> Predictor:
    """Build a predictor of numbered class names, of which the last was not seen in training."""
    names = [f"class {index}" for index in range(len(text))]
    vocabulary = parse_classes(", ".join(names)).with_unseen((names[-1],))
    config = Config(inference=settings)
    checkpoint = Checkpoint(model, None, config, vocabulary, ("a {}",), "", None, text)
    return Predictor(checkpoint, settings, device)


def _training(work: Work, model: Segmenter, text: Tensor) -> Callable[[], Any]:
    config = Config().train
    images = torch.randn(work.batch, 3, work.height, work.width)
    labels = blocky_labels(work.batch, work.classes, work.height, work.width)
    plain = reference.Textbook(model).train() if work.variant == "textbook" else None
    trained = [parameter for parameter in (plain or model).parameters() if parameter.requires_grad]
    rate, decay = config.optimizer.learning_rate, config.optimizer.weight_decay
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=decay)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        cast = autocast_type(work.precision)
        with torch.autocast("cpu", dtype=cast, enabled=work.precision != "fp32"):
            if plain is not None:
                total = reference.loss(plain(images, text), labels, config.loss)
            else:
                masks = model(images, text)
                total = mask_loss(masks, labels, model.patch_size, config.loss).total
            total.backward()
        optimizer.step()

    return step


def blocky_labels(batch: int, classes: int, height: int, width: int, cell: int = 64) -> Tensor:
    """Draw labels (B, height, width) in square regions, some of them without a label."""
    coarse = torch.randint(-1, classes, (batch, -(-height // cell), -(-width // cell)))
    labels = coarse.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    return labels[:, :height, :width].contiguous()


def count_flops(work: Work) -> int:
    """Count the network's floating-point operations in one run, on tensors without values."""
    model = build_segmenter(model_config(work.size))
    model.backbone.remake_taps = False  # what is computed twice to save memory counts once
    network: Any = reference.Textbook(model) if work.variant == "textbook" else model
    training = work.kind == "train"
    times = work.batch
    if not training:
        network.eval().requires_grad_(False)
        times = len(list_windows((work.height, work.width), work.window, work.stride))
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
        torch.set_grad_enabled(training),
    ):
        images = torch.zeros(1, 3, work.window, work.window)
        result = network(images, torch.zeros(work.classes, model.joint_width))
        if training:
            result.sum().backward()
    return int(counter.get_total_flops()) * times


def time_work(work: Work) -> dict[str, float]:
    """Measure wall-clock and processor seconds of a second run, and the peak memory in MiB."""
    run = prepare(work)
    run()
    begin, used = time.perf_counter(), time.process_time()
    run()
    seconds, processor = time.perf_counter() - begin, time.process_time() - used
    return {"seconds": seconds, "processor": processor, "memory": peak_memory()}


def peak_memory() -> float:
    """Read the largest resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # unlike getrusage, it does not start from what the parent process held
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def matmul_peak(dtype: torch.dtype, side: int = 2048, repeats: int = 8) -> float:
    """Measure the speed of this machine's matrix products, in GFLOP per processor second."""
    left, right = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    best = float("inf")
    with torch.inference_mode():
        left @ right
        for _ in range(repeats):
            begin = time.process_time()
            left @ right
            best = min(best, time.process_time() - begin)
    return 2 * side**3 / best / 1e9
