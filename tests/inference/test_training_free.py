"""CLIP alone: dense features of the last block, the softmax over class names, and what it segments
without any mask ever seen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from archives import random_clip, write_openai_archive
from cascade_clip.cli.main import main
from cascade_clip.config import DataConfig
from cascade_clip.data.registry import build_dataset
from cascade_clip.encoders.towers import OpenClipTower
from cascade_clip.evaluation.metrics import ConfusionMatrix, compute_metrics
from cascade_clip.inference.loading import load_predictor
from cascade_clip.inference.predictor import Predictor
from cascade_clip.inference.training_free import parse_clip
from cascade_clip.models.decoders.similarity import Similarity
from tiny_models import TINY_CLIP

SCENES = 24


@pytest.fixture(scope="module")
def mini() -> Predictor:
    return load_predictor("clip:mini", "cpu")


def test_sources() -> None:
    named = parse_clip("clip:ViT-B-16-quickgelu/openai")
    assert (named.name, named.weights) == ("ViT-B-16-quickgelu", "openai")
    assert parse_clip("clip:ViT-L-14-quickgelu//data/ViT-L-14.pt").weights == "/data/ViT-L-14.pt"
    assert parse_clip("clip:hf-hub:owner/name").name == "hf-hub:owner/name"
    assert parse_clip("clip:mini").name == "package:mini_clip"
    for wrong in ("clip:ViT-B-16", "clip:/openai", "clip:ViT-B-16/"):
        with pytest.raises(ValueError, match="does not say which weights"):
            parse_clip(wrong)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Softmax attention, written out; (heads, tokens, width of a head)."""
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)
    return weights @ value


