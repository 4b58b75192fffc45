"""What `data prepare` knows of each data set: the downloads, what becomes of their files, and how
many there must be.

Sources: mmsegmentation, tools/dataset_converters/{voc_aug,coco_stuff164k,pascal_context}.py and its
data set guide (layouts, counts); tensorflow-datasets and torchvision (sizes and hashes of VOC, SBD
and COCO); the hashes of PASCAL Context and ADE20K are those on which the loaders of several public
repositories agree.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cascade_clip.data.prepare.masks import (
    TRAIN_IDS_ENDING,
    context_mask,
    detail_mask,
    sbd_mask,
    train_id_mask,
)

Convert = Callable[[Any], bytes]
Lists = Mapping[str, Collection[str]]
"""List file below the output folder, and the stems in it."""

_VOC2012, _VOC2010 = "VOCdevkit/VOC2012", "VOCdevkit/VOC2010"
_COCO, _ADE = "coco_stuff164k", "ade/ADEChallengeData2016"
_FLICKR = "photos from Flickr, whose terms of use apply"
_VOC_SITE = "http://host.robots.ox.ac.uk/pascal/VOC"


@dataclass(frozen=True)
class Rule:
    """What becomes of the files of one kind."""

    pattern: str
    """End of the paths it takes, with wildcards: `JPEGImages/*.jpg`."""
    target: str
    """Folder below the output folder."""
    count: int
    """Files there must be at least."""
    convert: Convert | None = None
    """From the content of the file to that of a PNG; None copies."""
    ending: str = ""
    """Put behind the stem of a converted file."""

    def takes(self, name: PurePosixPath) -> bool:
        """Whether this is the rule of a file (or of a file beside it); files that a conversion
        wrote earlier are none."""
        return name.match(self.pattern) and not name.stem.endswith(TRAIN_IDS_ENDING)

    def target_of(self, name: PurePosixPath) -> str:
        """Where the file goes, below the output folder."""
        file = name.name if self.convert is None else f"{name.stem}{self.ending}.png"
        return f"{self.target}/{file}"


@dataclass(frozen=True)
class Download:
    """One file that the user downloads, or a folder with what was in it."""

    file: str
    url: str
    terms: str
    rules: tuple[Rule, ...]
    size: int = 0
    """Exact bytes; 0: not known."""
    about: str = ""
    """Size in words where it is not known exactly."""
    digest: str = ""
    """`sha256:...` or `md5:...`; empty: none is published."""
    places: tuple[str, ...] = ()
    """Other places in the raw folder: folders that hold the same files unpacked, or where
    mmsegmentation has the file."""
    lists: Callable[[Path, Collection[str]], Lists] | None = None
    """Lists to write, from the output folder and the stems of the converted masks of this
    download."""


@dataclass(frozen=True)
class Check:
    """A list, or two folders, whose images and masks must all be there."""

    images: str
    masks: str
    """Empty: images alone."""
    count: int
    """Exact number of pairs; the least one without a list."""
    listed: str = ""
    """List file; empty: every image of the folder."""
    ending: str = ""


@dataclass(frozen=True)
class Recipe:
    """From the downloads of a data set to its folders."""

    name: str
    title: str
    folder: str
    """Folder that is made below the output folder."""
    needs: tuple[tuple[Download, ...], ...]
    """Downloads that are needed, in this order; of several in one place the first that is there."""
    checks: tuple[Check, ...]


def sbd_lists(out: Path, stems: Collection[str]) -> Lists:
    """`aug` and `trainaug`: the SBD images that are in neither VOC list, and those together with
    VOC's train list; sorted.

    SBD's own train and val lists together are all its masks, so its masks are what is counted.
    """
    train, val = (
        read_list(out / _VOC2012 / f"ImageSets/Segmentation/{split}.txt")
        for split in ("train", "val")
    )
    folder = f"{_VOC2012}/ImageSets/Segmentation"
    return {
        f"{folder}/aug.txt": sorted(set(stems) - set(train) - set(val)),
        f"{folder}/trainaug.txt": sorted((set(stems) | set(train)) - set(val)),
    }


def context_lists(out: Path, stems: Collection[str]) -> Lists:
    """The masks of VOC 2010's train and val lists, which PASCAL Context uses; sorted."""
    return {
        f"{_VOC2010}/ImageSets/SegmentationContext/{split}.txt": sorted(
            set(read_list(out / _VOC2010 / f"ImageSets/Main/{split}.txt")) & set(stems)
        )
        for split in ("train", "val")
    }


