"""CLIP's own comparison of patches and class names as a decoder.

Letters: B images, C classes, N patches, D joint width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_clip.encoders import Grid
from cascade_clip.models.decoders.base import StageDecoder


class Similarity(StageDecoder):
    """CLIP's own comparison of patches and class names, with nothing trained.

    The mask logit of a class is the log-odds of its probability in the softmax over the class
    names, so that the sigmoid, which every decoder's logits go through, gives that probability.
    """

    def __init__(self, scale: float) -> None:
        """Sharpen cosines by `scale`, CLIP's own logit scale."""
        super().__init__()
        self.scale = scale

    @classmethod
    def build(cls, width: int, settings: Any, logit_scale: float) -> StageDecoder:
        """Build it with CLIP's own scale."""
        return cls(logit_scale)

    def forward(self, queries: Tensor, patches: Tensor, grid: Grid) -> Tensor:
        """Mask logits (B, C, N), float32, of text embeddings (B, C, D) over patches (B, N, D)."""
        with torch.autocast(queries.device.type, enabled=False):
            texts, places = (F.normalize(each.float(), dim=-1) for each in (queries, patches))
            cosines = texts @ places.transpose(1, 2)  # (B, C, N)
            logs = F.log_softmax(self.scale * cosines, dim=1)
            return logs - torch.log1p(-logs.exp().clamp(max=1 - 1e-6))
