"""Reading and writing files safely.

In: paths. Out: images, image and mask tensors, unpickled weights that execute nothing, hashes,
files that are written whole or not at all, and reports of defects.
"""

from typing import TYPE_CHECKING

from cascade_clip.files.atomic import write_folder, write_json, write_whole
from cascade_clip.files.defects import report_defect
from cascade_clip.files.hashing import file_sha256, is_damaged_blob
from cascade_clip.files.images import (
    IMAGE_SUFFIXES,
    LARGEST_PICTURE,
    MASK_SUFFIXES,
    TooLarge,
    is_large,
    open_picture,
    read_picture,
)
from cascade_clip.lazy import lazy_names

if TYPE_CHECKING:
    from cascade_clip.files.image_tensors import (
        is_color_mask,
        load_color_mask,
        load_image,
        load_mask,
    )
    from cascade_clip.files.torch_files import read_pickle

_TENSORS = ("is_color_mask", "load_color_mask", "load_image", "load_mask")
__getattr__ = lazy_names(
    __name__, {**dict.fromkeys(_TENSORS, "image_tensors"), "read_pickle": "torch_files"}
)