def read_list(path: Path) -> list[str]:
    """First word of every line."""
    return [
        line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ]


_VOC = Recipe(
    name="voc",
    title="PASCAL VOC 2012 with the masks of SBD",
    folder=_VOC2012,
    needs=(
        (
            Download(
                file="VOCtrainval_11-May-2012.tar",
                url=f"{_VOC_SITE}/voc2012/VOCtrainval_11-May-2012.tar",
                terms=_FLICKR,
                size=1_999_639_040,
                digest="sha256:e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
                places=("VOCdevkit/VOC2012", "VOC2012"),
                rules=(
                    Rule(
                        "ImageSets/Segmentation/train.txt", f"{_VOC2012}/ImageSets/Segmentation", 1
                    ),
                    Rule("ImageSets/Segmentation/val.txt", f"{_VOC2012}/ImageSets/Segmentation", 1),
                    Rule("JPEGImages/*.jpg", f"{_VOC2012}/JPEGImages", 17_125),
                    Rule("SegmentationClass/*.png", f"{_VOC2012}/SegmentationClass", 2_913),
                ),
            ),
        ),
        (
            Download(
                file="benchmark.tgz",
                url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
                terms="SBD states no licence; " + _FLICKR,
                about="about 1.4 GB",
                digest="sha256:6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53",
                places=("benchmark_RELEASE", "VOCdevkit/VOCaug", "VOCaug"),
                rules=(
                    Rule("dataset/cls/*.mat", f"{_VOC2012}/SegmentationClassAug", 11_355, sbd_mask),
                ),
                lists=sbd_lists,
            ),
        ),
    ),
    checks=(
        Check(
            f"{_VOC2012}/JPEGImages",
            f"{_VOC2012}/SegmentationClass",
            1_464,
            f"{_VOC2012}/ImageSets/Segmentation/train.txt",
        ),
        Check(
            f"{_VOC2012}/JPEGImages",
            f"{_VOC2012}/SegmentationClass",
            1_449,
            f"{_VOC2012}/ImageSets/Segmentation/val.txt",
        ),
        Check(
            f"{_VOC2012}/JPEGImages",
            f"{_VOC2012}/SegmentationClassAug",
            9_118,
            f"{_VOC2012}/ImageSets/Segmentation/aug.txt",
        ),
        Check(
            f"{_VOC2012}/JPEGImages", "", 10_582, f"{_VOC2012}/ImageSets/Segmentation/trainaug.txt"
        ),
    ),
)

_COCO_TERMS = "photos: Flickr's terms of use"
_COCO_STUFF = Recipe(
    name="coco-stuff",
    title="COCO-Stuff 164k",
    folder=_COCO,
    needs=(
        (
            Download(
                file="train2017.zip",
                url="http://images.cocodataset.org/zips/train2017.zip",
                terms=_COCO_TERMS,
                size=19_336_861_798,
                digest="sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
                places=("train2017", "images/train2017", "coco_stuff164k/images/train2017"),
                rules=(Rule("train2017/*.jpg", f"{_COCO}/images/train2017", 118_287),),
            ),
        ),
        (
            Download(
                file="val2017.zip",
                url="http://images.cocodataset.org/zips/val2017.zip",
                terms=_COCO_TERMS,
                size=815_585_330,
                digest="sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                places=("val2017", "images/val2017", "coco_stuff164k/images/val2017"),
                rules=(Rule("val2017/*.jpg", f"{_COCO}/images/val2017", 5_000),),
            ),
        ),
        (
            Download(
                file="stuffthingmaps_trainval2017.zip",
                url="http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip",
                terms="masks: CC BY 4.0",
                about="659 MB",
                places=("stuffthingmaps_trainval2017", "annotations", "coco_stuff164k/annotations"),
                rules=(
                    Rule("train2017/*.png", f"{_COCO}/annotations/train2017", 118_287),
                    Rule(
                        "train2017/*.png",
                        f"{_COCO}/annotations/train2017",
                        118_287,
                        train_id_mask,
                        TRAIN_IDS_ENDING,
                    ),
                    Rule("val2017/*.png", f"{_COCO}/annotations/val2017", 5_000),
                    Rule(
                        "val2017/*.png",
                        f"{_COCO}/annotations/val2017",
                        5_000,
                        train_id_mask,
                        TRAIN_IDS_ENDING,
                    ),
                ),
            ),
        ),
    ),
    checks=(
        Check(
            f"{_COCO}/images/train2017",
            f"{_COCO}/annotations/train2017",
            118_287,
            ending=TRAIN_IDS_ENDING,
        ),
        Check(
            f"{_COCO}/images/val2017",
            f"{_COCO}/annotations/val2017",
            5_000,
            ending=TRAIN_IDS_ENDING,
        ),
    ),
)

