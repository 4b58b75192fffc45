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
from cascade_clip.data.folder import MASK_ENDING
from cascade_clip.data.layouts import layout_vocabulary, list_layout
from cascade_clip.data.prepare import archives, preparation, recipes
from cascade_clip.data.prepare.archives import list_members
from cascade_clip.data.prepare.masks import (
    CONTEXT_IDS,
    TRAIN_IDS_ENDING,
    context_mask,
    sbd_mask,
    train_id_mask,
)
from cascade_clip.data.prepare.preparation import check_download, find_source, prepare_dataset
from cascade_clip.data.prepare.recipes import RECIPES, Recipe
from cascade_clip.vocabulary import load_vocabulary
from paths import TESTS

VOC = "VOCdevkit/VOC2012"
CONTEXT = "VOCdevkit/VOC2010"


@pytest.fixture(autouse=True)
def small_recipes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recipe]:
    recipes = raw_data.small_recipes()
    monkeypatch.setattr(recipes, "RECIPES", recipes)
    return recipes


def run(
    name: str, raw: Path, out: Path, workers: int = 1, recipe: Recipe | None = None
) -> dict[str, int]:
    recipe = recipe or recipes.RECIPES[name]
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
    assert sorted(path.name for path in out.iterdir()) == ["annotations", "images"]


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
    assert len(list_layout(name, tmp_path / "out", "train")) == train
    pairs = list_layout(name, tmp_path / "out", "val")
    assert len(pairs) == val
    vocabulary = layout_vocabulary(name, pairs)
    assert vocabulary.unknown_values(np.unique(pixels(pairs[0][1])).tolist()) == []


def test_numbers_agree_with_the_class_lists() -> None:
    assert TRAIN_IDS_ENDING == MASK_ENDING
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
    assert {k: v for k, v in packed.items() if ".prepare" not in k} == {
        k: v for k, v in unpacked.items() if ".prepare" not in k
    }


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
        shutil.rmtree(folder / ".prepare")
        after = {path: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}
        assert before.items() <= after.items()
        assert len(after) == len(before) + added


def test_the_json_may_lie_where_mmsegmentation_has_it(tmp_path: Path) -> None:
    write_context(tmp_path)
    places = tmp_path / CONTEXT
    places.mkdir(parents=True)
    os.replace(tmp_path / "trainval_merged.json", places / "trainval_merged.json")
    found = find_source(recipes.RECIPES["context"].needs[1], tmp_path)
    assert found is not None
    assert found.path == places / "trainval_merged.json"


def test_coco_annotations_of_another_kind_are_no_stuff_maps(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train2017.json").write_text("{}")
    assert find_source(recipes.RECIPES["coco-stuff"].needs[2], tmp_path) is None


# Stopping and going on
# ----------------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import raw_data
from cascade_clip.data.prepare import archives, preparation

def main(raw, out, workers, name, after):
    replace, left = os.replace, [int(after)]
    def kill(*words):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*words)
    os.replace = kill
    recipe = raw_data.small_recipes()[name]
    sources = [preparation.find_source(choices, Path(raw)) for choices in recipe.needs]
    Path(out).mkdir(exist_ok=True)
    preparation.prepare_dataset(recipe, sources, Path(out), workers=int(workers), step=lambda done,
    total: None)

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


