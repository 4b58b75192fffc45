"""From miniature downloads in the original formats to the folders, whatever stops it on the way."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import raw_data
from cascade_clip.cli.main import main
from cascade_clip.data.layouts import find_dataset, list_recipes
from cascade_clip.data.prepare import archives, preparation
from cascade_clip.data.prepare.archives import list_members
from cascade_clip.data.prepare.masks import CONTEXT_IDS, context_mask, sbd_mask, train_id_mask
from cascade_clip.data.prepare.preparation import (
    MARKER,
    check_download,
    find_source,
    prepare_dataset,
)
from cascade_clip.data.prepare.recipes import Recipe
from cascade_clip.vocabulary import load_vocabulary
from paths import TESTS

VOC = "VOCdevkit/VOC2012"
CONTEXT = "VOCdevkit/VOC2010"


RECIPES = list_recipes()


def run(
    name: str, raw: Path, out: Path, workers: int = 1, recipe: Recipe | None = None
) -> dict[str, int]:
    recipe = recipe or raw_data.SMALL[name]
    sources = [find_source(choices, raw) for choices in recipe.needs]
    out.mkdir(exist_ok=True)
    return prepare_dataset(
        recipe,
        [source for source in sources if source],
        out,
        workers=workers,
        step=lambda done, total: None,
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def words(path: Path) -> list[str]:
    return path.read_text().splitlines()


# The four data sets
# -------------------------------------------------------------------------------------------------


def test_voc(tmp_path: Path) -> None:
    raw_data.write_voc(tmp_path)
    found = run("voc", tmp_path, tmp_path / "out")
    out = tmp_path / "out" / VOC
    lists = out / "ImageSets/Segmentation"
    assert sorted(path.name for path in out.iterdir()) == [
        MARKER,
        "ImageSets",
        "JPEGImages",
        "SegmentationClass",
        "SegmentationClassAug",
    ]
    assert words(lists / "train.txt") == list(raw_data.VOC_TRAIN)  # as it came, in its own order
    assert words(lists / "val.txt") == list(raw_data.VOC_VAL)
    # without 2008_000008 (train), 2008_000034 (val)
    assert words(lists / "aug.txt") == ["2008_000002", "2008_000050", "2010_000003"]
    assert words(lists / "trainaug.txt") == [
        "2007_000032",
        "2007_000039",
        "2008_000002",
        "2008_000008",
        "2008_000050",
        "2010_000003",
    ]
    assert (lists / "aug.txt").read_bytes().endswith(b"2010_000003\n")
    assert list(found.values()) == [3, 2, 3, 6]
    for number, stem in enumerate(raw_data.SBD):
        mask = out / f"SegmentationClassAug/{stem}.png"
        assert np.array_equal(pixels(mask), raw_data.sbd_labels(number))
        with Image.open(mask) as image:
            assert (image.mode, image.info) == ("L", {})
    assert len(list((out / "JPEGImages").iterdir())) == 9
    # copies are bytes of the original
    with tarfile.open(tmp_path / "VOCtrainval_11-May-2012.tar") as archive:
        for path in (*(out / "JPEGImages").iterdir(), *(out / "SegmentationClass").iterdir()):
            original = archive.extractfile(f"{VOC}/{path.parent.name}/{path.name}")
            assert original is not None
            assert original.read() == path.read_bytes()


def test_coco_stuff(tmp_path: Path) -> None:
    raw_data.write_coco(tmp_path)
    found = run("coco-stuff", tmp_path, tmp_path / "out")
    out = tmp_path / "out/coco_stuff164k"
    assert list(found.values()) == [3, 1]
    assert [path.name for path in sorted((out / "images/train2017").iterdir())] == [
        f"{stem}.jpg" for stem in raw_data.COCO_TRAIN
    ]
    assert len(list((out / "annotations/train2017").iterdir())) == 6
    raw, ids = (
        pixels(out / f"annotations/val2017/000000000139{ending}.png")
        for ending in ("", "_labelTrainIds")
    )
    assert np.array_equal(raw, raw_data.coco_labels(9))  # kept
    # rank among the values in use; 11, 25, 28, ... never occur
    expected = {0: 0, 10: 10, 12: 11, 26: 24, 91: 80, 181: 170, 255: 255}
    assert {(int(a), int(b)) for a, b in zip(raw.ravel(), ids.ravel(), strict=True)} == set(
        expected.items()
    )


def context_expected(number: int) -> np.ndarray:
    labels = raw_data.context_labels(number)
    expected = np.zeros(labels.shape, dtype=np.uint8)
    # aeroplane, person, wood; accordion (1) and 459 are none of the 59
    for raw, value in {2: 1, 284: 37, 458: 59}.items():
        expected[labels == raw] = value
    return expected


@pytest.mark.parametrize("write", [raw_data.write_context_matlab, raw_data.write_context_json])
def test_context_from_either_source(write: Callable[[Path], None], tmp_path: Path) -> None:
    raw_data.write_voc2010(tmp_path)
    write(tmp_path)
    found = run("context", tmp_path, tmp_path / "out")
    out = tmp_path / "out" / CONTEXT
    assert list(found.values()) == [2, 1]
    assert words(out / "ImageSets/SegmentationContext/train.txt") == sorted(raw_data.CONTEXT_TRAIN)
    assert words(out / "ImageSets/SegmentationContext/val.txt") == list(raw_data.CONTEXT_VAL)
    assert len(list((out / "JPEGImages").iterdir())) == 4
    for number, stem in enumerate((*raw_data.CONTEXT_TRAIN, *raw_data.CONTEXT_VAL)):
        assert np.array_equal(
            pixels(out / f"SegmentationClassContext/{stem}.png"), context_expected(number)
        )
    assert not (out / "SegmentationClassContext/2010_009999.png").exists()  # phase test


def test_a_later_region_lies_over_an_earlier_one(tmp_path: Path) -> None:
    raw_data.write_voc2010(tmp_path)
    raw_data.write_context_json(tmp_path)
    content = json.loads((tmp_path / "trainval_merged.json").read_text())
    first = content["images"][0]
    everything = {
        "size": [first["height"], first["width"]],
        "counts": [0, first["height"] * first["width"]],
    }
    content["annos_segmentation"].append(
        {"image_id": first["image_id"], "category_id": 427, "segmentation": everything}
    )
    (tmp_path / "trainval_merged.json").write_text(json.dumps(content))
    run("context", tmp_path, tmp_path / "out")
    mask = pixels(
        tmp_path
        / "out"
        / CONTEXT
        / "SegmentationClassContext"
        / first["file_name"].replace("jpg", "png")
    )
    names = load_vocabulary("context").names
    assert np.unique(mask).tolist() == [names.index("tvmonitor") + 1]


def test_ade20k(tmp_path: Path) -> None:
    raw_data.write_ade(tmp_path)
    assert list(run("ade20k", tmp_path, tmp_path / "out").values()) == [2, 1]
    out = tmp_path / "out/ade/ADEChallengeData2016"
    assert np.unique(pixels(out / "annotations/training/ADE_train_00000002.png")).tolist() == [149]
    assert sorted(path.name for path in out.iterdir()) == [MARKER, "annotations", "images"]


@pytest.mark.parametrize(
    ("name", "write", "train", "val"),
    [
        ("voc", raw_data.write_voc, 6, 2),
        ("coco-stuff", raw_data.write_coco, 3, 1),
        ("ade20k", raw_data.write_ade, 2, 1),
    ],
)
def test_the_reader_finds_what_was_written(
    name: str, write: Callable[[Path], None], train: int, val: int, tmp_path: Path
) -> None:
    write(tmp_path)
    run(name, tmp_path, tmp_path / "out")
    spec = find_dataset(name)
    assert len(spec.find_pairs(tmp_path / "out", "train")) == train
    pairs = spec.find_pairs(tmp_path / "out", "val")
    assert len(pairs) == val
    vocabulary = spec.load_classes(pairs)
    assert vocabulary.unknown_values(np.unique(pixels(pairs[0][1])).tolist()) == []


def test_numbers_agree_with_the_class_lists() -> None:
    assert len(CONTEXT_IDS) == 59
    assert list(CONTEXT_IDS) == sorted(set(CONTEXT_IDS))
    names = load_vocabulary("context").names
    known = {
        "aeroplane": 2,
        "bag": 9,
        "bedclothes": 19,
        "cat": 65,
        "dog": 113,
        "person": 284,
        "sky": 360,
        "tvmonitor": 427,
        "wood": 458,
    }
    assert {name: CONTEXT_IDS[names.index(name)] for name in known} == known
    for recipe in RECIPES.values():
        assert all(
            rule.count > 0
            for choices in recipe.needs
            for download in choices
            for rule in download.rules
        )
    assert [check.count for check in RECIPES["voc"].checks] == [1464, 1449, 9118, 10582]
    assert [check.count for check in RECIPES["coco-stuff"].checks] == [118287, 5000]
    assert [check.count for check in RECIPES["context"].checks] == [4998, 5105]
    assert [check.count for check in RECIPES["ade20k"].checks] == [20210, 2000]


# Downloads that are already unpacked
# --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["voc", "coco-stuff", "context", "ade20k"])
def test_unpacked_folders_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    writers = {
        "voc": raw_data.write_voc,
        "coco-stuff": raw_data.write_coco,
        "context": raw_data.write_voc2010,
        "ade20k": raw_data.write_ade,
    }
    writers[name](raw)
    if name == "context":
        raw_data.write_context_matlab(raw)
    run(name, raw, tmp_path / "packed")
    folder = tmp_path / "folder"
    for archive in raw.iterdir():
        shutil.unpack_archive(
            archive, folder / archive.stem if archive.stem.startswith("stuffthing") else folder
        )
    run(name, folder, tmp_path / "unpacked")
    packed, unpacked = files_of(tmp_path / "packed"), files_of(tmp_path / "unpacked")
    marker = f"{raw_data.SMALL[name].folder}/{MARKER}"  # which downloads it were differs
    assert packed.pop(marker) != unpacked.pop(marker)
    assert packed == unpacked


@pytest.mark.parametrize(
    ("name", "write", "base", "added"),
    [
        ("voc", raw_data.write_voc, ".", 7),
        ("coco-stuff", raw_data.write_coco, "coco_stuff164k", 4),
        ("ade20k", raw_data.write_ade, "ade", 0),
    ],
)
def test_folders_of_mmsegmentation_are_completed_in_place(
    name: str, write: Callable[[Path], None], base: str, added: int, tmp_path: Path
) -> None:
    """What lies there is not touched, not even copied onto itself; masks and lists that are missing
    are added; twice is as good as once."""
    write(tmp_path / "raw")
    folder = tmp_path / "data"
    for archive in (tmp_path / "raw").iterdir():
        below = {"stuff": "annotations", "train": "images", "val20": "images"}.get(
            archive.name[:5], "."
        )
        shutil.unpack_archive(archive, folder / base / below)
    before = {path: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}
    for _ in range(2):
        run(name, folder, folder)
        (folder / raw_data.SMALL[name].folder / MARKER).unlink()
        after = {path: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}
        assert before.items() <= after.items()
        assert len(after) == len(before) + added


def test_the_json_may_lie_where_mmsegmentation_has_it(tmp_path: Path) -> None:
    write_context(tmp_path)
    places = tmp_path / CONTEXT
    places.mkdir(parents=True)
    os.replace(tmp_path / "trainval_merged.json", places / "trainval_merged.json")
    found = find_source(raw_data.SMALL["context"].needs[1], tmp_path)
    assert found is not None
    assert found.path == places / "trainval_merged.json"


def test_coco_annotations_of_another_kind_are_no_stuff_maps(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train2017.json").write_text("{}")
    assert find_source(raw_data.SMALL["coco-stuff"].needs[2], tmp_path) is None


# Killed and started again


def write_context(raw: Path) -> None:
    raw_data.write_voc2010(raw)
    raw_data.write_context_json(raw)


def run_killed(name: str, raw: Path, out: Path, after: int) -> int:
    """Run a preparation in a process that kills itself halfway through its n-th write or move, 0:
    never; returns how many there were, or -9."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0

    def step(path: Path, content: bytes) -> None:
        nonlocal count
        count += 1
        if count == after:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    write, replace = preparation._write, os.replace
    preparation._write = lambda path, content: (step(path, content), write(path, content))[1]
    os.replace = lambda old, new: (step(old, old.read_bytes()), replace(old, new))[1]
    try:
        run(name, raw, out)
    finally:
        os._exit(count)


