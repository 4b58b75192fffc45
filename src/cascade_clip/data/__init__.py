"""Labelled images for training and evaluation.

In: a `DataConfig`, or folders of images and masks. Out: samples (image, labels) with their class
list, crops for training, and the order in which a run walks through them.
"""

from typing import TYPE_CHECKING

from cascade_clip.data.folder import FoundFiles, find_files, list_pairs
from cascade_clip.data.layouts import (
    DatasetSpec,
    Pairs,
    Split,
    data_root,
    find_dataset,
    list_recipes,
    listed_pairs,
)
from cascade_clip.lazy import lazy_names

if TYPE_CHECKING:
    from cascade_clip.data.augmentation import TrainTransform
    from cascade_clip.data.registry import (
        LabelledImages,
        SandboxScenes,
        build_dataset,
        data_templates,
        describe_data,
        find_labelled,
    )
    from cascade_clip.data.samples import LabelledFiles, Sample, SegmentationFolder
    from cascade_clip.data.sampling import StepSampler, TrainingSet

# with torch, which `data prepare` and its workers do without
__getattr__ = lazy_names(
    __name__,
    {
        "TrainTransform": "augmentation",
        **dict.fromkeys(("LabelledImages", "SandboxScenes", "build_dataset"), "registry"),
        **dict.fromkeys(("data_templates", "describe_data", "find_labelled"), "registry"),
        **dict.fromkeys(("LabelledFiles", "Sample", "SegmentationFolder"), "samples"),
        **dict.fromkeys(("StepSampler", "TrainingSet"), "sampling"),
    },
)
