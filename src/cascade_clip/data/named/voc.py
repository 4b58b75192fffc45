"""PASCAL VOC 2012 with the masks of SBD.

Sources: mmsegmentation, tools/dataset_converters/voc_aug.py; tensorflow-datasets and torchvision
(sizes and hashes).
"""

from collections.abc import Collection
from pathlib import Path

from cascade_clip.data.layouts import DatasetSpec, Pairs, Split, listed_pairs
from cascade_clip.data.prepare import Check, Download, Lists, ReadList, Recipe, Rule, sbd_mask

FOLDER = "VOCdevkit/VOC2012"
LISTS = "ImageSets/Segmentation"
SITE = "http://host.robots.ox.ac.uk/pascal/VOC"
FLICKR = "photos from Flickr, whose terms of use apply"


def pairs(folder: Path, split: Split) -> Pairs:
    """The list of a split; `train` goes on with SBD's additional images."""
    found = listed_pairs(folder, f"{LISTS}/{split}.txt", "SegmentationClass")
    if split == "train":
        found += listed_pairs(folder, f"{LISTS}/aug.txt", "SegmentationClassAug")
    return found


def sbd_lists(read: ReadList, stems: Collection[str]) -> Lists:
    """`aug`: the SBD masks that are in neither VOC list; `trainaug`: those and VOC's train list."""
    train, val = (read(f"{LISTS}/{split}.txt") for split in ("train", "val"))
    return {
        f"{LISTS}/aug.txt": sorted(set(stems) - set(train) - set(val)),
        f"{LISTS}/trainaug.txt": sorted((set(stems) | set(train)) - set(val)),
    }


IMAGES = Download(
    file="VOCtrainval_11-May-2012.tar",
    url=f"{SITE}/voc2012/VOCtrainval_11-May-2012.tar",
    terms=FLICKR,
    size=1_999_639_040,
    digest="sha256:e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    places=("VOCdevkit/VOC2012", "VOC2012"),
    rules=(
        Rule("ImageSets/Segmentation/train.txt", LISTS, 1),
        Rule("ImageSets/Segmentation/val.txt", LISTS, 1),
        Rule("JPEGImages/*.jpg", "JPEGImages", 17_125),
        Rule("SegmentationClass/*.png", "SegmentationClass", 2_913),
    ),
)
SBD = Download(
    file="benchmark.tgz",
    url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
    "semantic_contours/benchmark.tgz",
    terms="SBD states no licence; " + FLICKR,
    about="about 1.4 GB",
    digest="sha256:6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53",
    places=("benchmark_RELEASE", "VOCdevkit/VOCaug", "VOCaug"),
    rules=(Rule("dataset/cls/*.mat", "SegmentationClassAug", 11_355, sbd_mask),),
    lists=sbd_lists,
)
CHECKS = (
    Check("JPEGImages", "SegmentationClass", 1_464, f"{LISTS}/train.txt"),
    Check("JPEGImages", "SegmentationClass", 1_449, f"{LISTS}/val.txt"),
    Check("JPEGImages", "SegmentationClassAug", 9_118, f"{LISTS}/aug.txt"),
    Check("JPEGImages", "", 10_582, f"{LISTS}/trainaug.txt"),
)
RECIPE = Recipe(folder=FOLDER, needs=((IMAGES,), (SBD,)), checks=CHECKS)

SPEC = DatasetSpec(
    title="PASCAL VOC 2012 with the masks of SBD",
    folders=(FOLDER, "VOC2012", "."),
    sign="SegmentationClass",
    pairs=pairs,
    classes="voc",
    licence="PASCAL VOC: images under Flickr's terms of use",
    recipe=RECIPE,
)
