"""What every model must do, whatever its composition; decoders, aggregations, and what is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cascade_clip.aggregation import WeightedSum, build_aggregation, gaussian_weights
from cascade_clip.config import AggregationConfig, DecoderConfig, ModelConfig
from cascade_clip.decoder import Decoder, MaskAttention
from cascade_clip.model import Segmenter, build_segmenter, relation_descriptor
from cascade_clip.plain_values import config_from_dict
from conftest import TINY_MODEL

COMPOSITIONS: dict[str, dict[str, Any]] = {
    "cascade": {},
    "ZegCLIP": {"stages": [[12]]},
    "Frozen CLIP": {"prompts": {"kind": "none"}, "stages": [[12]]},
    "Frozen CLIP with cascade": {"prompts": {"kind": "none"}},
    "shallow prompts": {"prompts": {"kind": "shallow", "tokens": 2}},
    "two stages": {"stages": [[9, 10, 11], [12]]},
    "four stages": {"stages": [[3, 4, 5], [6, 7, 8], [9, 10, 11], [12]]},
    "last block inside a stage": {"stages": [[4, 5, 6], [7, 8, 9], [10, 11, 12]]},
    "without the last block": {"stages": [[6, 7, 8], [9, 10, 11]]},
    "gaps and any order": {"stages": [[2, 9], [1]]},
    "naive fusion": {"stages": [[6, 7, 8, 9, 10, 11, 12]], "aggregation": {"kind": "sum", "trained": False}},
    "shared queries": {"queries": "shared"},
    "concatenation": {"aggregation": {"kind": "concat"}},
    "block attention": {"aggregation": {"kind": "attention"}},
    "fixed aggregation": {"aggregation": {"trained": False}},
    "projections from CLIP, trained": {"projection": {"init": "clip", "trained": True}},
    "one decoder layer": {"decoder": {"layers": 1, "heads": 2}},
    "native positions": {"position_grid": None},
}


def build(changes: dict[str, Any]) -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(config_from_dict(ModelConfig, {**TINY_MODEL, **changes}))


@pytest.mark.parametrize("name", COMPOSITIONS)
class TestModelContract:
    """Inherited by every composition of parts."""

    @pytest.mark.parametrize("size", [(64, 64), (48, 97)])  # an odd, non-square size hides no swapped axes
    def test_output_has_the_grid_of_the_image(self, name: str, size: tuple[int, int]) -> None:
        model = build(COMPOSITIONS[name]).eval()
        with torch.inference_mode():
            logits = model(torch.randn(2, 3, *size), torch.randn(5, 32))
        assert logits.shape == (2, 5, -(-size[0] // 16), -(-size[1] // 16))
        assert logits.dtype == torch.float32

    def test_features_are_made_once_and_asked_often(self, name: str) -> None:
        model = build(COMPOSITIONS[name]).eval()
        images, text = torch.randn(1, 3, 64, 80), torch.randn(6, 32)
        with torch.inference_mode():
            features = model.features(images)
            for rows in (text, text[:2]):
                assert torch.equal(model.decode(features, rows).total, model(images, rows))

    def test_gradients_reach_what_is_trained_and_nothing_else(self, name: str) -> None:
        model = build(COMPOSITIONS[name]).train()
        model(torch.randn(2, 3, 64, 64), torch.randn(5, 32)).square().sum().backward()
        for parameter_name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, parameter_name
        assert not any(parameter.requires_grad for parameter in model.backbone.tower.parameters())

    def test_a_class_does_not_see_the_others(self, name: str) -> None:
        model = build(COMPOSITIONS[name]).eval()
        images, text = torch.randn(1, 3, 64, 64), torch.randn(6, 32)
        with torch.inference_mode():
            together, alone = model(images, text), model(images, text[3:4])
        torch.testing.assert_close(together[:, 3:4], alone, rtol=1e-5, atol=1e-5)


def test_what_is_trained_in_the_published_cascade() -> None:
    trained = {name.split(".")[0] + "." + name.split(".")[1] for name, p in build({}).named_parameters() if p.requires_grad}
    heads = {f"{part}.{index}" for part in ("queries", "decoders") for index in range(3)}
    assert trained == {"backbone.prompts", "backbone.prompt_norm", "aggregations.0", "aggregations.1"} | heads


def test_projections_from_clip_are_copies() -> None:
    backbone = build({"projection": {"init": "clip"}}).backbone
    assert torch.equal(backbone.taps.matrices[0], backbone.tower.visual.proj)
    assert torch.equal(backbone.taps.norms[0].weight, backbone.tower.visual.ln_post.weight)
    assert not backbone.taps.matrices.requires_grad


def test_random_projections_have_the_published_scale() -> None:
    matrices = build({}).backbone.taps.matrices
    assert matrices.shape == (6, 64, 32)
    assert float(matrices.std()) == pytest.approx(64**-0.5, rel=0.03)
    assert not torch.equal(matrices[0], matrices[1])


def test_layers_of_a_decoder_start_as_copies_and_decoders_differ() -> None:
    model = build({})
    first, second = model.decoders[0], model.decoders[1]
    for name, value in first.layers[0].state_dict().items():
        assert torch.equal(value, first.layers[1].state_dict()[name])
    assert torch.equal(first.layers[0].attention.query.weight, first.mask_attention.query.weight)
    assert not torch.equal(first.mask_attention.query.weight, second.mask_attention.query.weight)


def test_drop_path_skips_blocks_in_training_only() -> None:
    model = build({"drop_path": 0.9, "prompts": {"tokens": 3, "dropout": 0.0}})
    images = torch.randn(2, 3, 64, 64)
    plain = build({"prompts": {"tokens": 3, "dropout": 0.0}}).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model.eval().features(images, [12]).patches[12], plain.features(images, [12]).patches[12])
        assert not torch.equal(model.train().features(images, [12]).patches[12], plain.features(images, [12]).patches[12])


def test_dead_weights_do_not_exist() -> None:
    names = dict(Decoder(32, DecoderConfig(layers=3, heads=4, feedforward=64)).named_parameters())
    assert {name for name in names if name.startswith("mask_attention")} == {
        f"mask_attention.{part}.{kind}" for part in ("query", "key") for kind in ("weight", "bias")
    }
    assert len(names) == 4 + 2 * 16
    assert not [name for name in names if "self" in name]


def test_mask_logits_are_the_mean_over_heads() -> None:
    attention = MaskAttention(32, 4)
    queries, patches = torch.randn(2, 5, 32), torch.randn(2, 9, 32)
    query, key = attention.query(queries).unflatten(-1, (4, 8)), attention.key(patches).unflatten(-1, (4, 8))
    expected = torch.einsum("bchd,bnhd->bhcn", query, key).mean(dim=1) / 8**0.5
    torch.testing.assert_close(attention.mask_logits(queries, patches), expected, rtol=1e-5, atol=1e-6)


def test_similarities_stay_float32_under_autocast() -> None:
    attention = MaskAttention(32, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention.mask_logits(torch.randn(1, 5, 32), torch.randn(1, 9, 32)).dtype == torch.float32


def test_relation_descriptor() -> None:
    result = relation_descriptor(torch.tensor([[2.0, 3.0]]), torch.tensor([[5.0, 7.0], [1.0, 1.0]]))
    assert result.tolist() == [[[10.0, 21.0, 5.0, 7.0], [2.0, 3.0, 1.0, 1.0]]]


@pytest.mark.parametrize(
    ("blocks", "sigma", "weights"),
    [
        (3, 1.0, [0.1353, 0.6065, 1.0]),  # the paper's Table 17
        (2, 1.0, [0.6065, 1.0]),
        (3, 2.0, [0.6065, 0.8825, 1.0]),  # wider
    ],
)
def test_gaussian_weights(blocks: int, sigma: float, weights: list[float]) -> None:
    assert gaussian_weights(blocks, sigma) == pytest.approx(weights, abs=5e-5)


def test_aggregations() -> None:
    maps = [torch.full((1, 2, 8), float(value)) for value in (1, 10, 100)]
    nga = build_aggregation(AggregationConfig(), 3, 8)
    assert nga(maps)[0, 0, 0].item() == pytest.approx(0.135335 + 6.06531 + 100, rel=1e-5)
    assert build_aggregation(AggregationConfig("sum"), 3, 8)(maps)[0, 0, 0].item() == 111
    assert not list(build_aggregation(AggregationConfig(trained=False), 3, 8).parameters())
    assert "weights" in build_aggregation(AggregationConfig(trained=False), 3, 8).state_dict()
    single = build_aggregation(AggregationConfig(), 1, 8)
    assert single(maps[:1]) is maps[0] and not list(single.parameters())
    with pytest.raises(ValueError):
        WeightedSum([1.0, 1.0], trained=True)(maps)  # one map too many


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": [[6], [13]]}, "block 13, but tiny has blocks 1 to 12"),
        ({"decoder": {"heads": 5}}, "heads must divide the joint width 32, got 5"),
    ],
)
def test_compositions_that_cannot_be_built(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(changes)


@pytest.mark.parametrize("shape", [(5, 31), (32,), (0, 32)])
def test_text_of_another_width(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"text embeddings must have shape \(classes, 32\)"):
        build({})(torch.zeros(1, 3, 64, 64), torch.zeros(shape))
