"""From the original downloads of a dataset to its folder.

In: archives or unpacked folders as their owners publish them. Out: images and index masks.
"""

from cascade_clip.data.prepare.masks import context_mask, detail_mask, sbd_mask, train_id_mask
from cascade_clip.data.prepare.preparation import (
    Source,
    check_download,
    find_source,
    prepare_dataset,
)
from cascade_clip.data.prepare.recipes import Check, Download, Lists, ReadList, Recipe, Rule
