"""The published settings: every file is built and trained for three steps at tiny size, on files in
the layout it expects."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cascade_clip.checkpoints.checkpoint import load_config
from cascade_clip.config import AugmentConfig, ClipConfig, Config, OptimizerConfig
from cascade_clip.training.fit import fit
from cascade_clip.vocabulary import load_vocabulary
from paths import ROOT
from tiny_models import TINY_CLIP

PUBLISHED = sorted(
    path for path in (ROOT / "configs").glob("*.yaml") if not path.stem.startswith("sandbox")
)
FOLDERS = {
    "voc": ("VOCdevkit/VOC2012/JPEGImages", "VOCdevkit/VOC2012/SegmentationClass"),
    "context": ("VOCdevkit/VOC2010/JPEGImages", "VOCdevkit/VOC2010/SegmentationClassContext"),
    "coco-stuff": ("coco_stuff164k/images/train2017", "coco_stuff164k/annotations/train2017"),
}


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six generated images of every data set, whose masks hold seen and unseen values, and random
    text embeddings."""
    base = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    for name, (images, masks) in FOLDERS.items():
        vocabulary = load_vocabulary(name)
        values = [raw for raw, _ in vocabulary.raw_values or ()]
        (base / images).mkdir(parents=True)
        (base / masks).mkdir(parents=True)
        for index in range(6):
            Image.fromarray(draw.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(
                base / images / f"{index}.jpg"
            )
            blocks = draw.choice(values, (6, 8)).repeat(10, axis=0).repeat(10, axis=1)
            Image.fromarray(blocks.astype(np.uint8)).save(base / masks / f"{index}.png")
        np.save(
            base / f"{name}.npy", draw.standard_normal((len(vocabulary), 32)).astype(np.float32)
        )
    for folder, lists in (
        ("VOCdevkit/VOC2012/ImageSets/Segmentation", ("train",)),
        ("VOCdevkit/VOC2010/ImageSets/SegmentationContext", ("train",)),
    ):
        (base / folder).mkdir(parents=True)
        for part in lists:
            (base / folder / f"{part}.txt").write_text("".join(f"{index}\n" for index in range(6)))
    (base / "VOCdevkit/VOC2012/ImageSets/Segmentation/aug.txt").write_text("")
    return base


def shrink(config: Config, root: Path) -> Config:
    """The same settings with a tiny random CLIP, small crops and two steps of two images."""
    text = root / f"{config.data.name.removesuffix('-released')}.npy"
    train = dataclasses.replace(
        config.train,
        steps=2,
        batch_size=2,
        first_batch_size=1 * bool(config.train.first_batch_size),
        optimizer=OptimizerConfig(warmup_steps=1),
        augment=AugmentConfig(scale=(256, 64), crop=64),
        preview_every=0,
        device="cpu",
    )
    decoder = dataclasses.replace(config.model.decoder, heads=4, feedforward=64)
    model = dataclasses.replace(
        config.model,
        clip=ClipConfig("tiny", "random", TINY_CLIP),
        decoder=decoder,
        position_grid=(4, 4),
    )
    data = dataclasses.replace(config.data, root=str(root), text_embeddings=str(text), workers=0)
    return dataclasses.replace(config, train=train, model=model, data=data, evaluation=None)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_every_published_setting_trains(path: Path, root: Path, tmp_path: Path) -> None:
    config = shrink(load_config(path), root)
    checkpoint = fit(config, tmp_path / "run")
    assert checkpoint.record["steps"] == 2
    assert all(
        bool(torch.isfinite(value).all()) for value in checkpoint.model.state_dict().values()
    )
    assert (tmp_path / "run" / "stage1").is_dir() == (config.train.protocol == "transductive")
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert rows[-1].startswith("2,")


def test_there_is_one_file_per_published_number() -> None:
    names = {path.stem for path in PUBLISHED}
    for method in ("cascade", "zegclip"):
        for data in ("voc", "coco", "context"):
            assert {
                f"{method}-{data}-{protocol}"
                for protocol in ("inductive", "transductive", "supervised")
            } <= names
        assert {
            f"{method}-context-released-{protocol}" for protocol in ("inductive", "transductive")
        } <= names
    for method in ("frozen", "frozen-cascade"):
        assert {f"{method}-voc-inductive", f"{method}-coco-inductive"} <= names
    for method in ("spt", "spt-cascade"):
        assert {
            f"{method}-{data}-{protocol}"
            for data in ("voc", "coco")
            for protocol in ("inductive", "transductive")
        } <= names


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_names_say_what_the_settings_are(path: Path) -> None:
    config = load_config(path)
    stem = path.stem.removeprefix("recommended-")
    method, protocol = stem.split("-")[0], stem.rsplit("-", 1)[1]
    projection = ("clip", True) if stem != path.stem else ("random", False)
    assert (config.model.projection.init, config.model.projection.trained) == projection
    assert config.train.protocol == protocol
    assert config.model.prompts.kind == ("none" if method == "frozen" else "deep")
    assert len(config.model.stages) == (3 if "cascade" in stem else 1)
    spectral = (
        config.model.prompts.spectral,
        config.model.decoder.kind,
        config.train.loss.dice,
        config.train.loss.ssim,
    )
    assert spectral == (
        (True, "spectral", 0.0, 1.0) if method == "spt" else (False, "transformer", 1.0, 0.0)
    )
    data = stem.removeprefix(f"{method}-").removeprefix("cascade-").removesuffix(f"-{protocol}")
    assert config.data.name == {"coco": "coco-stuff"}.get(data, data)
    assert config.evaluation is not None and config.evaluation.name == config.data.name
    steps = {"voc": 20_000, "coco-stuff": 80_000, "context": 40_000, "context-released": 40_000}[
        config.data.name
    ]
    assert config.train.steps == (steps // 2 if protocol == "transductive" else steps)
    assert f"configs/{path.name}" in path.read_text()


def test_evaluation_data_lie_beside_the_training_data(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "cascade-voc-inductive.yaml")
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, root="elsewhere"))
    assert moved.evaluation is not None and moved.evaluation.root == "elsewhere"
    assert config.evaluation is not None and config.evaluation.root == ""


