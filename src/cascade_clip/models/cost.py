"""What a model costs: parameters and floating-point operations, counted our way and the published
way.

The released programs build weights that reach no output (self-attention between classes, and most
of each last decoder layer; SPT-SEG's layers also hold a whole unused cross-attention). The
published counts include them; ours do not have them.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cascade_clip.config import ModelConfig
from cascade_clip.encoders import OpenClipTower, load_clip
from cascade_clip.models.builder import build_segmenter
from cascade_clip.models.decoders import find_decoder
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
    """Count one image of `side` x `side` pixels with `classes` names; no weights are loaded."""
    clip = load_clip(dataclasses.replace(config.clip, weights="random", sha256="any"))
    text = clip.text.named_parameters() if clip.text else ()
    model = build_segmenter(config, clip)
    decoder, settings = find_decoder(config.decoder)
    width, patches = model.joint_width, (-(-side // model.patch_size)) ** 2
    unused = decoder.unused_flops(width, settings, classes, patches) * len(config.stages)
    # counted before `count_flops` freezes the model
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Cost(
        image_side=side,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        text_parameters=sum(value.numel() for name, value in text if "logit" not in name),
        trained=trained,
        dead_parameters=decoder.unused_parameters(width, settings) * len(config.stages),
        flops=count_flops(model, classes, side),
        dead_flops=unused + prompt_flops(config, model, side),
    )


def prompt_flops(config: ModelConfig, model: Segmenter, side: int) -> int:
    """Operations that the released program spends on deep prompt tokens that nothing reads."""
    backbone = model.backbone
    if config.prompts.kind != "deep" or not isinstance(backbone.tower, OpenClipTower):
        return 0
    tower: Any = cast(Any, backbone.tower)
    blocks = backbone.depth - (config.last_block != "standard")
    tokens, width = config.prompts.tokens, tower.width
    others = 1 + tokens + (-(-side // model.patch_size)) ** 2
    inner: int = tower.blocks[0].mlp.c_fc.out_features
    return int(2 * blocks * tokens * (2 * width * width + 2 * width * inner + 2 * others * width))


def count_flops(model: Segmenter, classes: int, side: int) -> int:
    """Floating-point operations of a forward pass by torch's counter, products spelled out."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see inside fused calls
    quiet = model.eval().requires_grad_(False)
    try:
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            quiet(torch.zeros(1, 3, side, side), torch.ones(classes, model.joint_width))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())
