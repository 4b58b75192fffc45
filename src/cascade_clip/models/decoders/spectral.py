"""The spectral guided decoder of SPT-SEG: each layer makes its own values from the patches by local
and pooled attention, lets a learned direction select among them, and matches the class queries with
what is left.

The published layers hold further weights that reach no output; they do not exist here.
Letters: B images, C classes, N = h x w patches, D joint width, s side of a window, m x n windows.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_clip.encoders import Grid
from cascade_clip.errors import SettingError
from cascade_clip.models.decoders.base import StageDecoder
from cascade_clip.models.decoders.transformer import TransformerSettings


@dataclass(frozen=True)
class SpectralSettings(TransformerSettings):
    """The settings of `DecoderConfig` that this decoder reads."""

    window: int
    low_share: float
    gate_leak: float


def count_low_heads(settings: SpectralSettings) -> int:
    """Count the heads that attend to pooled patches."""
    return int(settings.heads * settings.low_share)


class SpectralValues(nn.Module):
    """Patches to selected values: attention within windows (high) and to pooled patches (low)."""

    def __init__(self, width: int, settings: SpectralSettings) -> None:
        """Share `settings.heads` heads between the two kinds of attention."""
        super().__init__()
        low = count_low_heads(settings)
        if width % settings.heads:
            raise SettingError(
                f"model.decoder.heads must divide the joint width {width}, got {settings.heads}"
            )
        if not 0 < low < settings.heads:
            raise SettingError(
                f"model.decoder.kind spectral needs a head of each kind, but {low} of"
                f" {settings.heads} are low (low_share {settings.low_share})"
            )
        self.size = width // settings.heads
        self.window = settings.window
        self.leak = settings.gate_leak
        self.high = nn.Linear(width, 3 * (settings.heads - low) * self.size, bias=False)
        self.low_query = nn.Linear(width, low * self.size, bias=False)
        self.low_pair = nn.Linear(width, 2 * low * self.size, bias=False)
        self.low_output = nn.Linear(low * self.size, low * self.size)
        self.direction = nn.Parameter(torch.randn(width))
        self.mixing = nn.Parameter(torch.eye(width))

    def forward(self, patches: Tensor, grid: Grid) -> Tensor:
        """Values (B, N, D) of patches (B, N, D) on a grid, padded with zeros to whole windows."""
        down, right = -grid[0] % self.window, -grid[1] % self.window
        padded = F.pad(patches.unflatten(1, grid), (0, 0, 0, right, 0, down))  # (B, m*s, n*s, D)
        # (B, m*s, n*s, D)
        mixed = torch.cat([self._within_windows(padded), self._over_all(padded)], dim=-1)
        mixed = mixed[:, : grid[0], : grid[1]].flatten(1, 2)  # (B, N, D)
        return (self.gate(mixed)[..., None] * mixed) @ self.mixing

    def gate(self, mixed: Tensor) -> Tensor:
        """How much of each patch (B, N, D) is let through: its cosine with the learned direction,
        below 0 times the leak, (B, N).

        With a leak of 0, as published, a patch with a negative cosine is silent and gets no
        gradient either. Patches have much in common, so that a direction drawn at random often
        silences all of them at once, and with them the whole decoder.
        """
        cosine = F.cosine_similarity(mixed.float(), self.direction.float(), dim=-1)  # (B, N)
        return F.leaky_relu(cosine, self.leak)

    def _within_windows(self, padded: Tensor) -> Tensor:
        """Attention among the s x s patches of each window, (B, m*s, n*s, high heads * size)."""
        side = self.window
        # (B, m, s, n, s, 3 * heads * size)
        windows = self.high(padded).unflatten(2, (-1, side)).unflatten(1, (-1, side))
        batch, rows, _, columns = windows.shape[:4]
        # (B*m*n, s*s, 3 * heads * size)
        windows = windows.transpose(2, 3).flatten(3, 4).flatten(0, 2)
        # each (B*m*n, heads, s*s, size)
        query, key, value = windows.unflatten(-1, (3, -1, self.size)).permute(2, 0, 3, 1, 4)
        # (B*m*n, s*s, heads * size)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        # (B, m, n, s, s, heads * size)
        mixed = mixed.unflatten(0, (batch, rows, columns)).unflatten(3, (side, side))
        whole: Tensor = mixed.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return whole

    def _over_all(self, padded: Tensor) -> Tensor:
        """Attention of every patch to the means of all windows, (B, m*s, n*s, low heads * size)."""
        # (B, m*n, D)
        means = F.avg_pool2d(padded.permute(0, 3, 1, 2), self.window).flatten(2).transpose(1, 2)
        # (B, heads, m*s*n*s, size)
        query = self.low_query(padded).flatten(1, 2).unflatten(-1, (-1, self.size)).transpose(1, 2)
        # each (B, heads, m*n, size)
        key, value = self.low_pair(means).unflatten(-1, (2, -1, self.size)).permute(2, 0, 3, 1, 4)
        # (B, m*s*n*s, heads * size)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        projected: Tensor = self.low_output(mixed).unflatten(1, padded.shape[1:3])
        return projected


class SpectralLayer(nn.Module):
    """Own values, single-head matching (no projections, no scale), feed-forward; post-norms."""

    def __init__(self, width: int, settings: SpectralSettings) -> None:
        super().__init__()
        self.values = SpectralValues(width, settings)
        self.output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, settings.feedforward)
        self.contract = nn.Linear(settings.feedforward, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, queries: Tensor, patches: Tensor, grid: Grid) -> Tensor:
        """Refine class queries (B, C, D) with patches (B, N, D)."""
        values = self.values(patches, grid)  # (B, N, D)
        chance = self.dropout.p if self.training else 0.0
        # (B, C, D)
        gathered = F.scaled_dot_product_attention(
            queries.to(values.dtype), values, values, dropout_p=chance, scale=1.0
        )
        # (B, C, D)
        queries = self.attention_norm((queries + self.dropout(self.output(gathered))).float())
        hidden = self.dropout(F.relu(self.expand(queries)))  # (B, C, feedforward)
        refined = queries + self.dropout(self.contract(hidden))  # (B, C, D)
        normed: Tensor = self.feedforward_norm(refined.float())
        return normed


class SpectralDecoder(StageDecoder):
    """Layers that refine the class queries, and the values of a last layer whose products with the
    queries are the masks.

    Every layer sees the same patches. Of the last layer only the values reach an output, so only
    they exist here.
    """

    Settings = SpectralSettings

    def __init__(self, width: int, settings: SpectralSettings) -> None:
        """Build `settings.layers` layers, identical copies at the start as in the released code."""
        super().__init__()
        first = SpectralLayer(width, settings)
        self.layers = nn.ModuleList(copy.deepcopy(first) for _ in range(settings.layers - 1))
        self.mask_values = first.values

    def forward(self, queries: Tensor, patches: Tensor, grid: Grid) -> Tensor:
        """Mask logits (B, C, N), float32, of class queries (B, C, D) over patches (B, N, D)."""
        for layer in self.layers:
            queries = layer(queries, patches, grid)  # (B, C, D)
        values = self.mask_values(patches, grid)  # (B, N, D)
        with torch.autocast(queries.device.type, enabled=False):
            logits: Tensor = queries.float() @ values.float().transpose(1, 2)  # (B, C, N)
        return logits

    @classmethod
    def unused_parameters(cls, width: int, settings: SpectralSettings) -> int:
        """Count a whole cross-attention in every layer, and most of the last layer."""
        inner = settings.feedforward
        high = width // settings.heads * (settings.heads - count_low_heads(settings))
        # self- and cross-attention, norm, window output
        unused = 2 * (4 * width * width + 4 * width) + 2 * width + high * high + high
        # output, feed-forward, norms
        last_layer = width * width + width + (2 * width * inner + inner + width) + 4 * width
        return settings.layers * unused + last_layer

    @classmethod
    def unused_flops(
        cls, width: int, settings: TransformerSettings, classes: int, patches: int
    ) -> int:
        """Count matching with the values, output and feed-forward of the last layer."""
        attention = classes * patches * width + classes * width * width
        return 2 * (attention + 2 * classes * width * settings.feedforward)
