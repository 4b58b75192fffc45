"""From the original downloads of a dataset to its folders.

In: archives or unpacked folders as their owners publish them. Out: images and index masks.
"""

from cascade_clip.data.prepare.preparation import (
    Source,
    check_download,
    find_source,
    prepare_dataset,
)
from cascade_clip.data.prepare.recipes import RECIPES, Download, Recipe

__all__ = [
    "RECIPES",
    "Download",
    "Recipe",
    "Source",
    "check_download",
    "find_source",
    "prepare_dataset",
]
