"""The method the plain way, as a yardstick for speed and memory: same weights, same results.

Attention matrices are written out, what becomes of prompt tokens and of the last decoder layer is
computed and thrown away, every class has a full-size map, all of them at once, windows come one by
one, and the loss is left to autograd on full-size maps. Letters: B images, C classes, N patches, D
joint width, W tower width, H x W pixels.
"""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_clip.config import LossConfig
from cascade_clip.encoders import Grid
from cascade_clip.inference import cut_windows, list_windows
from cascade_clip.losses import present_pairs
from cascade_clip.models import (
    BlockFeatures,
    CrossAttention,
    Decoder,
    DecoderLayer,
    Segmenter,
    relation_descriptor,
)


class Textbook(nn.Module):
    """A segmenter whose parts are run the plain way."""

    def __init__(self, model: Segmenter) -> None:
        """Run `model`: deep prompts, open_clip tower, transformer decoders of at least 2 layers."""
        super().__init__()
        self.model = model
        self.last_layers = nn.ModuleList()
        for decoder in cast(Any, model.decoders):
            layer = copy.deepcopy(decoder.layers[0])  # with the parts that reach no output
            layer.attention.query.load_state_dict(decoder.mask_attention.query.state_dict())
            layer.attention.key.load_state_dict(decoder.mask_attention.key.state_dict())
            self.last_layers.append(layer)

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        """Mask logits (B, C, H, W) of images (B, 3, H, W) in whole patches, for text (C, D)."""
        features = self._features(images)
        relation = relation_descriptor(features.class_token, text)  # (B, C, 2D)
        total = []
        for index, stage in enumerate(self.model.stages):
            # (B, N, D)
            memory = self.model.aggregations[index]([features.patches[block] for block in stage])
            # (B, C, D)
            queries = self.model.queries[min(index, len(self.model.queries) - 1)](relation)
            decoder = cast(Decoder, self.model.decoders[index])
            for layer in [*decoder.layers, self.last_layers[index]]:
                # (B, C, D), (B, heads, C, N)
                queries, compared = decoder_layer(cast(DecoderLayer, layer), queries, memory)
            total.append(compared.mean(dim=1).unflatten(-1, features.grid))  # (B, C, h, w)
        masks, size = torch.stack(total).sum(dim=0).float(), images.shape[-2:]  # (B, C, h, w)
        return F.interpolate(masks, size=size, mode="bilinear", align_corners=False)

    def _features(self, images: Tensor) -> BlockFeatures:
        backbone = cast(Any, self.model.backbone)
        tower = backbone.tower
        class_token, patches = tower.embed(images)  # (B, 1, W), (B, N, W)
        tokens, start = torch.cat([class_token, patches], dim=1), 1
        found = {}
        for number, block in enumerate(tower.blocks, start=1):
            prompt = backbone.prompts.before(number, len(images))  # (B, P, W)
            # (B, 1 + P + N, W)
            tokens = torch.cat([tokens[:, :1], prompt, tokens[:, start:]], dim=1)
            start = 1 + prompt.shape[1]
            tokens = encoder_block(block, tokens)
            if number in backbone.taps.blocks:
                tapped = backbone.taps(number, backbone.prompt_norm(tokens[:, start:]))
                found[number] = F.normalize(tapped, dim=-1)  # (B, N, D)
        normed = backbone.prompt_norm(tokens)
        embedding, last = tower.project(normed[:, :1], normed[:, start:])  # (B, D), (B, N, D)
        found[len(tower.blocks)] = F.normalize(last, dim=-1)
        grid = (images.shape[-2] // tower.patch_size, images.shape[-1] // tower.patch_size)
        return BlockFeatures(found, F.normalize(embedding, dim=-1), grid)


def encoder_block(block: Any, tokens: Tensor) -> Tensor:
    """One block of the image tower on all tokens (B, tokens, W), attention written out."""
    attention = block.attn
    # (B, tokens, 3W)
    projected = F.linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = (_split(part, attention.num_heads) for part in projected.chunk(3, dim=-1))
    # (B, heads, tokens, tokens)
    weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(dim=-1)
    tokens = tokens + block.ls_1(attention.out_proj((weights @ value).transpose(1, 2).flatten(2)))
    return cast(Tensor, tokens + block.ls_2(block.mlp(block.ln_2(tokens))))


def decoder_layer(layer: DecoderLayer, queries: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Refined queries (B, C, D), and their scaled products with patches (B, N, D), per head."""
    attention: CrossAttention = layer.attention
    parts = attention.query(queries), attention.key(patches), attention.value(patches)
    query, key, value = (_split(part, attention.heads) for part in parts)
    compared = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # (B, heads, C, N)
    weights = F.dropout(compared.softmax(dim=-1), attention.dropout, layer.training)
    gathered = attention.output((weights @ value).transpose(1, 2).flatten(2))  # (B, C, D)
    queries = layer.attention_norm(queries + layer.dropout(gathered))
    hidden = layer.dropout(F.relu(layer.expand(queries)))
    # (B, C, D)
    refined: Tensor = layer.feedforward_norm(queries + layer.dropout(layer.contract(hidden)))
    return refined, compared


def _split(tokens: Tensor, heads: int) -> Tensor:
    # (B, heads, tokens, width / heads)
    split: Tensor = tokens.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


@torch.no_grad()
def label_map(
    model: Textbook, image: Tensor, text: Tensor, shift: Tensor, window: int, stride: int
) -> Tensor:
    """Labels (H, W) of a normalised image (3, H, W), window by window; subtracts `shift` (C,)."""
    canvas: Grid = (image.shape[-2], image.shape[-1])
    total, count = image.new_zeros(len(text), *canvas), image.new_zeros(1, *canvas)
    for place in list_windows(canvas, window, stride):
        masks = model(cut_windows(image, (place,), window), text)[0]  # (C, window, window)
        scores = masks.sigmoid() - shift[:, None, None]
        bottom, right = place.top + place.height, place.left + place.width
        padding = (place.left, canvas[1] - right, place.top, canvas[0] - bottom)
        total = total + F.pad(scores[:, : place.height, : place.width], padding)
        count[:, place.top : bottom, place.left : right] += 1
    return (total / count).softmax(dim=0).argmax(dim=0)


def loss(masks: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """Focal and dice sum of full-size mask logits (B, C, H, W) for labels (B, H, W)."""
    classes = masks.shape[1]
    hot = F.one_hot(torch.where(labels < 0, classes, labels), classes + 1)  # (B, H, W, C + 1)
    targets = hot[..., :classes].permute(0, 3, 1, 2).float()  # (B, C, H, W)
    scores = masks.sigmoid()
    crossentropy = F.binary_cross_entropy_with_logits(masks, targets, reduction="none")
    right = scores * targets + (1 - scores) * (1 - targets)
    balance = config.alpha * targets + (1 - config.alpha) * (1 - targets)
    focal = (balance * (1 - right) ** config.gamma * crossentropy).mean(dim=(-2, -1)).sum()
    scores, targets = scores.flatten(2), targets.flatten(2)
    sums = scores.sum(dim=-1) + targets.sum(dim=-1)  # (B, C)
    dice = 1 - (2 * (scores * targets).sum(dim=-1) + 1) / (sums + 1)  # (B, C)
    return config.focal * focal + config.dice * (dice * present_pairs(labels, classes)).sum()
