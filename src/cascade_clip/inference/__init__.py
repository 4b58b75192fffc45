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

_PLACES = {
    "class_binding": "BACKGROUND BoundClasses SCENERY SCENERY_WORD Words without_none",
    "image_batch": "Done Source find_sources request_fingerprint segment_sources write_coco",
    "predictor": "LabelMap Picture Predictor",
    "ray_batch": "Recipe require_ray segment_on_cluster",
    "ray_manifest": "FOLDER read_manifest",
    "training_free": "PREFIX parse_clip",
    "windows": "cut_windows list_windows",
}
__getattr__ = lazy_names(
    __name__, {name: module for module, names in _PLACES.items() for name in names.split()}
)
