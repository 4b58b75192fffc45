"""Labelled images for training and evaluation.

In: a `DataConfig`, or folders of images and masks. Out: samples (image, labels) with their class
list, crops for training, and the order in which a run walks through them.
"""

from cascade_clip.data.augmentation import TrainTransform
from cascade_clip.data.folder import (
    FoundFiles,
    LabelledFiles,
    Sample,
    SegmentationFolder,
    StepSampler,
    TrainingSet,
    find_files,
)
from cascade_clip.data.layouts import data_root, layout_vocabulary, list_layout
from cascade_clip.data.registry import (
    LabelledImages,
    SandboxScenes,
    build_dataset,
    data_templates,
    describe_data,
)

__all__ = [
    "FoundFiles",
    "LabelledFiles",
    "LabelledImages",
    "Sample",
    "SandboxScenes",
    "SegmentationFolder",
    "StepSampler",
    "TrainTransform",
    "TrainingSet",
    "build_dataset",
    "data_root",
    "data_templates",
    "describe_data",
    "find_files",
    "layout_vocabulary",
    "list_layout",
]
