"""COCO-Stuff 164k.

Sources: mmsegmentation, tools/dataset_converters/coco_stuff164k.py; tensorflow-datasets and
torchvision (sizes and hashes).
"""

from pathlib import Path

from cascade_clip.data.folder import MASK_ENDING, list_pairs
from cascade_clip.data.layouts import DatasetSpec, Pairs, Split
from cascade_clip.data.prepare import Check, Download, Recipe, Rule, train_id_mask

FOLDER = "coco_stuff164k"
TRAIN_MASKS, VAL_MASKS = "annotations/train2017", "annotations/val2017"


def pairs(folder: Path, split: Split) -> Pairs:
    """Every image of a split."""
    return list_pairs(folder / "images" / f"{split}2017", folder / "annotations" / f"{split}2017")


def _images(part: str, count: int, size: int, digest: str) -> Download:
    return Download(
        file=f"{part}.zip",
        url=f"http://images.cocodataset.org/zips/{part}.zip",
        terms="photos: Flickr's terms of use",
        size=size,
        digest=f"sha256:{digest}",
        places=(part, f"images/{part}", f"{FOLDER}/images/{part}"),
        rules=(Rule(f"{part}/*.jpg", f"images/{part}", count),),
    )


TRAIN_DIGEST = "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"
VAL_DIGEST = "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"
TRAIN = _images("train2017", 118_287, 19_336_861_798, TRAIN_DIGEST)
VAL = _images("val2017", 5_000, 815_585_330, VAL_DIGEST)
MASKS = Download(
    file="stuffthingmaps_trainval2017.zip",
    url="http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/"
    "stuffthingmaps_trainval2017.zip",
    terms="masks: CC BY 4.0",
    about="659 MB",
    places=("stuffthingmaps_trainval2017", "annotations", "coco_stuff164k/annotations"),
    rules=(
        Rule("train2017/*.png", TRAIN_MASKS, 118_287),
        Rule("train2017/*.png", TRAIN_MASKS, 118_287, train_id_mask, MASK_ENDING),
        Rule("val2017/*.png", VAL_MASKS, 5_000),
        Rule("val2017/*.png", VAL_MASKS, 5_000, train_id_mask, MASK_ENDING),
    ),
)
CHECKS = (
    Check("images/train2017", TRAIN_MASKS, 118_287, ending=MASK_ENDING),
    Check("images/val2017", VAL_MASKS, 5_000, ending=MASK_ENDING),
)
RECIPE = Recipe(folder=FOLDER, needs=((TRAIN,), (VAL,), (MASKS,)), checks=CHECKS)

SPEC = DatasetSpec(
    title="COCO-Stuff 164k",
    folders=(FOLDER, "."),
    sign="annotations",
    pairs=pairs,
    classes="coco-stuff",
    licence="COCO-Stuff: annotations CC BY 4.0, images under Flickr's terms of use",
    recipe=RECIPE,
)
