"""Weights files in exactly the formats that users download, made from random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

KEPT_IN_FLOAT32 = (
    "ln_",
    "positional_embedding",
    "class_embedding",
    "logit_scale",
    "token_embedding",
)
"""Name parts that OpenAI's archives leave in float32; matrices and convolutions are float16."""


class _Node(nn.Module):
    """A module tree whose state dict has given names; it computes nothing."""

    def forward(self, images: Tensor) -> Tensor:
        return images


def random_clip(settings: dict[str, Any], seed: int = 0) -> nn.Module:
    """open_clip's own CLIP of a model configuration with random weights."""
    torch.manual_seed(seed)
    return open_clip.CLIP(**settings)


def write_openai_archive(
    path: Path, model: nn.Module, image_size: int, context: int = 77, words: int = 49408
) -> Path:
    """A TorchScript archive as OpenAI publishes them: the model's names, half precision, and three
    settings as tensors."""
    root = _Node()
    for name, tensor in model.state_dict().items():
        if name == "attn_mask":
            continue
        *parents, leaf = name.split(".")
        node: nn.Module = root
        for parent in parents:
            if not hasattr(node, parent):
                node.add_module(parent, _Node())
            node = getattr(node, parent)
        half = not any(part in name for part in KEPT_IN_FLOAT32)
        node.register_parameter(
            leaf, nn.Parameter(tensor.half() if half else tensor.clone(), requires_grad=False)
        )
    for name, value in (
        ("input_resolution", image_size),
        ("context_length", context),
        ("vocab_size", words),
    ):
        root.register_buffer(name, torch.tensor(value))
    torch.jit.save(torch.jit.script(root.eval()), str(path))
    return path
