"""Hashes say whether two figures rest on the same weights and the same images."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascade_clip.checkpoints.checkpoint import find_checkpoint
from cascade_clip.data.registry import SandboxScenes
from cascade_clip.data.samples import LabelledFiles, SegmentationFolder
from cascade_clip.evaluation.fingerprints import hash_checkpoint, hash_dataset
from cascade_clip.vocabulary import parse_classes

VOCABULARY = parse_classes("cat, grass")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind in ("images", "masks"):
        for name in ("a/1", "b/2"):
            path = tmp_path / "data" / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((4, 5), dtype=np.uint8)).save(path)
    return tmp_path / "data"


def read(folder: Path) -> SegmentationFolder:
    return SegmentationFolder(folder / "images", folder / "masks", VOCABULARY)


def test_a_checkpoint_hash_is_that_of_its_weight_file(tiny_folder: Path) -> None:
    # a folder, a run folder, a packaged model
    for source in (tiny_folder, tiny_folder.parent, "mini"):
        weights = (find_checkpoint(source) / "model.safetensors").read_bytes()
        assert hash_checkpoint(source) == hashlib.sha256(weights).hexdigest()
    assert hash_checkpoint("mini") != hash_checkpoint("mini-last")


def test_a_copy_elsewhere_has_the_same_hash(folder: Path, tmp_path: Path) -> None:
    first = hash_dataset(read(folder))
    assert len(first) == 64
    shutil.copytree(folder, tmp_path / "copy")
    assert hash_dataset(read(tmp_path / "copy")) == first
    reversed_order = LabelledFiles(read(folder).pairs[::-1], VOCABULARY)
    assert hash_dataset(reversed_order) == first


def test_every_change_of_the_files_or_classes_changes_the_hash(folder: Path) -> None:
    dataset = read(folder)
    found = {hash_dataset(dataset)}
    for classes in ("grass, cat", "cat, grass, tree"):
        found.add(hash_dataset(LabelledFiles(dataset.pairs, parse_classes(classes))))
    red_and_blue = ((255, 0, 0), 0), ((0, 0, 255), 1)
    blue_and_red = ((255, 0, 0), 1), ((0, 0, 255), 0)
    for change in (
        {"ignore": 254},
        {"raw_values": ((0, 0), (7, 1))},
        {"mask_colors": red_and_blue},
        {"mask_colors": blue_and_red},
    ):
        found.add(
            hash_dataset(LabelledFiles(dataset.pairs, dataclasses.replace(VOCABULARY, **change)))
        )  # type: ignore[arg-type]
    found.add(hash_dataset(LabelledFiles(dataset.pairs[:1], VOCABULARY)))
    with (folder / "masks" / "a" / "1.png").open("ab") as file:
        file.write(b"x")
    found.add(hash_dataset(read(folder)))
    for kind in ("images", "masks"):
        (folder / kind / "b" / "2.png").rename(folder / kind / "b" / "3.png")
    found.add(hash_dataset(read(folder)))
    assert len(found) == 10


def test_the_hash_of_a_list_without_colours_stays_what_it_was(tmp_path: Path) -> None:
    """Hashes are stored in reports and checkpoints."""
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).write_bytes(b"1234")
    assert hash_dataset(LabelledFiles([(tmp_path / "a.jpg", tmp_path / "a.png")], VOCABULARY)) == (
        hashlib.sha256(
            b'[["files", [[["a.jpg", 4], ["a.png", 4]]]], [["cat", "grass"], [], 255]]'
        ).hexdigest()
    )


def test_masks_stay_with_their_images(folder: Path) -> None:
    """Two files whose masks are exchanged are another data set."""
    with (folder / "masks" / "a" / "1.png").open("ab") as file:
        file.write(b"x")
    first, second = read(folder).pairs
    exchanged = LabelledFiles([(first[0], second[1]), (second[0], first[1])], VOCABULARY)
    assert hash_dataset(exchanged) != hash_dataset(read(folder))


def test_the_split_is_not_part_of_the_data(folder: Path) -> None:
    assert hash_dataset(
        LabelledFiles(read(folder).pairs, VOCABULARY.with_unseen(["cat"]))
    ) == hash_dataset(read(folder))


def test_scenes_are_told_apart_by_all_that_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        hash_dataset(SandboxScenes(count, seed, size))
        for count, seed, size in ((3, 1, 64), (4, 1, 64), (3, 2, 64), (3, 1, 96))
    }
    assert len(found) == 4
    assert hash_dataset(SandboxScenes(3, 1, 64)) in found
    monkeypatch.setattr("cascade_clip.evaluation.fingerprints.SCENES_VERSION", 99)
    assert hash_dataset(SandboxScenes(3, 1, 64)) not in found
