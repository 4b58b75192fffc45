"""Miniature downloads of the benchmarks, in exactly the formats of the originals."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image
from scipy.io import savemat

from cascade_clip.config import find_part
from cascade_clip.data.layouts import find_dataset, list_recipes
from cascade_clip.data.prepare.recipes import Recipe
from cascade_clip.results.rle import encode_mask

VOC_TRAIN = ("2007_000032", "2007_000039", "2008_000008")
VOC_VAL = ("2007_000033", "2008_000034")
VOC_OTHER = ("2008_000002", "2008_000050", "2009_000001", "2010_000003")
SBD = ("2008_000002", "2008_000008", "2008_000034", "2008_000050", "2010_000003")
"""One image of VOC's train list, one of its val list, three of neither."""
CONTEXT_TRAIN, CONTEXT_VAL = ("2008_000008", "2008_000002"), ("2008_000003",)
COCO_TRAIN, COCO_VAL = ("000000000009", "000000000025", "000000000030"), ("000000000139",)
ADE_TRAIN, ADE_VAL = ("ADE_train_00000001", "ADE_train_00000002"), ("ADE_val_00000001",)

SHAPE = (13, 17)


def jpeg(seed: int, shape: tuple[int, int] = SHAPE) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)).save(
        buffer, format="JPEG"
    )
    return buffer.getvalue()