def start(tmp_path: Path, *words: object) -> int:
    """Run a preparation in a process of its own; it must not leave workers behind, which would keep
    its output open."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(TESTS)))
    return subprocess.run(
        [sys.executable, str(script), *map(str, words)], capture_output=True, timeout=60
    ).returncode


def write_context(raw: Path) -> None:
    raw_data.write_voc2010(raw)
    raw_data.write_context_json(raw)


@pytest.mark.parametrize(
    ("name", "write", "workers", "after"),
    [
        ("voc", raw_data.write_voc, 1, 3),  # while it copies
        ("voc", raw_data.write_voc, 1, 19),  # while it converts
        ("context", write_context, 1, 10),
        ("coco-stuff", raw_data.write_coco, 2, 8),  # two conversions are with the workers
    ],
)
def test_killed_and_started_again_gives_the_same_bytes(
    name: str, write: Callable[[Path], None], workers: int, after: int, tmp_path: Path
) -> None:
    write(tmp_path / "raw")
    run(name, tmp_path / "raw", tmp_path / "whole")
    whole, out = files_of(tmp_path / "whole"), tmp_path / "out"
    assert start(tmp_path, tmp_path / "raw", out, workers, name, after) == -signal.SIGKILL
    partial = files_of(out)
    written = {
        path: content for path, content in partial.items() if not path.startswith(".prepare")
    }
    assert 0 < len(written) < len(whole) - 1
    assert written.items() <= whole.items()  # whatever has its name is whole
    assert any("-parts/" in path for path in partial)  # it was killed while one was half there
    run(name, tmp_path / "raw", out, workers=workers)
    assert files_of(out) == whole


def test_killed_while_workers_convert(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw_data.write_voc(raw)
    stems = [*raw_data.SBD, *(f"2009_{number:06}" for number in range(2, 150))]
    with tarfile.open(raw / "benchmark.tgz", "w:gz", compresslevel=1) as archive:
        for number, stem in enumerate(stems):
            raw_data.add(
                archive,
                f"benchmark_RELEASE/dataset/cls/{stem}.mat",
                raw_data.sbd_file(number, (150, 200)),
            )
    recipe = dataclasses.replace(recipes.RECIPES["voc"], checks=())
    run("voc", raw, tmp_path / "whole", recipe=recipe)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(TESTS)))
    process = subprocess.Popen(
        [sys.executable, str(script), str(raw), str(out), "2", "voc", "0"], stdout=subprocess.PIPE
    )
    masks = out / VOC / "SegmentationClassAug"
    while process.poll() is None and not (masks.is_dir() and len(os.listdir(masks)) >= 10):
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=30)  # ends when the workers have ended too
    assert 10 <= len(os.listdir(masks)) < len(stems)
    run("voc", raw, out, workers=2, recipe=recipe)
    assert files_of(out) == files_of(tmp_path / "whole")


def test_what_is_written_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw_data.write_voc(tmp_path)
    run("voc", tmp_path, tmp_path / "out")
    whole = files_of(tmp_path / "out")
    (tmp_path / "out" / VOC / "SegmentationClassAug/2008_000050.png").unlink()
    (tmp_path / "out" / VOC / "JPEGImages/2007_000032.jpg").write_bytes(b"")
    written: list[str] = []
    write = archives.write_file
    monkeypatch.setattr(
        preparation,
        "write_file",
        lambda path, content, parts: (written.append(path.name), write(path, content, parts))[1],
    )
    run("voc", tmp_path, tmp_path / "out")
    journal = "voc.txt"
    assert written == [
        journal,
        "2007_000032.jpg",
        "2008_000050.png",
        "aug.txt",
        "trainaug.txt",
        journal,
    ]
    assert files_of(tmp_path / "out") == whole


def test_files_of_others_are_written_anew(tmp_path: Path) -> None:
    """A folder that was not begun by this command may hold anything; only the journal's files are
    trusted."""
    raw_data.write_voc(tmp_path)
    run("voc", tmp_path, tmp_path / "whole")
    strange = tmp_path / "out" / VOC / "SegmentationClassAug/2008_000050.png"
    strange.parent.mkdir(parents=True)
    strange.write_bytes(b"half a file")
    run("voc", tmp_path, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_line_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    raw_data.write_voc(tmp_path)
    run("voc", tmp_path, tmp_path / "out")
    whole = files_of(tmp_path / "out")
    journal = tmp_path / "out/.prepare/voc.txt"
    journal.write_text(journal.read_text() + f"{VOC}/JPEGImages/2007_0000")
    run("voc", tmp_path, tmp_path / "out")
    assert files_of(tmp_path / "out") == whole


def test_two_sources_are_not_mixed(tmp_path: Path) -> None:
    raw_data.write_voc2010(tmp_path)
    raw_data.write_context_matlab(tmp_path)
    run("context", tmp_path, tmp_path / "out")
    raw_data.write_context_json(tmp_path)
    with pytest.raises(
        ValueError, match=r"begun from other downloads.*trainval\.tar\.gz.*delete .*context\.txt"
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


def test_lists_must_have_their_exact_length(
    tmp_path: Path, small_recipes: dict[str, Recipe]
) -> None:
    raw_data.write_voc(tmp_path)
    checks = tuple(dataclasses.replace(check, count=2) for check in small_recipes["voc"].checks)
    with pytest.raises(ValueError, match=r"train\.txt has 3 images and must have 2"):
        run(
            "voc",
            tmp_path,
            tmp_path / "out",
            recipe=dataclasses.replace(small_recipes["voc"], checks=checks),
        )


def test_a_listed_image_or_mask_is_missing(tmp_path: Path) -> None:
    raw_data.write_voc(tmp_path)
    run("voc", tmp_path, tmp_path / "out")
    out, checks = tmp_path / "out", recipes.RECIPES["voc"].checks
    (out / VOC / "SegmentationClass/2007_000033.png").unlink()
    with pytest.raises(
        ValueError, match=r"1 masks of .*val\.txt are not in .*SegmentationClass: 2007_000033"
    ):
        preparation.check_pairs(out, checks[1])
    (out / VOC / "JPEGImages/2007_000039.jpg").unlink()
    with pytest.raises(
        ValueError, match=r"1 images of .*train\.txt are not in .*JPEGImages: 2007_000039"
    ):
        preparation.check_pairs(out, checks[0])


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
    assert not list((tmp_path / "out/.prepare/voc-parts").iterdir())


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
    with pytest.raises(
        ValueError, match="declares 5 bytes; nothing in these data sets is so large"
    ):
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
        archives.shutil,
        "disk_usage",
        lambda folder: usage._replace(free=archives.SPARE_SPACE + size - 1),
    )
    with pytest.raises(OSError, match=r"has 0\.1 GB free and needs 0\.1 GB"):
        run("voc", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / VOC).exists()
    monkeypatch.setattr(
        archives.shutil,
        "disk_usage",
        lambda folder: usage._replace(free=archives.SPARE_SPACE + size),
    )
    run("voc", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("convert", "content", "message"),
    [
        (sbd_mask, raw_data.matlab({"GTinst": 1}), "no field GTcls.Segmentation"),
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
        (lambda content: content.pop("annos_segmentation"), "is no PASCAL in Detail file"),
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
    assert (
        main(
            [
                "data",
                "prepare",
                "voc",
                "--raw",
                str(tmp_path),
                "--out",
                str(tmp_path / "new/out"),
                "--workers",
                "1",
            ]
        )
        == 0
    )
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


def test_sizes_and_hashes_are_compared(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_recipes: dict[str, Recipe],
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw_data.write_ade(tmp_path)
    words = [
        "data",
        "prepare",
        "ade20k",
        "--raw",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "1",
    ]
    monkeypatch.setattr(
        recipes,
        "RECIPES",
        {"ade20k": dataclasses.replace(small_recipes["ade20k"], needs=RECIPES["ade20k"].needs)},
    )
    assert main(words) == 2
    assert "should have 7328b3957e407ddae1d3cbf487f149ef" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--no-verify"]) == 2  # goes on to the counts
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