@pytest.mark.parametrize(
    ("name", "write"),
    [("voc", raw_data.write_voc), ("context", write_context), ("coco-stuff", raw_data.write_coco)],
)
def test_killed_and_started_again_gives_the_same_bytes(
    name: str, write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(tmp_path / "raw")
    steps = run_killed(name, tmp_path / "raw", tmp_path / "whole", after=0)
    whole = files_of(tmp_path / "whole")
    assert steps == 2 * len(whole) - 1  # all are written and moved; the marker, written last, once
    # while writing (3), while moving (3), and before the marker
    numbers = np.random.default_rng(0).permutation(np.arange(1, steps))
    writing, moving = numbers[numbers < len(whole)][:3], numbers[numbers > len(whole)][:3]
    for after in (*writing.tolist(), *moving.tolist(), steps):
        out = tmp_path / f"out{after}"
        assert run_killed(name, tmp_path / "raw", out, after) == -signal.SIGKILL
        left = files_of(out)
        published = {path for path in left if "/.preparing-" not in f"/{path}"}
        assert published < whole.keys() and (len(published) > 0) == (after > len(whole))
        assert not any(path.endswith(MARKER) for path in published)
        assert len(published) < len(left)  # one was half there
        run(name, tmp_path / "raw", out)
        assert files_of(out) == whole
        assert not [path for path in out.rglob(".preparing-*")]


SCRIPT = """
import dataclasses, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import raw_data
from cascade_clip.data.prepare import find_source, prepare_dataset

if __name__ == "__main__":
    recipe = dataclasses.replace(raw_data.SMALL["voc"], checks=())
    sources = [find_source(choices, Path(sys.argv[1])) for choices in recipe.needs]
    prepare_dataset(recipe, sources, Path(sys.argv[2]), workers=2, step=lambda done, total: None)
"""


def test_killed_while_workers_convert(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw_data.write_voc(raw)
    stems = [*raw_data.SBD, *(f"2009_{number:06}" for number in range(2, 150))]
    mask = raw_data.sbd_file(0, (150, 200))
    with tarfile.open(raw / "benchmark.tgz", "w:gz", compresslevel=1) as archive:
        for stem in stems:
            raw_data.add(archive, f"benchmark_RELEASE/dataset/cls/{stem}.mat", mask)
    recipe = dataclasses.replace(raw_data.SMALL["voc"], checks=())
    run("voc", raw, tmp_path / "whole", recipe=recipe)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(TESTS)))
    process = subprocess.Popen(
        [sys.executable, str(script), str(raw), str(out)], stdout=subprocess.PIPE
    )
    masks = out / "VOCdevkit/.preparing-VOC2012/SegmentationClassAug"
    while process.poll() is None and not (masks.is_dir() and len(os.listdir(masks)) >= 10):
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=30)  # ends when the workers have ended too
    assert 10 <= len(os.listdir(masks)) < len(stems)
    assert not (out / VOC).exists()
    run("voc", raw, out, workers=2, recipe=recipe)
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_finished_dataset_is_only_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw_data.write_voc(tmp_path)
    found = run("voc", tmp_path, tmp_path / "out")
    monkeypatch.setattr(preparation, "_write", None)  # nothing is written
    assert run("voc", tmp_path, tmp_path / "out") == found
    (tmp_path / "out" / VOC / "SegmentationClassAug/2008_000050.png").unlink()
    with pytest.raises(ValueError, match=r"1 masks of .*are not in .*2008_000050"):
        run("voc", tmp_path, tmp_path / "out")


