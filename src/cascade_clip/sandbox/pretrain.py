"""Makes the mini CLIP by contrastive training on images and captions of the built-in world.

Captions name all classes, also those whose masks a zero-shot learner never sees, as in real CLIP.
The towers are open_clip's own. Letters: B images of a batch, C class names.
"""

import io
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from rich.progress import Progress
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import multilabel_average_precision

from cascade_clip.errors import SettingError
from cascade_clip.files import read_pickle, write_json, write_whole
from cascade_clip.sandbox.scenes import (
    CLASS_NAMES,
    UNSEEN_NAMES,
    SceneConfig,
    choose_names,
    make_scene,
    make_single,
    phrase,
)

logger = logging.getLogger(__name__)

MEAN = STD = (0.5, 0.5, 0.5)
ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 128,
    "init_logit_bias": -10.0,
    "vision_cfg": {"image_size": 64, "layers": 12, "width": 128, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
}
"""Configuration of the mini CLIP: 12 blocks for the stages {6-8}, {9-11}, {12} of the paper."""

FRESH = 10**9
"""Index of the first scene that training never sees."""


@dataclass(frozen=True)
class PretrainConfig:
    """How the mini CLIP is made."""

    out: str = "mini_clip"
    """Folder to write, in open_clip's format."""
    steps: int = 2600
    """Optimiser steps."""
    batch_size: int = 64
    """Pictures (and captions) per step."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup_steps: int = 200
    """Steps of linear warm-up."""
    weight_decay: float = 0.02
    """Weight decay of matrices."""
    curriculum: tuple[float, float] = (0.2, 0.6)
    """Parts of the run between which pictures of one thing fade from all to a quarter."""
    zoom: float = 2.0
    """Largest magnification of scenes, which gives things the sizes they have in larger images."""
    seed: int = 0
    """Seed of weights, pictures and captions."""
    save_every: int = 100
    """Steps between saved states, from which the same command goes on."""
    workers: int = 1
    """Processes that draw pictures."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.save_every < 1 or not 2 <= self.batch_size < 2**20:
            raise SettingError(
                "steps and save_every must be at least 1, batch_size at least 2 and below 2^20, got"
                f" {self.steps}, {self.save_every} and {self.batch_size}"
            )
        if self.workers < 0:
            raise SettingError(f"workers must be 0 or more, got {self.workers}")
        if not 0 < self.learning_rate <= 1 or not 0 <= self.seed < 2**32:
            raise SettingError(
                f"learning_rate must lie in 0..1 and seed in 0..{2**32 - 1}, got"
                f" {self.learning_rate} and {self.seed}"
            )
        if not 0 <= self.curriculum[0] <= self.curriculum[1] <= 1:
            raise SettingError(f"curriculum needs two rising parts in 0..1, got {self.curriculum}")


class CaptionedPictures(Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Image `index` with one caption: pixels, tokens, classes present, classes in the caption."""

    def __init__(self, config: PretrainConfig, size: int) -> None:
        self.config = config
        self.tokenizer = open_clip.SimpleTokenizer(
            context_length=ARCHITECTURE["text_cfg"]["context_length"]
        )
        self.scenes = SceneConfig(size=size, max_zoom=config.zoom)
        self.singles = SceneConfig(size=size)

    def __len__(self) -> int:
        return self.config.steps * self.config.batch_size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Everything about one picture follows from the seed and its index."""
        rng = np.random.default_rng((self.config.seed, index, 2))
        single = rng.random() < single_share(index / len(self), self.config.curriculum)
        make, look = (make_single, self.singles) if single else (make_scene, self.scenes)
        scene = make(self.config.seed, index, look)
        present = scene.present or CLASS_NAMES[:1]
        names = choose_names(present, rng)
        tokens = self.tokenizer([phrase(names, rng)])[0]  # (context,)
        pixels = torch.from_numpy(scene.image).permute(2, 0, 1)  # (3, H, W)
        return pixels, tokens, _flags(present), _flags(names)


def single_share(progress: float, curriculum: tuple[float, float]) -> float:
    """Share of images with one thing at a point of the run: all at first, a quarter at the end."""
    begin, end = curriculum
    faded = min(max((progress - begin) / max(end - begin, 1e-9), 0.0), 1.0)
    return 1 - 0.75 * faded


def caption_loss(
    images: Tensor, captions: Tensor, scale: Tensor, bias: Tensor, true: Tensor
) -> Tensor:
    """Sigmoid loss over all pairs of unit embeddings (B, D); `true` (B, B) marks the positives."""
    logits = scale.exp() * images @ captions.T + bias  # (B, B)
    signs = 2 * true.float() - 1
    return -F.logsigmoid(signs * logits).sum() / len(images)


def pretrain(config: PretrainConfig) -> Path:
    """Train the mini CLIP, or go on from a saved state, and write its folder.

    Returns:
        The folder: `open_clip_config.json` and `open_clip_model.safetensors` in float16.
    """
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    model = open_clip.CLIP(**ARCHITECTURE)
    optimizer = torch.optim.AdamW(
        _groups(model, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.98), fused=True
    )
    state, start = folder / "state.pt", 0
    if state.is_file():
        saved = read_pickle(state)
        if saved["config"] != json.dumps(asdict(config)):
            raise SettingError(
                f"{folder} holds a run with other settings; choose another folder or delete {state}"
            )
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = int(saved["step"])
    with Progress() as progress:
        row = progress.add_task("mini CLIP", total=config.steps, completed=start)
        for step, batch in enumerate(_batches(config, start), start=start):
            loss = _train_step(model, optimizer, batch, _rate(step, config))
            progress.update(row, completed=step + 1, description=f"mini CLIP, loss {loss:.3f}")
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                _save_state(state, step + 1, config, model=model, optimizer=optimizer)
                export_clip(model, folder, used_tokens(config))
                presence = evaluate_presence(model)
                logger.info("step %d loss %.3f class mAP %s", step + 1, loss, presence)
    state.unlink(missing_ok=True)
    return folder


def _batches(config: PretrainConfig, start: int) -> Iterator[Sequence[Tensor]]:
    pictures = CaptionedPictures(config, ARCHITECTURE["vision_cfg"]["image_size"])
    order = range(start * config.batch_size, len(pictures))
    workers, ahead = config.workers, 8 if config.workers else None
    yield from DataLoader(
        pictures, config.batch_size, sampler=order, num_workers=workers, prefetch_factor=ahead
    )


def _train_step(
    model: open_clip.CLIP, optimizer: torch.optim.Optimizer, batch: Sequence[Tensor], rate: float
) -> float:
    pixels, tokens, present, named = batch
    # (B, B): all that caption j names is in picture i
    true = (named[None] & ~present[:, None]).sum(dim=-1) == 0
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast("cpu", torch.bfloat16):
        # (B, D) each
        images, captions = model.visual(normalise_pixels(pixels)), model.encode_text(tokens)
    images, captions = F.normalize(images.float(), dim=-1), F.normalize(captions.float(), dim=-1)
    loss = caption_loss(images, captions, model.logit_scale, model.logit_bias, true)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def normalise_pixels(pixels: Tensor) -> Tensor:
    """8-bit pictures (B, 3, H, W) as the tower takes them."""
    scaled: Tensor = (pixels.float() / 255 - MEAN[0]) / STD[0]  # (B, 3, H, W)
    return scaled


def _rate(step: int, config: PretrainConfig) -> float:
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    left = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * left)))


