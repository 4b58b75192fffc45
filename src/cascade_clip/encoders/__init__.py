"""Image towers and text encoders, and where their weights come from.

In: a `ClipConfig`; then normalised images (B, 3, H, W), or class names. Out: tokens block by
block, or text embeddings (C, D).
"""

from cascade_clip.encoders.clip import LoadedClip, load_clip, outline_clip
from cascade_clip.encoders.positions import Grid, PositionEmbedding, resize_positions
from cascade_clip.encoders.text import TextEncoder, TextTower, build_text_encoder, load_embeddings
from cascade_clip.encoders.timm_tower import TimmTower
from cascade_clip.encoders.towers import OpenClipTower, Tower, build_tower
from cascade_clip.encoders.weights import fingerprint_weights, read_state
