"""Zero-shot semantic segmentation with a cascade of CLIP's stages.

    import cascade_clip
    result = cascade_clip.load("FOLDER").segment("photo.jpg", ["cat", "grass"])
    result.overlay("photo.jpg").save("overlay.png")

Names are imported when they are first used, so `import cascade_clip` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cascade_clip.moved import accept_moved_modules

if TYPE_CHECKING:
    from cascade_clip.config import Config as Config
    from cascade_clip.inference import Predictor as Predictor
    from cascade_clip.inference import load_predictor as load
    from cascade_clip.models import Segmenter as Segmenter
    from cascade_clip.models import build_segmenter as build_segmenter
    from cascade_clip.results import Segmentation as Segmentation
    from cascade_clip.vocabulary import Vocabulary as Vocabulary

_PLACES = {
    "load": "inference.predictor:load_predictor",
    "Predictor": "inference.predictor:Predictor",
    "Segmentation": "results.segmentation:Segmentation",
    "Vocabulary": "vocabulary:Vocabulary",
    "Config": "config:Config",
    "Segmenter": "models.segmenter:Segmenter",
    "build_segmenter": "models.segmenter:build_segmenter",
}

accept_moved_modules()

__all__ = [
    "Config",
    "Predictor",
    "Segmentation",
    "Segmenter",
    "Vocabulary",
    "build_segmenter",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PLACES:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; it has {sorted(_PLACES)}"
        )
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