def grey_png(mask: np.ndarray, palette: bool = False) -> bytes:
    image = Image.fromarray(mask.astype(np.uint8))
    if palette:
        image.putpalette(
            [part for value in range(256) for part in (value, 255 - value, value // 2)]
        )
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def matlab(content: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, content, do_compression=True)
    return buffer.getvalue()


def sbd_labels(number: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(100 + number).integers(0, 21, shape, dtype=np.uint8)


def sbd_file(number: int, shape: tuple[int, int] = SHAPE) -> bytes:
    """A file of SBD's folder cls: struct GTcls with the fields Boundaries, Segmentation and
    CategoriesPresent."""
    labels = sbd_labels(number, shape)
    boundaries = np.empty((20, 1), dtype=object)
    for index in range(20):
        boundaries[index, 0] = np.zeros((1, 1))
    present = np.setdiff1d(np.unique(labels), [0])[:, None]
    return matlab(
        {"GTcls": {"Boundaries": boundaries, "Segmentation": labels, "CategoriesPresent": present}}
    )


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            if name.endswith("/"):
                archive.writestr(name, b"")
            else:
                archive.writestr(
                    name,
                    content,
                    zipfile.ZIP_DEFLATED if name.endswith(".png") else zipfile.ZIP_STORED,
                )


def write_voc(raw: Path) -> None:
    raw.mkdir(parents=True, exist_ok=True)
    with tarfile.open(raw / "VOCtrainval_11-May-2012.tar", "w") as archive:
        base = "VOCdevkit/VOC2012"
        for folder in ("VOCdevkit", base, f"{base}/JPEGImages"):
            info = tarfile.TarInfo(folder)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
        for number, stem in enumerate((*VOC_TRAIN, *VOC_VAL, *VOC_OTHER)):
            add(archive, f"{base}/Annotations/{stem}.xml", b"<annotation/>")
            add(archive, f"{base}/JPEGImages/{stem}.jpg", jpeg(number))
        for number, stem in enumerate((*VOC_TRAIN, *VOC_VAL)):
            mask = np.random.default_rng(number).choice([0, 1, 15, 20, 255], SHAPE)
            add(archive, f"{base}/SegmentationClass/{stem}.png", grey_png(mask, palette=True))
            add(archive, f"{base}/SegmentationObject/{stem}.png", grey_png(mask, palette=True))
        for name, stems in (
            ("train", VOC_TRAIN),
            ("val", VOC_VAL),
            ("trainval", sorted(VOC_TRAIN + VOC_VAL)),
        ):
            add(
                archive,
                f"{base}/ImageSets/Segmentation/{name}.txt",
                "".join(f"{stem}\n" for stem in stems).encode(),
            )
        add(archive, f"{base}/ImageSets/Main/train.txt", b"2008_000008\n")
    with tarfile.open(raw / "benchmark.tgz", "w:gz") as archive:
        add(
            archive,
            "benchmark_RELEASE/dataset/train.txt",
            b"2008_000002\n2010_000003\n2008_000034\n",
        )
        add(archive, "benchmark_RELEASE/dataset/val.txt", b"2008_000008\n2008_000050\n")
        for number, stem in enumerate(SBD):
            add(archive, f"benchmark_RELEASE/dataset/img/{stem}.jpg", jpeg(50 + number))
            add(archive, f"benchmark_RELEASE/dataset/cls/{stem}.mat", sbd_file(number))
            add(archive, f"benchmark_RELEASE/dataset/inst/{stem}.mat", b"not read")
        link = tarfile.TarInfo("benchmark_RELEASE/benchmark_code_RELEASE/latest")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


def coco_labels(number: int) -> np.ndarray:
    return np.random.default_rng(200 + number).choice([0, 10, 12, 26, 91, 181, 255], SHAPE)


def write_coco(raw: Path) -> None:
    raw.mkdir(parents=True, exist_ok=True)
    for part, stems in (("train2017", COCO_TRAIN), ("val2017", COCO_VAL)):
        write_zip(
            raw / f"{part}.zip",
            {f"{part}/": b""}
            | {f"{part}/{stem}.jpg": jpeg(number) for number, stem in enumerate(stems)},
        )
    maps = {
        f"train2017/{stem}.png": grey_png(coco_labels(number))
        for number, stem in enumerate(COCO_TRAIN)
    }
    maps |= {
        f"val2017/{stem}.png": grey_png(coco_labels(9 + number))
        for number, stem in enumerate(COCO_VAL)
    }
    maps["__MACOSX/train2017/._000000000009.png"] = b"side file"
    write_zip(raw / "stuffthingmaps_trainval2017.zip", maps)


def context_labels(number: int) -> np.ndarray:
    """Values of the 459-name list: none, aeroplane, accordion (not among the 59), person, wood, and
    the last name."""
    return np.random.default_rng(300 + number).choice(
        np.array([0, 2, 1, 284, 458, 459], dtype=np.uint16), SHAPE
    )


def write_voc2010(raw: Path) -> None:
    raw.mkdir(parents=True, exist_ok=True)
    with tarfile.open(raw / "VOCtrainval_03-May-2010.tar", "w") as archive:
        base = "VOCdevkit/VOC2010"
        for number, stem in enumerate((*CONTEXT_TRAIN, *CONTEXT_VAL, "2010_009999")):
            add(archive, f"{base}/JPEGImages/{stem}.jpg", jpeg(number))
        for name, stems in (("train", CONTEXT_TRAIN), ("val", CONTEXT_VAL)):
            add(
                archive,
                f"{base}/ImageSets/Main/{name}.txt",
                "".join(f"{stem}\n" for stem in stems).encode(),
            )
            add(archive, f"{base}/ImageSets/Main/aeroplane_{name}.txt", b"2010_009999  1\n")


def write_context_matlab(raw: Path) -> None:
    with tarfile.open(raw / "trainval.tar.gz", "w:gz") as archive:
        for number, stem in enumerate((*CONTEXT_TRAIN, *CONTEXT_VAL)):
            add(archive, f"trainval/{stem}.mat", matlab({"LabelMap": context_labels(number)}))


def write_context_json(raw: Path) -> None:
    """PASCAL in Detail: one region a category; every second one with its run lengths as a list."""
    images, regions = [], []
    for number, stem in enumerate((*CONTEXT_TRAIN, *CONTEXT_VAL)):
        labels = context_labels(number)
        identity = int(stem.replace("_", ""))
        phase = "train" if stem in CONTEXT_TRAIN else "val"
        height, width = labels.shape
        images.append(
            {
                "image_id": identity,
                "file_name": f"{stem}.jpg",
                "height": height,
                "width": width,
                "phase": phase,
                "date_captured": "",
            }
        )
        for category in np.unique(labels[labels > 0]).tolist():
            encoded: dict[str, Any] = dict(encode_mask(labels == category))
            if len(regions) % 2:
                flat = np.concatenate([[False], (labels == category).ravel(order="F")])
                edges = np.flatnonzero(flat[1:] != flat[:-1])
                encoded["counts"] = np.diff([0, *edges, labels.size]).tolist()
            regions.append(
                {
                    "id": len(regions),
                    "image_id": identity,
                    "category_id": category,
                    "segmentation": encoded,
                    "iscrowd": 0,
                }
            )
    images.append(
        {"image_id": 1, "file_name": "2010_009999.jpg", "height": 2, "width": 2, "phase": "test"}
    )
    regions.append(
        {
            "id": len(regions),
            "image_id": 1,
            "category_id": 2,
            "segmentation": {"size": [2, 2], "counts": "04"},
        }
    )
    categories = [{"category_id": 284, "name": "person"}]
    content = {
        "info": {},
        "images": images,
        "categories": categories,
        "annos_segmentation": regions,
        "annos_boundary": [],
        "parts": [],
    }
    (raw / "trainval_merged.json").write_text(json.dumps(content))


def write_ade(raw: Path) -> None:
    raw.mkdir(parents=True, exist_ok=True)
    files = {
        "ADEChallengeData2016/objectInfo150.txt": b"Idx\tRatio\n",
        "ADEChallengeData2016/images/training/": b"",
    }
    for part, stems in (("training", ADE_TRAIN), ("validation", ADE_VAL)):
        for number, stem in enumerate(stems):
            files[f"ADEChallengeData2016/images/{part}/{stem}.jpg"] = jpeg(number)
            files[f"ADEChallengeData2016/annotations/{part}/{stem}.png"] = grey_png(
                np.full(SHAPE, 150 - number)
            )
    write_zip(raw / "ADEChallengeData2016.zip", files)


def small(name: str, counts: list[int], pairs: list[int]) -> Recipe:
    """A recipe with the counts of a miniature: one for each rule, one for each check; sizes and
    hashes are not compared."""
    recipe, rest = list_recipes()[name], iter(counts)
    needs = tuple(
        tuple(
            dataclasses.replace(
                download,
                size=0,
                digest="",
                rules=tuple(dataclasses.replace(rule, count=next(rest)) for rule in download.rules),
            )
            for download in choices
        )
        for choices in recipe.needs
    )
    assert not list(rest)
    checks = tuple(
        dataclasses.replace(check, count=count)
        for check, count in zip(recipe.checks, pairs, strict=True)
    )
    return dataclasses.replace(recipe, needs=needs, checks=checks)


SMALL = {
    "voc": small("voc", [1, 1, 9, 5, 5], [3, 2, 3, 6]),
    "coco-stuff": small("coco-stuff", [3, 1, 3, 3, 1, 1], [3, 1]),
    "context": small("context", [1, 1, 4, 3, 3], [2, 1]),
    "ade20k": small("ade20k", [2, 1, 2, 1], [2, 1]),
}
"""Recipes with the counts of the miniatures."""


def use_small_recipes(recipes: Mapping[str, Recipe] = SMALL) -> ExitStack:
    """While the context lasts, `data prepare` expects the counts of the miniatures."""
    with ExitStack() as stack:
        for name, recipe in recipes.items():
            spec = dataclasses.replace(find_dataset(name), recipe=recipe)
            module = importlib.import_module(f"cascade_clip.data.named.{name.replace('-', '_')}")
            stack.enter_context(mock.patch.object(module, "SPEC", spec))
        find_part.cache_clear()
        stack.callback(find_part.cache_clear)
        return stack.pop_all()