_CONTEXT_MASKS = f"{_VOC2010}/SegmentationClassContext"
_CONTEXT = Recipe(
    name="context",
    title="PASCAL Context, 59 classes",
    folder=_VOC2010,
    needs=(
        (
            Download(
                file="VOCtrainval_03-May-2010.tar",
                url=f"{_VOC_SITE}/voc2010/VOCtrainval_03-May-2010.tar",
                terms=_FLICKR,
                about="about 1.35 GB",
                digest="md5:da459979d0c395079b5c75ee67908abb",
                places=("VOCdevkit/VOC2010", "VOC2010"),
                rules=(
                    Rule("ImageSets/Main/train.txt", f"{_VOC2010}/ImageSets/Main", 1),
                    Rule("ImageSets/Main/val.txt", f"{_VOC2010}/ImageSets/Main", 1),
                    Rule("JPEGImages/*.jpg", f"{_VOC2010}/JPEGImages", 11_321),
                ),
            ),
        ),
        (
            Download(
                file="trainval_merged.json",
                url="https://codalabuser.blob.core.windows.net/public/trainval_merged.json",
                terms="PASCAL in Detail states no licence",
                digest="md5:3c2d0c0656b7be9eb61928ffe885d8ce",
                places=("VOCdevkit/VOC2010/trainval_merged.json", "VOC2010/trainval_merged.json"),
                rules=(Rule("*.jpg", _CONTEXT_MASKS, 10_103, detail_mask),),
            ),
            Download(
                file="trainval.tar.gz",
                url="https://www.cs.stanford.edu/~roozbeh/pascal-context/trainval.tar.gz",
                terms="PASCAL Context states no licence",
                about="about 31 MB",
                places=("trainval", "pascal-context/trainval"),
                rules=(Rule("*.mat", _CONTEXT_MASKS, 10_103, context_mask),),
                lists=context_lists,
            ),
        ),
    ),
    checks=(
        Check(
            f"{_VOC2010}/JPEGImages",
            _CONTEXT_MASKS,
            4_998,
            f"{_VOC2010}/ImageSets/SegmentationContext/train.txt",
        ),
        Check(
            f"{_VOC2010}/JPEGImages",
            _CONTEXT_MASKS,
            5_105,
            f"{_VOC2010}/ImageSets/SegmentationContext/val.txt",
        ),
    ),
)

_ADE20K = Recipe(
    name="ade20k",
    title="ADE20K, 150 classes",
    folder=_ADE,
    needs=(
        (
            Download(
                file="ADEChallengeData2016.zip",
                url="http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                terms="photos: non-commercial research and education; masks: BSD-3-Clause",
                about="about 0.97 GB",
                digest="md5:7328b3957e407ddae1d3cbf487f149ef",
                places=("ADEChallengeData2016", "ade/ADEChallengeData2016"),
                rules=(
                    Rule("images/training/*.jpg", f"{_ADE}/images/training", 20_210),
                    Rule("images/validation/*.jpg", f"{_ADE}/images/validation", 2_000),
                    Rule("annotations/training/*.png", f"{_ADE}/annotations/training", 20_210),
                    Rule("annotations/validation/*.png", f"{_ADE}/annotations/validation", 2_000),
                ),
            ),
        ),
    ),
    checks=(
        Check(f"{_ADE}/images/training", f"{_ADE}/annotations/training", 20_210),
        Check(f"{_ADE}/images/validation", f"{_ADE}/annotations/validation", 2_000),
    ),
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (_VOC, _COCO_STUFF, _CONTEXT, _ADE20K)
}
