"""Named data sets: the layouts on disk, their splits and what their mask values mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascade_clip.config import DataConfig, names_of
from cascade_clip.data.layouts import find_dataset
from cascade_clip.data.registry import build_dataset, data_templates
from cascade_clip.vocabulary import IGNORED, load_templates


def write_pair(image: Path, mask: Path, values: Sequence[int]) -> None:
    """A 4 x 2 image, and a mask whose first row holds `values`."""
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 2)).save(image)
    array = np.zeros((2, 4), dtype=np.uint8)
    array[0, : len(values)] = values
    Image.fromarray(array).save(mask)


def write_voc(root: Path, names: dict[str, Sequence[str]], values: Sequence[int]) -> None:
    base = root / "VOCdevkit" / "VOC2012"
    for part, stems in names.items():
        (base / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        (base / "ImageSets" / "Segmentation" / f"{part}.txt").write_text(
            "".join(f"{stem}\n" for stem in stems)
        )
        folder = "SegmentationClassAug" if part == "aug" else "SegmentationClass"
        for stem in stems:
            write_pair(base / "JPEGImages" / f"{stem}.jpg", base / folder / f"{stem}.png", values)


def test_voc_train_is_its_own_list_and_the_aug_list_of_sbd(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": ["b", "a"], "aug": ["c"], "val": ["d"]}, [0, 1, 20, 255])
    dataset = build_dataset(DataConfig(name="voc", root=str(tmp_path)))
    # the order of the lists
    assert [dataset.sample(index).path.stem for index in range(len(dataset))] == ["b", "a", "c"]
    # background and borders count nowhere
    assert dataset.sample(0).labels[0].tolist() == [IGNORED, 0, 19, IGNORED]
    assert dataset.vocabulary.names[0] == "aeroplane" and len(dataset.vocabulary.unseen) == 5
    # the data set's own folder will do
    own = tmp_path / "VOCdevkit" / "VOC2012"
    masks = [mask for _, mask in find_dataset("voc").find_pairs(own, "train")]
    assert [mask.parent.name for mask in masks] == [
        "SegmentationClass",
        "SegmentationClass",
        "SegmentationClassAug",
    ]


def test_evaluation_takes_the_other_part(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": ["a"], "aug": [], "val": ["d", "e"]}, [1])
    config = DataConfig(name="voc", root=str(tmp_path))
    assert len(build_dataset(config)) == 1
    assert len(build_dataset(config, "val")) == 2
    # what is set holds
    assert len(build_dataset(dataclasses.replace(config, split="train"), "val")) == 1
    assert len(build_dataset(dataclasses.replace(config, limit=1), "val")) == 1


@pytest.mark.parametrize(("name", "unseen"), [("context", "bird"), ("context-released", "bottle")])
def test_context_has_two_splits_on_the_same_files(tmp_path: Path, name: str, unseen: str) -> None:
    base = tmp_path / "VOCdevkit" / "VOC2010"
    write_pair(
        base / "JPEGImages" / "x.jpg", base / "SegmentationClassContext" / "x.png", [0, 1, 59]
    )
    (base / "ImageSets" / "SegmentationContext").mkdir(parents=True)
    (base / "ImageSets" / "SegmentationContext" / "val.txt").write_text("x\n")
    dataset = build_dataset(DataConfig(name=name, root=str(tmp_path), split="val"))
    assert dataset.sample(0).labels[0].tolist() == [IGNORED, 0, 58, IGNORED]
    assert unseen in dataset.vocabulary.unseen and len(dataset.vocabulary.unseen) == 10


def test_coco_stuff_reads_raw_values_and_train_ids(tmp_path: Path) -> None:
    base = tmp_path / "coco_stuff164k"
    masks = base / "annotations" / "val2017"
    write_pair(base / "images" / "val2017" / "1.jpg", masks / "1.png", [0, 12, 181, 255])
    config = DataConfig(name="coco-stuff", root=str(tmp_path), split="val")
    # 12 is the twelfth value that occurs
    assert build_dataset(config).sample(0).labels[0].tolist() == [0, 11, 170, IGNORED]
    write_pair(
        base / "images" / "val2017" / "1.jpg", masks / "1_labelTrainIds.png", [0, 12, 170, 255]
    )
    assert build_dataset(config).sample(0).labels[0].tolist() == [0, 12, 170, IGNORED]
    write_pair(base / "images" / "val2017" / "2.jpg", masks / "2.png", [0])
    with pytest.raises(ValueError, match="finish the conversion"):
        build_dataset(config)


def test_ade20k(tmp_path: Path) -> None:
    base = tmp_path / "ade" / "ADEChallengeData2016"
    write_pair(
        base / "images" / "training" / "t.jpg", base / "annotations" / "training" / "t.png", [1]
    )
    write_pair(
        base / "images" / "validation" / "v.jpg",
        base / "annotations" / "validation" / "v.png",
        [0, 1, 150],
    )
    dataset = build_dataset(DataConfig(name="ade20k", root=str(tmp_path)), "val")
    assert dataset.sample(0).path.name == "v.jpg"
    assert dataset.sample(0).labels[0].tolist() == [IGNORED, 0, 149, IGNORED]


def test_cityscapes_takes_train_ids_where_all_frames_have_them(tmp_path: Path) -> None:
    base = tmp_path / "cityscapes"
    fine = base / "gtFine" / "val" / "ulm"
    for frame in ("ulm_0", "ulm_1"):
        write_pair(
            base / "leftImg8bit" / "val" / "ulm" / f"{frame}_leftImg8bit.png",
            fine / f"{frame}_gtFine_labelIds.png",
            [7, 33, 0],
        )
    write_pair(tmp_path / "x.png", fine / "ulm_0_gtFine_labelTrainIds.png", [0, 18, 255])
    config = DataConfig(name="cityscapes", root=str(tmp_path), split="val")
    assert build_dataset(config).sample(0).labels[0].tolist() == [0, 18, IGNORED, IGNORED]
    write_pair(tmp_path / "x.png", fine / "ulm_1_gtFine_labelTrainIds.png", [18, 0, 255])
    assert build_dataset(config).sample(1).labels[0, :3].tolist() == [18, 0, IGNORED]


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASCADE_CLIP_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(
        FileNotFoundError, match=r"VOC 2012.* is not in .*nowhere.*VOCdevkit/VOC2012.*data prepare"
    ):
        build_dataset(DataConfig(name="voc"))
    write_voc(tmp_path, {"train": ["a"], "val": ["d"]}, [1])
    with pytest.raises(FileNotFoundError, match=r"aug\.txt is missing"):
        build_dataset(DataConfig(name="voc", root=str(tmp_path)))
    (tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages" / "d.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"names 1 files that are missing: .*d\.jpg"):
        build_dataset(DataConfig(name="voc", root=str(tmp_path)), "val")
    with pytest.raises(ValueError, match=r"data\.classes cannot be set"):
        build_dataset(DataConfig(name="voc", root=str(tmp_path), classes="voc"))
    with pytest.raises(ValueError, match=r"data\.name must be one of \['folder', .*got 'pets'"):
        DataConfig(name="pets")
    with pytest.raises(ValueError, match=r"unknown dataset 'pets'; choose one of \['voc', "):
        find_dataset("pets")


def test_a_named_data_set_brings_its_templates() -> None:
    for name in names_of("datasets"):
        expected = load_templates("single" if name == "voc" else "paper15")
        assert data_templates(DataConfig(name=name)) == expected


def test_another_split_of_a_named_data_set(tmp_path: Path) -> None:
    write_voc(tmp_path, {"val": ["d"]}, [1])
    dataset = build_dataset(DataConfig(name="voc", root=str(tmp_path), unseen="cat, dog"), "val")
    assert dataset.vocabulary.unseen == ("cat", "dog")


def test_a_dataset_may_have_templates_of_its_own() -> None:
    spec = find_dataset("ade20k")
    assert spec.prompt_templates == "paper15"
    assert dataclasses.replace(spec, templates="single").prompt_templates == "single"
