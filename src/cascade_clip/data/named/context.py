"""PASCAL Context, 59 classes, with the ten unseen classes that the paper prints.

Sources: mmsegmentation, tools/dataset_converters/pascal_context.py; the hashes are those on which
the loaders of several public repositories agree.
"""

from collections.abc import Collection
from pathlib import Path

from cascade_clip.data.layouts import DatasetSpec, Pairs, Split, listed_pairs
from cascade_clip.data.named.voc import FLICKR, SITE
from cascade_clip.data.prepare import (
    Check,
    Download,
    Lists,
    ReadList,
    Recipe,
    Rule,
    context_mask,
    detail_mask,
)

FOLDER = "VOCdevkit/VOC2010"
MASKS = "SegmentationClassContext"
LISTS = "ImageSets/SegmentationContext"


def pairs(folder: Path, split: Split) -> Pairs:
    """The list of a split."""
    return listed_pairs(folder, f"{LISTS}/{split}.txt", MASKS)


def context_lists(read: ReadList, stems: Collection[str]) -> Lists:
    """The masks of VOC 2010's train and val lists, which PASCAL Context uses; sorted."""
    return {
        f"{LISTS}/{split}.txt": sorted(set(read(f"ImageSets/Main/{split}.txt")) & set(stems))
        for split in ("train", "val")
    }


IMAGES = Download(
    file="VOCtrainval_03-May-2010.tar",
    url=f"{SITE}/voc2010/VOCtrainval_03-May-2010.tar",
    terms=FLICKR,
    about="about 1.35 GB",
    digest="md5:da459979d0c395079b5c75ee67908abb",
    places=("VOCdevkit/VOC2010", "VOC2010"),
    rules=(
        Rule("ImageSets/Main/train.txt", "ImageSets/Main", 1),
        Rule("ImageSets/Main/val.txt", "ImageSets/Main", 1),
        Rule("JPEGImages/*.jpg", "JPEGImages", 11_321),
    ),
)
DETAIL = Download(
    file="trainval_merged.json",
    url="https://codalabuser.blob.core.windows.net/public/trainval_merged.json",
    terms="PASCAL in Detail states no licence",
    digest="md5:3c2d0c0656b7be9eb61928ffe885d8ce",
    places=("VOCdevkit/VOC2010/trainval_merged.json", "VOC2010/trainval_merged.json"),
    rules=(Rule("*.jpg", MASKS, 10_103, detail_mask),),
)
ANNOTATIONS = Download(
    file="trainval.tar.gz",
    url="https://www.cs.stanford.edu/~roozbeh/pascal-context/trainval.tar.gz",
    terms="PASCAL Context states no licence",
    about="about 31 MB",
    places=("trainval", "pascal-context/trainval"),
    rules=(Rule("*.mat", MASKS, 10_103, context_mask),),
    lists=context_lists,
)
CHECKS = (
    Check("JPEGImages", MASKS, 4_998, f"{LISTS}/train.txt"),
    Check("JPEGImages", MASKS, 5_105, f"{LISTS}/val.txt"),
)
RECIPE = Recipe(folder=FOLDER, needs=((IMAGES,), (DETAIL, ANNOTATIONS)), checks=CHECKS)

SPEC = DatasetSpec(
    title="PASCAL Context, 59 classes",
    folders=(FOLDER, "VOC2010", "."),
    sign=MASKS,
    pairs=pairs,
    classes="context",
    licence="images under Flickr's terms of use, PASCAL-Context annotations; see its home page",
    recipe=RECIPE,
)