def test_files_of_others_are_written_anew(tmp_path: Path) -> None:
    """A folder without a marker may hold anything."""
    raw_data.write_voc(tmp_path)
    run("voc", tmp_path, tmp_path / "whole")
    strange = tmp_path / "out" / VOC / "SegmentationClassAug/2008_000050.png"
    strange.parent.mkdir(parents=True)
    strange.write_bytes(b"half a file")
    run("voc", tmp_path, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_two_sources_are_not_mixed(tmp_path: Path) -> None:
    raw_data.write_voc2010(tmp_path)
    raw_data.write_context_matlab(tmp_path)
    run("context", tmp_path, tmp_path / "out")
    raw_data.write_context_json(tmp_path)
    with pytest.raises(
        ValueError, match=r"made from other downloads.*trainval\.tar\.gz.*delete .*prepared\.json"
    ):
        run("context", tmp_path, tmp_path / "out")


def test_workers_give_the_same_bytes_and_name_the_file_at_fault(tmp_path: Path) -> None:
    raw_data.write_coco(tmp_path)
    run("coco-stuff", tmp_path, tmp_path / "one")
    run("coco-stuff", tmp_path, tmp_path / "two", workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    maps = {
        f"train2017/{stem}.png": raw_data.grey_png(np.full((4, 4), 11))
        for stem in raw_data.COCO_TRAIN
    }
    raw_data.write_zip(tmp_path / "stuffthingmaps_trainval2017.zip", maps)
    with pytest.raises(
        ValueError,
        match=r"stuffthingmaps_trainval2017\.zip: train2017/000000000009\.png: mask values \[11\]",
    ):
        run("coco-stuff", tmp_path, tmp_path / "three", workers=2)
    with pytest.raises(ValueError, match="workers must be at least 1"):
        run("coco-stuff", tmp_path, tmp_path / "four", workers=0)


# Missing, damaged, hostile
# ------------------------------------------------------------------------------------------


def without(archive: Path, name: str) -> None:
    """Leave one file out of a tar archive."""
    with (
        tarfile.open(archive) as old,
        tarfile.open(
            archive.with_suffix(".new"), "w:gz" if archive.suffix == ".tgz" else "w"
        ) as new,
    ):
        for info in old:
            if info.name != name:
                new.addfile(info, old.extractfile(info) if info.isreg() else None)
    os.replace(archive.with_suffix(".new"), archive)


def test_too_few_files(tmp_path: Path) -> None:
    raw_data.write_voc(tmp_path)
    without(tmp_path / "benchmark.tgz", "benchmark_RELEASE/dataset/cls/2008_000050.mat")
    with pytest.raises(
        ValueError,
        match=(
            r"benchmark\.tgz holds 4 files dataset/cls/\*\.mat and should hold 5: .*download it"
            r" again from https://www2"
        ),
    ):
        run("voc", tmp_path, tmp_path / "out")


def test_lists_must_have_their_exact_length(tmp_path: Path) -> None:
    raw_data.write_voc(tmp_path)
    recipe = raw_data.SMALL["voc"]
    checks = tuple(dataclasses.replace(check, count=2) for check in recipe.checks)
    with pytest.raises(ValueError, match=r"train\.txt has 3 images and must have 2"):
        run("voc", tmp_path, tmp_path / "out", recipe=dataclasses.replace(recipe, checks=checks))
    assert not files_of(tmp_path / "out")  # nothing is published before it has been checked


def test_a_listed_image_or_mask_is_missing(tmp_path: Path) -> None:
    raw_data.write_voc(tmp_path)
    run("voc", tmp_path, tmp_path / "out")
    folder, checks = tmp_path / "out" / VOC, raw_data.SMALL["voc"].checks
    output = preparation._Output(folder, tmp_path / "nowhere")
    (folder / "SegmentationClass/2007_000033.png").unlink()
    with pytest.raises(
        ValueError, match=r"1 masks of .*val\.txt are not in .*SegmentationClass: 2007_000033"
    ):
        preparation.check_pairs(output, checks[1])
    (folder / "JPEGImages/2007_000039.jpg").unlink()
    with pytest.raises(
        ValueError, match=r"1 images of .*train\.txt are not in .*JPEGImages: 2007_000039"
    ):
        preparation.check_pairs(output, checks[0])


def test_coco_image_without_mask(tmp_path: Path) -> None:
    raw_data.write_coco(tmp_path)
    extra = {f"val2017/{stem}.jpg": raw_data.jpeg(1) for stem in ("000000000139", "000000000285")}
    raw_data.write_zip(tmp_path / "val2017.zip", extra)
    with pytest.raises(
        ValueError,
        match=r"1 masks of .*images/val2017 are not in .*annotations/val2017: 000000000285",
    ):
        run("coco-stuff", tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", ["VOCtrainval_11-May-2012.tar", "benchmark.tgz"])
def test_a_cut_off_archive(name: str, tmp_path: Path) -> None:
    raw_data.write_voc(tmp_path)
    archive = tmp_path / name
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"{name} cannot be read to its end.*download it again"):
        run("voc", tmp_path, tmp_path / "out")
    assert not files_of(tmp_path / "out")


def test_damaged_zip_members_are_refused(tmp_path: Path) -> None:
    raw_data.write_ade(tmp_path)
    archive = tmp_path / "ADEChallengeData2016.zip"
    content = archive.read_bytes()
    place = content.index(raw_data.jpeg(0)) + 200
    archive.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
    with pytest.raises(ValueError, match=r"cannot be read to its end.*Bad CRC"):
        run("ade20k", tmp_path, tmp_path / "out")
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot be read to its end"):
        run("ade20k", tmp_path, tmp_path / "out2")


@pytest.mark.parametrize(
    "name",
    [
        "../JPEGImages/evil.jpg",
        "a/../../JPEGImages/evil.jpg",
        "/tmp/JPEGImages/evil.jpg",
        "C:/JPEGImages/evil.jpg",
    ],
)
def test_unsafe_names_are_refused(name: str, tmp_path: Path) -> None:
    raw_data.write_voc(tmp_path)
    with tarfile.open(tmp_path / "VOCtrainval_11-May-2012.tar", "w") as archive:
        raw_data.add(archive, name, b"evil")
    with pytest.raises(ValueError, match="is an unsafe name"):
        run("voc", tmp_path, tmp_path / "out")
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    raw_data.write_voc(tmp_path)
    with tarfile.open(tmp_path / "VOCtrainval_11-May-2012.tar", "w") as archive:
        info = tarfile.TarInfo(f"{VOC}/JPEGImages/evil.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(ValueError, match="is a link or a device"):
        run("voc", tmp_path, tmp_path / "out")


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("x.jpg")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    (member,) = list_members(tmp_path / "a.zip")
    with pytest.raises(ValueError, match="is a link or a device"):
        member.read()


def test_members_that_are_too_large_or_lie_about_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/a.jpg").write_bytes(b"12345")
    (member,) = list_members(tmp_path / "x")
    assert member.read() == b"12345"
    with pytest.raises(ValueError, match="has 5 bytes and declares 4"):
        member._replace(size=4).read()
    monkeypatch.setattr(archives, "LARGEST_MEMBER", 4)
    with pytest.raises(ValueError, match="declares 5 bytes; nothing in these datasets is so large"):
        member.read()


def test_the_first_of_two_members_of_one_name_counts(tmp_path: Path) -> None:
    raw_data.write_ade(tmp_path)
    with zipfile.ZipFile(tmp_path / "ADEChallengeData2016.zip", "a") as archive:
        archive.writestr(
            "copy/ADEChallengeData2016/images/training/ADE_train_00000001.jpg", b"another"
        )
    run("ade20k", tmp_path, tmp_path / "out")
    assert (
        tmp_path / "out/ade/ADEChallengeData2016/images/training/ADE_train_00000001.jpg"
    ).read_bytes() == raw_data.jpeg(0)


def test_a_file_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    raw_data.write_voc(tmp_path)
    with tarfile.open(tmp_path / "benchmark.tgz", "w:gz") as archive:
        for number, stem in enumerate((*raw_data.SBD[:4], raw_data.SBD[0])):
            raw_data.add(
                archive, f"benchmark_RELEASE/dataset/cls/{stem}.mat", raw_data.sbd_file(number)
            )
    with pytest.raises(ValueError, match=r"holds 4 files dataset/cls/\*\.mat and should hold 5"):
        run("voc", tmp_path, tmp_path / "out")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw_data.write_voc(tmp_path)
    size = sum(
        (tmp_path / name).stat().st_size
        for name in ("VOCtrainval_11-May-2012.tar", "benchmark.tgz")
    )
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        preparation.shutil,
        "disk_usage",
        lambda folder: usage._replace(free=preparation.SPARE_SPACE + size - 1),
    )
    with pytest.raises(OSError, match=r"has 0\.1 GB free and needs 0\.1 GB"):
        run("voc", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / VOC).exists()
    monkeypatch.setattr(
        preparation.shutil,
        "disk_usage",
        lambda folder: usage._replace(free=preparation.SPARE_SPACE + size),
    )
    run("voc", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("convert", "content", "message"),
    [
        (sbd_mask, raw_data.matlab({"GTinst": 1}), r"no array GTcls\.Segmentation"),
        (
            sbd_mask,
            raw_data.matlab({"GTcls": {"Segmentation": np.full((2, 2), 21)}}),
            r"0\.\.20, got 21\.\.21",
        ),
        (
            sbd_mask,
            raw_data.matlab({"GTcls": {"Segmentation": np.full((2, 2), 0.5)}}),
            "whole numbers",
        ),
        (sbd_mask, b"", "not a readable MATLAB file"),
        (sbd_mask, b"not a mat file" * 100, "not a readable MATLAB file"),
        (sbd_mask, raw_data.sbd_file(0)[:-40], "not a readable MATLAB file"),
        (
            context_mask,
            raw_data.matlab({"LabelMap": np.full((2, 2), 460)}),
            r"0\.\.459, got 460\.\.460",
        ),
        (context_mask, raw_data.matlab({"Map": 1}), "no array LabelMap"),
        (train_id_mask, b"no png", "not a readable PNG"),
        (train_id_mask, raw_data.grey_png(np.zeros((9, 9)))[:-30], "not a readable PNG"),
        (train_id_mask, raw_data.jpeg(0), "not a readable PNG"),
        (train_id_mask, raw_data.grey_png(np.zeros((9, 9, 3))), "mode RGB"),
        (
            train_id_mask,
            raw_data.grey_png(np.array([[25, 90, 0, 182]])),
            r"mask values \[25, 90, 182\]",
        ),
    ],
)
def test_raw_files_that_are_not_what_they_should_be(
    convert: Callable[[bytes], bytes], content: bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convert(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("annos_segmentation"), "is not a PASCAL in Detail file"),
        (
            lambda content: content["annos_segmentation"][0].update(category_id=460),
            r"json: 2008_000008\.jpg: category 460",
        ),
        (
            lambda content: content["annos_segmentation"][0].update(
                segmentation={"size": [1, 1], "counts": "1"}
            ),
            r"region of shape \(1, 1\)",
        ),
        (
            lambda content: content["annos_segmentation"][0].update(
                segmentation={"size": [1, 1], "counts": ""}
            ),
            "damaged run-length",
        ),
        (lambda content: content["images"].pop(0), r"holds 2 files \*\.jpg and should hold 3"),
    ],
)
def test_damaged_detail_files(
    change: Callable[[dict], object], message: str, tmp_path: Path
) -> None:
    raw_data.write_voc2010(tmp_path)
    raw_data.write_context_json(tmp_path)
    content = json.loads((tmp_path / "trainval_merged.json").read_text())
    change(content)
    (tmp_path / "trainval_merged.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        run("context", tmp_path, tmp_path / "out")


# The command
# --------------------------------------------------------------------------------------------------


def test_the_command_says_what_is_needed_and_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw_data.write_voc(tmp_path)
    words = ["--raw", str(tmp_path), "--out", str(tmp_path / "new/out"), "--workers", "1"]
    with raw_data.use_small_recipes():
        assert main(["data", "prepare", "voc", *words]) == 0
    shown = capsys.readouterr().out
    assert "found VOCtrainval_11-May-2012.tar" in shown
    assert "about 1.4 GB" in shown
    assert "Flickr" in shown
    assert "6 images in VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt" in shown


def test_the_command_names_everything_that_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["data", "prepare", "context", "--raw", str(tmp_path), "--out", str(tmp_path / "out")])
        == 2
    )
    message = capsys.readouterr().err
    for file in ("VOCtrainval_03-May-2010.tar", "trainval_merged.json", "trainval.tar.gz"):
        (download,) = [
            download
            for choices in RECIPES["context"].needs
            for download in choices
            if download.file == file
        ]
        assert f"{file} ({download.url})" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cityscapes", "vox"):
        assert main(["data", "prepare", name, "--raw", "."]) == 2
        assert (
            f"no recipe for {name!r}; choose one of voc, coco-stuff, context, ade20k"
            in capsys.readouterr().err
        )


