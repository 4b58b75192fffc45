"""Cascade-CLIP as a network (paper Figure 3).

In: a `ModelConfig`, images (B, 3, H, W) and text embeddings (C, D). Out: mask logits (B, C, h, w),
per stage and summed. `build_segmenter` is the only place where parts are chosen and joined.
"""

from cascade_clip.models.aggregation import WeightedSum, gaussian_weights
from cascade_clip.models.backbone import BlockFeatures
from cascade_clip.models.builder import build_segmenter, find_differences
from cascade_clip.models.cost import Cost, count_cost
from cascade_clip.models.decoders import StageDecoder
from cascade_clip.models.decoders.transformer import CrossAttention, Decoder, DecoderLayer
from cascade_clip.models.segmenter import Segmenter, relation_descriptor
