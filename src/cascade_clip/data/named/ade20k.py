"""ADE20K, 150 classes.

Sources: mmsegmentation's guide to datasets (layout, counts); the hash is the one on which the
loaders of several public repositories agree.
"""

from pathlib import Path

from cascade_clip.data.folder import list_pairs
from cascade_clip.data.layouts import DatasetSpec, Pairs, Split
from cascade_clip.data.prepare import Check, Download, Recipe, Rule

FOLDER = "ade/ADEChallengeData2016"


def pairs(folder: Path, split: Split) -> Pairs:
    """Every image of a split."""
    part = {"train": "training", "val": "validation"}[split]
    return list_pairs(folder / "images" / part, folder / "annotations" / part)


ARCHIVE = Download(
    file="ADEChallengeData2016.zip",
    url="http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    terms="photos: non-commercial research and education; masks: BSD-3-Clause",
    about="about 0.97 GB",
    digest="md5:7328b3957e407ddae1d3cbf487f149ef",
    places=("ADEChallengeData2016", "ade/ADEChallengeData2016"),
    rules=(
        Rule("images/training/*.jpg", "images/training", 20_210),
        Rule("images/validation/*.jpg", "images/validation", 2_000),
        Rule("annotations/training/*.png", "annotations/training", 20_210),
        Rule("annotations/validation/*.png", "annotations/validation", 2_000),
    ),
)
CHECKS = (
    Check("images/training", "annotations/training", 20_210),
    Check("images/validation", "annotations/validation", 2_000),
)
RECIPE = Recipe(folder=FOLDER, needs=((ARCHIVE,),), checks=CHECKS)

SPEC = DatasetSpec(
    title="ADE20K, 150 classes",
    folders=(FOLDER, "ADEChallengeData2016", "."),
    sign="annotations",
    pairs=pairs,
    classes="ade20k",
    licence="ADE20K: non-commercial research and education; see its home page",
    recipe=RECIPE,
)