def test_sizes_and_hashes_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw_data.write_ade(tmp_path)
    words = ["data", "prepare", "ade20k", "--raw", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*words, "--workers", "1"]) == 2
    assert "should have 7328b3957e407ddae1d3cbf487f149ef" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--workers", "1", "--no-verify"]) == 2  # goes on to the counts
    assert "and should hold 20,210" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "digest", "message"),
    [
        (3, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", None),
        (3, "md5:900150983cd24fb0d6963f7d28e17f72", None),
        (0, "", None),
        (4, "", "has 3 bytes and should have 4"),
        (3, "md5:900150983cd24fb0d6963f7d28e17f73", "has the md5 900150983cd24fb0d6963f7d28e17f72"),
    ],
)
def test_published_hashes(size: int, digest: str, message: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"abc")
    download = dataclasses.replace(RECIPES["ade20k"].needs[0][0], size=size, digest=digest)
    source = preparation.Source(download, tmp_path / "a.zip")
    seen: list[tuple[int, int]] = []
    if message is None:
        check_download(source, lambda done, total: seen.append((done, total)))
        assert len(seen) == bool(digest)
    else:
        with pytest.raises(ValueError, match=message):
            check_download(source, lambda done, total: None)


def test_masks_are_the_same_bytes_every_time() -> None:
    png = sbd_mask(raw_data.sbd_file(0))
    assert png == sbd_mask(raw_data.sbd_file(0))
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (17, 13)
