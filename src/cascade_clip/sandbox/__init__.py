"""The built-in world: drawn scenes with labels and captions, and a small CLIP trained on them.

In: a seed and an index. Out: an image with its label map and captions, always the same. `pretrain`
makes the small CLIP again. Names are imported when they are first used.
"""

from typing import TYPE_CHECKING

from cascade_clip.lazy import lazy_names
from cascade_clip.sandbox.scenes import (
    CLASS_NAMES,
    PALETTE,
    SCENES_VERSION,
    UNSEEN_NAMES,
    SceneConfig,
    make_scene,
)

if TYPE_CHECKING:
    from cascade_clip.sandbox.pretrain import PretrainConfig
    from cascade_clip.sandbox.pretrain import pretrain as pretrain_clip
    from cascade_clip.sandbox.preview import export_world, preview_sheet

__getattr__ = lazy_names(
    __name__,
    {
        "PretrainConfig": "pretrain",
        "export_world": "preview",
        "pretrain_clip": "pretrain:pretrain",
        "preview_sheet": "preview",
    },
)
