"""Text-image decoder: class queries attend to patches; the last map is the mask (section 3.2).

There is no self-attention between classes, so the mask of a class does not depend on which other
classes are asked for. Letters: B images, C classes, N patches, D joint width.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_clip.encoders import Grid
from cascade_clip.errors import SettingError
from cascade_clip.models.decoders.base import StageDecoder
from cascade_clip.ops import attend


@dataclass(frozen=True)
class TransformerSettings:
    """The settings of `DecoderConfig` that this decoder reads."""

    layers: int
    heads: int
    feedforward: int
    dropout: float


class MaskAttention(nn.Module):
    """Scaled dot products of class queries and patches, averaged over heads, before any softmax."""

    def __init__(self, width: int, heads: int) -> None:
        """Compare queries and patches of the given width in `heads` heads."""
        super().__init__()
        if width % heads:
            raise SettingError(
                f"model.decoder.heads must divide the joint width {width}, got {heads}"
            )
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)

    def mask_logits(self, queries: Tensor, patches: Tensor) -> Tensor:
        """Mask logits (B, C, N) of queries (B, C, D) over patches (B, N, D), always float32."""
        query, key = self.query(queries), self.key(patches)  # (B, C, D), (B, N, D)
        # The mean over heads of per-head products is one product over the full width.
        scale = 1 / (self.heads * (query.shape[-1] / self.heads) ** 0.5)
        with torch.autocast(query.device.type, enabled=False):
            logits: Tensor = (query.float() * scale) @ key.float().transpose(1, 2)  # (B, C, N)
        return logits


class CrossAttention(MaskAttention):
    """Multi-head attention from class queries to patches."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """Attend with `heads` heads and dropout on the attention weights."""
        super().__init__(width, heads)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, queries: Tensor, patches: Tensor) -> Tensor:
        """Values of the patches (B, N, D) gathered for queries (B, C, D)."""
        query = self._split(self.query(queries))  # (B, heads, C, D/heads)
        # (B, heads, N, D/heads)
        key, value = self._split(self.key(patches)), self._split(self.value(patches))
        gathered = attend(query, key, value, self.dropout if self.training else 0.0)
        result: Tensor = self.output(gathered.transpose(1, 2).flatten(2))  # (B, C, D)
        return result

    def _split(self, tokens: Tensor) -> Tensor:
        # (B, heads, tokens, D/heads)
        heads: Tensor = tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads


class DecoderLayer(nn.Module):
    """Cross attention and feed-forward, each with residual and post-norm."""

    def __init__(self, width: int, settings: TransformerSettings) -> None:
        super().__init__()
        self.attention = CrossAttention(width, settings.heads, settings.dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, settings.feedforward)
        self.contract = nn.Linear(settings.feedforward, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, queries: Tensor, patches: Tensor) -> Tensor:
        """Refine class queries (B, C, D) with patches (B, N, D)."""
        attended = queries + self.dropout(self.attention(queries, patches))  # (B, C, D)
        # (B, C, D), norms are float32 whatever the autocast
        queries = self.attention_norm(attended.float())
        hidden = self.dropout(F.relu(self.expand(queries)))  # (B, C, feedforward)
        refined = queries + self.dropout(self.contract(hidden))  # (B, C, D)
        normed: Tensor = self.feedforward_norm(refined.float())
        return normed


class Decoder(StageDecoder):
    """Layers that refine the class queries, and a last attention whose logits are the masks.

    Of the last layer only query and key reach an output, so only they exist here.
    """

    Settings = TransformerSettings

    def __init__(self, width: int, settings: TransformerSettings) -> None:
        """Build `settings.layers` layers, identical copies at the start as in the released code."""
        super().__init__()
        first = DecoderLayer(width, settings)
        self.layers = nn.ModuleList(copy.deepcopy(first) for _ in range(settings.layers - 1))
        self.mask_attention = MaskAttention(width, settings.heads)
        self.mask_attention.query.load_state_dict(first.attention.query.state_dict())
        self.mask_attention.key.load_state_dict(first.attention.key.state_dict())

    def forward(self, queries: Tensor, patches: Tensor, grid: Grid) -> Tensor:
        """Mask logits (B, C, N), float32, of class queries (B, C, D) over patches (B, N, D)."""
        for layer in self.layers:
            queries = layer(queries, patches)  # (B, C, D)
        return self.mask_attention.mask_logits(queries, patches)  # (B, C, N)

    @classmethod
    def unused_parameters(cls, width: int, settings: TransformerSettings) -> int:
        """Count self-attention between classes in every layer, and most of the last layer."""
        inner = settings.feedforward
        self_attention = 4 * width * width + 4 * width + 2 * width  # with its norm
        # value, output, feed-forward, norms
        last_layer = 2 * (width * width + width) + (2 * width * inner + inner + width) + 4 * width
        return settings.layers * self_attention + last_layer

    @classmethod
    def unused_flops(
        cls, width: int, settings: TransformerSettings, classes: int, patches: int
    ) -> int:
        """Count values, attention, output and feed-forward of the last layer."""
        attention = patches * width * width + classes * width * width + classes * patches * width
        return 2 * (attention + 2 * classes * width * settings.feedforward)