def _groups(model: open_clip.CLIP, decay: float) -> list[dict[str, Any]]:
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim >= 2 and "embedding" not in name else rest).append(parameter)
    return [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


def _save_state(path: Path, step: int, config: PretrainConfig, **parts: Any) -> None:
    states = {name: part.state_dict() for name, part in parts.items()}
    buffer = io.BytesIO()
    torch.save({**states, "step": step, "config": json.dumps(asdict(config))}, buffer)
    write_whole(path, buffer.getvalue())


def used_tokens(config: PretrainConfig) -> Tensor:
    """Token ids of all class names in many captions; other rows of the token table never train."""
    tokenizer = open_clip.SimpleTokenizer(context_length=ARCHITECTURE["text_cfg"]["context_length"])
    rng = np.random.default_rng(config.seed)
    texts = [phrase((name,), rng) for name in CLASS_NAMES for _ in range(200)]
    texts += [phrase(CLASS_NAMES[:3], rng) for _ in range(200)]
    tokens: Tensor = tokenizer(texts)  # (texts, context)
    used: Tensor = tokens.unique()
    return used


def export_clip(model: open_clip.CLIP, folder: Path, tokens: Tensor) -> None:
    """Write open_clip's format in float16; token embeddings outside `tokens` become 0, to pack."""
    state = {name: tensor.detach().half() for name, tensor in model.state_dict().items()}
    state.pop("attn_mask", None)
    table = torch.zeros_like(state["token_embedding.weight"])
    table[tokens] = state["token_embedding.weight"][tokens]
    state["token_embedding.weight"] = table
    settings = {
        "model_cfg": ARCHITECTURE,
        "preprocess_cfg": {"mean": list(MEAN), "std": list(STD), "interpolation": "bilinear"},
    }
    weights = save({name: tensor.contiguous() for name, tensor in state.items()})
    write_whole(folder / "open_clip_model.safetensors", weights)
    write_json(folder / "open_clip_config.json", settings)


@torch.inference_mode()
def evaluate_presence(
    model: open_clip.CLIP, count: int = 600, seed: int = 0, size: int = 64
) -> dict[str, float]:
    """Mean average precision of class presence in fresh scenes: all, seen and unseen classes."""
    tokenizer = open_clip.SimpleTokenizer(context_length=ARCHITECTURE["text_cfg"]["context_length"])
    was_training = model.training
    model.eval()
    prompts = tokenizer([f"a photo of a {name}" for name in CLASS_NAMES])  # (C, context)
    text = F.normalize(model.encode_text(prompts), dim=-1)  # (C, D)
    scenes = [make_scene(seed, FRESH + index, SceneConfig(size=size)) for index in range(count)]
    # (pictures, 3, H, W)
    pixels = torch.stack([torch.from_numpy(scene.image).permute(2, 0, 1) for scene in scenes])
    scores = [
        F.normalize(model.visual(normalise_pixels(part)), dim=-1) @ text.T  # (pictures, C)
        for part in pixels.split(100)
    ]
    model.train(was_training)
    truth = torch.stack([_flags(scene.present) for scene in scenes]).int()  # (pictures, C)
    # (C,)
    precision = multilabel_average_precision(
        torch.cat(scores), truth, num_labels=len(CLASS_NAMES), average="none"
    )
    unseen = torch.tensor([name in UNSEEN_NAMES for name in CLASS_NAMES])
    groups = {"all": precision, "seen": precision[~unseen], "unseen": precision[unseen]}
    return {name: round(float(values.nanmean()), 4) for name, values in groups.items()}


def _flags(names: Sequence[str]) -> Tensor:
    """Which classes are among `names`, bool (C,)."""
    return torch.tensor([name in names for name in CLASS_NAMES])
