"""Decoders, one file for each kind: class queries and patches become mask logits.

A new kind is a file here and one line in `config/parts.py`; its class inherits `StageDecoder`.
"""

from cascade_clip.models.decoders.base import StageDecoder, find_decoder
