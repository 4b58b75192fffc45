"""Zero-shot semantic segmentation with a cascade of CLIP's stages.

    import cascade_clip
    result = cascade_clip.load("FOLDER").segment("photo.jpg", ["cat", "grass"])
    result.overlay("photo.jpg").save("overlay.png")

Names are imported when they are first used, so `import cascade_clip` is fast.
"""

from typing import TYPE_CHECKING

from cascade_clip.lazy import lazy_names
from cascade_clip.moved import accept_moved_modules

if TYPE_CHECKING:
    from cascade_clip.config import Config
    from cascade_clip.inference import Predictor
    from cascade_clip.inference import load_predictor as load
    from cascade_clip.models import Segmenter, build_segmenter
    from cascade_clip.results import Segmentation
    from cascade_clip.vocabulary import Vocabulary

__getattr__ = lazy_names(
    __name__,
    {
        "Config": "config",
        "Predictor": "inference",
        "Segmentation": "results",
        "Segmenter": "models",
        "Vocabulary": "vocabulary",
        "build_segmenter": "models",
        "load": "inference:load_predictor",
    },
)

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