@pytest.mark.parametrize("kind", ["maskclip", "sclip", "clearclip"])
def test_dense_blocks_against_attention_written_out(mini: Predictor, kind: str) -> None:
    tower = mini.model.backbone.tower
    assert isinstance(tower, OpenClipTower)
    block = tower.blocks[-1]
    tokens = torch.randn(1, 10, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = tower.run_dense(block, tokens, kind)[0]  # type: ignore[arg-type]
        normed = block.ln_1(tokens)[0]
        rows = block.attn.in_proj_weight.split(128), block.attn.in_proj_bias.split(128)
        query, key, value = (
            (normed @ weight.T + bias).view(10, 4, 32).transpose(0, 1)
            for weight, bias in zip(*rows, strict=True)
        )
        mixed = {
            "maskclip": value,
            "sclip": attend(query, query, value) + attend(key, key, value),
            "clearclip": attend(query, query, value),
        }[kind]
        out = (
            mixed.transpose(0, 1).reshape(10, 128) @ block.attn.out_proj.weight.T
            + block.attn.out_proj.bias
        )
        if kind != "clearclip":
            out = tokens[0] + out
            out = out + block.mlp(block.ln_2(out))
    torch.testing.assert_close(found, out, rtol=1e-4, atol=1e-5)


def test_standard_features_are_those_of_clip(mini: Predictor) -> None:
    """Only the last block differs, and only in its patches."""
    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    standard = load_predictor("clip:mini", "cpu", last_block="standard").model
    with torch.inference_mode():
        one, other = mini.model.features(image), standard.features(image)
        hidden = (
            mini.model.features(image, [3, 11], projected=False),
            standard.features(image, [3, 11], projected=False),
        )
    torch.testing.assert_close(one.class_token, other.class_token)
    assert float(F.cosine_similarity(one.patches[12], other.patches[12], dim=-1).mean()) < 0.9
    for block in (3, 11):
        torch.testing.assert_close(hidden[0].patches[block], hidden[1].patches[block])


def test_scores_are_the_softmax_over_the_names() -> None:
    decoder = Similarity(scale=20.0)
    generator = torch.Generator().manual_seed(0)
    text, patches = (
        torch.randn(1, 5, 16, generator=generator),
        torch.randn(1, 7, 16, generator=generator),
    )
    cosines = F.normalize(text, dim=-1) @ F.normalize(patches, dim=-1).transpose(1, 2)
    torch.testing.assert_close(
        decoder(text, patches, (1, 7)).sigmoid(),
        (20 * cosines).softmax(dim=1),
        rtol=1e-4,
        atol=1e-6,
    )
    # one name has no rival
    assert bool((decoder(text[:, :1], patches, (1, 7)).sigmoid() > 0.999).all())


def evaluate(predictor: Predictor) -> tuple[float, float]:
    dataset = build_dataset(DataConfig(name="sandbox", seed=2, limit=SCENES))
    bound = predictor.bind(dataset.vocabulary)
    matrix = ConfusionMatrix(len(bound.names))
    for index in range(SCENES):
        sample = dataset.sample(index)
        matrix.update(predictor.label_map(sample.image, bound).labels, sample.labels)
    found = compute_metrics(matrix, dataset.vocabulary.names, dataset.vocabulary.seen_mask)
    assert found.miou is not None
    return found.miou, found.pixel_accuracy


def test_it_segments_without_any_mask_ever_seen(mini: Predictor) -> None:
    """26 class names: chance is 4 % of the pixels. The dense last block beats the standard one."""
    miou, accuracy = evaluate(mini)
    assert miou > 0.18 and accuracy > 0.6
    standard, _ = evaluate(load_predictor("clip:mini", "cpu", last_block="standard"))
    assert miou > standard + 0.02


def test_settings_come_from_clip(mini: Predictor) -> None:
    config = mini.checkpoint.config
    assert (
        config.model.mean == (0.5, 0.5, 0.5)
        and config.inference.window == 128
        and not config.model.class_embedding_twice
    )
    assert mini.vocabulary.seen == () and len(mini.checkpoint.templates) == 15
    assert mini.bind("grass, star").calibration == 0.0
    assert sum(parameter.requires_grad for parameter in mini.model.parameters()) == 0


def test_openai_weights_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    known = open_clip.get_model_config
    monkeypatch.setattr(
        open_clip,
        "get_model_config",
        lambda name: dict(TINY_CLIP) if name == "tiny-quickgelu" else known(name),
    )
    model = random_clip(TINY_CLIP)
    archive = write_openai_archive(tmp_path / "archive.pt", model, 64)
    # code of strangers is not even opened
    with pytest.raises(ValueError, match="not a published one"):
        load_predictor(f"clip:tiny-quickgelu/{archive}", "cpu")
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    predictor = load_predictor(f"clip:tiny-quickgelu/{tmp_path / 'plain.pt'}", "cpu")
    config = predictor.checkpoint.config
    assert config.inference.window == 128 and config.model.mean == pytest.approx(
        (0.48145466, 0.4578275, 0.40821073)
    )
    found = predictor.segment(np.zeros((40, 60, 3), dtype=np.uint8), "cat, dog")
    assert found.labels.shape == (40, 60) and predictor.model.decoders[0].scale == pytest.approx(
        1 / 0.07, rel=1e-4
    )


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = build_dataset(DataConfig(name="sandbox", seed=3, limit=1)).sample(0)
    Image.fromarray(scene.image.permute(1, 2, 0).numpy()).save(tmp_path / "scene.png")
    words = [
        "segment",
        str(tmp_path / "scene.png"),
        "--model",
        "clip:mini",
        "--classes",
        "grass, water, star",
        "--out",
        str(tmp_path),
    ]
    assert main([*words, "--last-block", "sclip"]) == 0
    captured = capsys.readouterr()
    assert "%" in captured.out and "clip:mini knows only the built-in world" in captured.err
    predictor = load_predictor("clip:mini", "cpu", last_block="sclip")
    index = np.asarray(Image.open(tmp_path / "scene_index.png"))
    assert np.array_equal(
        index, predictor.segment(tmp_path / "scene.png", "grass, water, star").labels
    )
    assert (
        main(["segment", str(tmp_path / "scene.png"), "--model", "mini", "--last-block", "sclip"])
        == 2
    )
    assert "last_block is for training-free models" in capsys.readouterr().err


def test_siglip_towers_are_refused_in_one_line(mini: Predictor) -> None:
    from cascade_clip.models.backbone import ImageBackbone

    with pytest.raises(ValueError, match="needs one of open_clip's own ViT towers"):
        tower: Any = SimpleNamespace(last_blocks=("standard",))
        ImageBackbone(tower, None, None, last_block="sclip")


def test_flip_and_scales_work_here_too(mini: Predictor) -> None:
    pixels = build_dataset(DataConfig(name="sandbox", seed=2, limit=1)).sample(0).image
    better = Predictor(
        mini.checkpoint, dataclasses.replace(mini.settings, flip=True, scales=(1.0, 1.5)), "cpu"
    )
    assert better.label_map(pixels, better.bind("grass, water")).labels.shape == (128, 128)


def test_clip_alone_hands_no_split_to_other_data(mini: Predictor) -> None:
    """Some of these names are COCO-Stuff's, which the model carries for want of others; none was
    held out from anything."""
    from cascade_clip.evaluation.evaluator import bind_dataset

    dataset = build_dataset(DataConfig(name="sandbox", seed=2, limit=1))
    dataset.vocabulary = dataclasses.replace(dataset.vocabulary, unseen=())
    vocabulary, _ = bind_dataset(mini, dataset, None, None)
    assert "car" in mini.vocabulary.unseen and vocabulary.unseen == ()
