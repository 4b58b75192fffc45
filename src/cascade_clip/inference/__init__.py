"""The only inference path.

In: a checkpoint or a model's name, class names, images of any size. Out: a `Segmentation`.
"""

from typing import TYPE_CHECKING

from cascade_clip.inference.loading import (
    DEFAULT_LOADING,
    LoadOptions,
    given_embeddings,
    load_predictor,
)
from cascade_clip.lazy import lazy_names

if TYPE_CHECKING:
    from cascade_clip.inference.class_binding import (
        BACKGROUND,
        SCENERY,
        SCENERY_WORD,
        BoundClasses,
        Words,
        without_none,
    )
    from cascade_clip.inference.image_batch import (
        Done,
        Source,
        find_sources,
        request_fingerprint,
        segment_sources,
        write_coco,
    )
    from cascade_clip.inference.predictor import LabelMap, Picture, Predictor
    from cascade_clip.inference.ray_batch import Recipe, require_ray, segment_on_cluster
    from cascade_clip.inference.ray_manifest import FOLDER, read_manifest
    from cascade_clip.inference.training_free import PREFIX, parse_clip
    from cascade_clip.inference.windows import cut_windows, list_windows

__getattr__ = lazy_names(
    __name__,
    {
        "BACKGROUND": "class_binding",
        "BoundClasses": "class_binding",
        "Done": "image_batch",
        "FOLDER": "ray_manifest",
        "LabelMap": "predictor",
        "PREFIX": "training_free",
        "Picture": "predictor",
        "Predictor": "predictor",
        "Recipe": "ray_batch",
        "SCENERY": "class_binding",
        "SCENERY_WORD": "class_binding",
        "Source": "image_batch",
        "Words": "class_binding",
        "cut_windows": "windows",
        "find_sources": "image_batch",
        "list_windows": "windows",
        "parse_clip": "training_free",
        "read_manifest": "ray_manifest",
        "request_fingerprint": "image_batch",
        "require_ray": "ray_batch",
        "segment_on_cluster": "ray_batch",
        "segment_sources": "image_batch",
        "without_none": "class_binding",
        "write_coco": "image_batch",
    },
)
