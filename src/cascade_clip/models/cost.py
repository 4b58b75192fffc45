"""What a model costs: parameters and floating-point operations, counted our way and the published
way.

The released programs build weights that reach no output (self-attention between classes, and most
of each last decoder layer; SPT-SEG's layers also hold a whole unused cross-attention). The
published counts include them; ours do not have them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cascade_clip.config import ModelConfig
from cascade_clip.encoders import OpenClipTower, load_clip
from cascade_clip.models.builder import build_segmenter
from cascade_clip.models.segmenter import Segmenter


@dataclass(frozen=True)
class Cost:
    """Parameters, and operations of one forward pass."""

    image_side: int
    parameters: int
    """Image side, without the text tower."""
    text_parameters: int
    """CLIP's text tower, without its logit scale."""
    trained: int
    """Parameters that receive a gradient."""
    dead_parameters: int
    """Weights of the released program that reach no output."""
    flops: int
    """Floating-point operations of one image (two per multiply-add)."""
    dead_flops: int
    """Operations of the released program that reach no output."""

    @property
    def published_parameters(self) -> int:
        """All parameters as the paper counts them: with the text tower and the dead weights."""
        return self.parameters + self.text_parameters + self.dead_parameters

    @property
    def published_trained(self) -> int:
        """Parameters marked trainable in the released program."""
        return self.trained + self.dead_parameters

    @property
    def published_flops(self) -> int:
        """Operations with the dead ones."""
        return self.flops + self.dead_flops


def count_cost(config: ModelConfig, classes: int, side: int = 512) -> Cost:
    """Count what one image of `side` x `side` pixels costs with `classes` class names; weights are
    not loaded."""
    clip = load_clip(dataclasses.replace(config.clip, weights="random", sha256="any"))
    text = (
        0
        if clip.text is None
        else sum(p.numel() for name, p in clip.text.named_parameters() if "logit" not in name)
    )
    model = build_segmenter(config, clip)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    stages = len(config.stages)
    return Cost(
        side, parameters, text, trained, dead_parameters(config, model.joint_width) * stages,
        count_flops(model, classes, side), dead_flops(config, model, classes,
        side) * stages + prompt_flops(config, model, side),
    )  # fmt: skip


def dead_parameters(config: ModelConfig, width: int) -> int:
    """Weights per decoder that the released programs build and that reach no output."""
    inner = config.decoder.feedforward
    if config.decoder.kind == "similarity":
        return 0
    if config.decoder.kind == "spectral":
        high = (
            width
            // config.decoder.heads
            * (config.decoder.heads - int(config.decoder.heads * config.decoder.low_share))
        )
        # self- and cross-attention, norm, window output
        unused = 2 * (4 * width * width + 4 * width) + 2 * width + high * high + high
        # output, feed-forward, norms
        last_layer = width * width + width + (2 * width * inner + inner + width) + 2 * 2 * width
        return config.decoder.layers * unused + last_layer
    self_attention = 4 * width * width + 4 * width + 2 * width  # with its norm, in every layer
    # value, output, feed-forward, norms
    last_layer = 2 * (width * width + width) + (2 * width * inner + inner + width) + 2 * 2 * width
    return config.decoder.layers * self_attention + last_layer


def dead_flops(config: ModelConfig, model: Segmenter, classes: int, side: int) -> int:
    """Operations per decoder that the released programs spend on the dead half of their last
    layer."""
    width, inner = model.joint_width, config.decoder.feedforward
    patches = (-(-side // model.patch_size)) ** 2
    if config.decoder.kind == "similarity":
        return 0
    if config.decoder.kind == "spectral":  # matching with the values, output, feed-forward
        return 2 * (
            classes * patches * width + classes * width * width + 2 * classes * width * inner
        )
    products = (
        patches * width * width
        + classes * width * width
        + 2 * classes * width * inner
        + classes * patches * width
    )
    return 2 * products


def prompt_flops(config: ModelConfig, model: Segmenter, side: int) -> int:
    """Operations that the released program spends on what becomes of deep prompt tokens in a block,
    which nothing reads."""
    backbone = model.backbone
    if config.prompts.kind != "deep" or not isinstance(backbone.tower, OpenClipTower):
        return 0
    tower: Any = cast(Any, backbone.tower)
    blocks, tokens, width = (
        backbone.depth - (config.last_block != "standard"),
        config.prompts.tokens,
        tower.width,
    )
    others = 1 + tokens + (-(-side // model.patch_size)) ** 2
    inner: int = tower.blocks[0].mlp.c_fc.out_features
    return int(2 * blocks * tokens * (2 * width * width + 2 * width * inner + 2 * others * width))


def count_flops(model: Segmenter, classes: int, side: int) -> int:
    """Floating-point operations of one forward pass by torch's counter, with every product spelled
    out."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see inside fused calls
    quiet = model.eval().requires_grad_(False)
    try:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            quiet(torch.zeros(1, 3, side, side), torch.ones(classes, model.joint_width))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())