def test_the_docs_list_every_config_with_its_published_figure() -> None:
    page = (ROOT / "docs" / "configs.md").read_text()
    for path in PUBLISHED:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{path.stem}` |")]
        found = re.search(r"Published S / U / hIoU: (.*) \(Table (\d+)\)", path.read_text())
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert cells[1] == (found[1] if found else "none"), path.stem
        assert cells[2] == (f"Table {found[2]}" if found else "-")


TOKENS = {
    ("cascade", "voc"): 10,
    ("cascade", "context"): 35,
    ("cascade", "coco"): 50,
    ("zegclip", "voc"): 10,
    ("zegclip", "context"): 35,
    ("zegclip", "coco"): 100,
}
FIGURES = {  # paper, Tables 2, 3 and 10
    "cascade-voc-inductive": "92.7 / 83.1 / 87.7",
    "cascade-voc-transductive": "93.3 / 93.4 / 93.4",
    "cascade-voc-supervised": "93.7 / 94.6 / -",
    "cascade-coco-inductive": "41.1 / 43.4 / 42.2",
    "cascade-coco-transductive": "41.7 / 62.5 / 50.0",
    "cascade-coco-supervised": "41.5 / 64.0 / -",
    "cascade-context-released-inductive": "55.9 / 47.2 / 51.2",
    "cascade-context-released-transductive": "56.4 / 55.0 / 55.7",
    "zegclip-voc-inductive": "91.9 / 77.8 / 84.3",
    "zegclip-voc-transductive": "92.3 / 89.9 / 91.1",
    "zegclip-voc-supervised": "92.4 / 90.9 / -",
    "zegclip-coco-inductive": "40.2 / 41.4 / 40.8",
    "zegclip-coco-transductive": "40.7 / 59.9 / 48.5",
    "zegclip-coco-supervised": "40.7 / 63.2 / -",
    "zegclip-context-released-inductive": "53.8 / 45.5 / 49.3",
    "zegclip-context-released-transductive": "54.5 / 41.4 / 47.1",
    "frozen-voc-inductive": "85.9 / 59.5 / -",
    "frozen-coco-inductive": "32.3 / 32.5 / -",
    "frozen-cascade-voc-inductive": "89.0 / 69.7 / -",
    "frozen-cascade-coco-inductive": "36.3 / 35.3 / -",
}


@pytest.mark.parametrize(
    "path",
    [path for path in PUBLISHED if not path.stem.startswith("spt")],
    ids=lambda path: path.stem,
)
def test_decisive_values_are_the_published_ones(path: Path) -> None:
    config = load_config(path)
    stem = path.stem.removeprefix("recommended-")
    method, data = (
        stem.split("-")[0],
        stem.removeprefix("frozen-cascade-").split("-")[-2 if "released" not in stem else -3],
    )
    if method != "frozen":
        assert config.model.prompts.tokens == TOKENS[method, data]
    pseudo = path.stem == "cascade-voc-transductive"
    assert (config.train.batch_size, config.train.first_batch_size) == (
        (32, 16) if pseudo else (16, 0)
    )
    assert config.model.stages == (
        ((12,),) if len(config.model.stages) == 1 else ((6, 7, 8), (9, 10, 11), (12,))
    )
    assert (config.train.optimizer.learning_rate, config.train.optimizer.warmup_steps) == (
        2e-4,
        1500,
    )
    found = re.search(r"Published S / U / hIoU: (.*) \(Table", path.read_text())
    assert (found[1] if found else None) == FIGURES.get(path.stem)
