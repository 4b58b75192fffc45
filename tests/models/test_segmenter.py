"""What every model must do, whatever its composition; decoders, aggregations, and what is
trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from cascade_clip.config import AggregationConfig, DecoderConfig, ModelConfig
from cascade_clip.config.serialization import config_from_dict
from cascade_clip.encoders.clip import load_clip
from cascade_clip.models.aggregation import WeightedSum, build_aggregation, gaussian_weights
from cascade_clip.models.builder import build_segmenter
from cascade_clip.models.decoders.transformer import Decoder, MaskAttention
from cascade_clip.models.segmenter import Segmenter, relation_descriptor
from tiny_models import TINY_CLIP, TINY_MODEL

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
    "naive fusion": {
        "stages": [[6, 7, 8, 9, 10, 11, 12]],
        "aggregation": {"kind": "sum", "trained": False},
    },
    "shared queries": {"queries": "shared"},
    "concatenation": {"aggregation": {"kind": "concat"}},
    "block attention": {"aggregation": {"kind": "attention"}},
    "fixed aggregation": {"aggregation": {"trained": False}},
    "projections from CLIP, trained": {"projection": {"init": "clip", "trained": True}},
    "one decoder layer": {"decoder": {"layers": 1, "heads": 2}},
    "native positions": {"position_grid": None},
    "SPT-SEG with cascade": {
        "prompts": {"spectral": True},
        "decoder": {"kind": "spectral", "layers": 2, "heads": 4, "low_share": 0.75},
    },
    "three decoders on the last block": {"stages": [[12], [12], [12]]},
    "linear text queries": {"queries": "text_linear"},
}


def build(changes: dict[str, Any]) -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(config_from_dict(ModelConfig, {**TINY_MODEL, **changes}))


@pytest.mark.parametrize("name", COMPOSITIONS)
class TestModelContract:
    """Inherited by every composition of parts."""

    # an odd, non-square size hides no swapped axes
    @pytest.mark.parametrize("size", [(64, 64), (48, 97)])
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

    def test_evaluation_draws_nothing(self, name: str) -> None:
        changes = COMPOSITIONS[name]
        parts = {
            part: {**TINY_MODEL[part], **changes.get(part, {}), "dropout": 0.5}
            for part in ("prompts", "decoder")
        }
        model, images, text = (
            build({**changes, **parts}).eval(),
            torch.randn(1, 3, 64, 64),
            torch.randn(3, 32),
        )
        with torch.inference_mode():
            assert torch.equal(model(images, text), model(images, text))
            model.train()
            assert not torch.equal(model(images, text), model(images, text))

    def test_a_class_does_not_see_the_others(self, name: str) -> None:
        model = build(COMPOSITIONS[name]).eval()
        images, text = torch.randn(1, 3, 64, 64), torch.randn(6, 32)
        with torch.inference_mode():
            together, alone = model(images, text), model(images, text[3:4])
        torch.testing.assert_close(together[:, 3:4], alone, rtol=1e-5, atol=1e-5)


def test_what_is_trained_in_the_published_cascade() -> None:
    trained = {
        name.split(".")[0] + "." + name.split(".")[1]
        for name, p in build({}).named_parameters()
        if p.requires_grad
    }
    heads = {f"{part}.{index}" for part in ("queries", "decoders") for index in range(3)}
    assert (
        trained
        == {
            "backbone.prompts",
            "backbone.prompt_norm",
            "aggregations.0",
            "aggregations.1",
        }
        | heads
    )


@pytest.mark.parametrize(
    ("changes", "others"),
    [
        ({}, {"backbone.prompts", "backbone.prompt_norm"}),
        (
            {"projection": {"trained": True}},
            {"backbone.prompts", "backbone.prompt_norm", "backbone.taps"},
        ),
        ({"prompts": {"kind": "none"}}, set()),  # no prompts, no norm of theirs
        (
            {"prompts": {"kind": "none"}, "projection": {"init": "clip", "trained": True}},
            {"backbone.taps"},
        ),
    ],
)
def test_what_is_trained_beside_the_head(changes: dict[str, Any], others: set[str]) -> None:
    names = [
        name for name, parameter in build(changes).named_parameters() if parameter.requires_grad
    ]
    assert {
        ".".join(name.split(".")[:2]) for name in names if name.startswith("backbone")
    } == others


def test_the_cascade_is_the_sum_of_its_stages() -> None:
    """Each stage has its own blocks, query map and decoder; the masks of one do not move when
    another stage changes."""
    model = build({}).eval()
    images, text = torch.randn(1, 3, 48, 64), torch.randn(3, 32)
    with torch.inference_mode():
        before = model.stage_masks(images, text)
        torch.testing.assert_close(
            model(images, text), before.stages[0] + before.stages[1] + before.stages[2]
        )
        model.queries[1].weight.zero_()
        model.decoders[1].mask_attention.key.weight.zero_()
        model.backbone.taps.matrices[3:].zero_()  # blocks 9 to 11
        after = model.stage_masks(images, text)
    assert [
        torch.equal(old, new) for old, new in zip(before.stages, after.stages, strict=True)
    ] == [True, False, True]


def test_shared_queries_are_one_map() -> None:
    assert len(build({}).queries) == 3
    assert len(build({"queries": "shared"}).queries) == 1


def test_projections_from_clip_are_copies() -> None:
    backbone = build({"projection": {"init": "clip"}}).backbone
    assert torch.equal(backbone.taps.matrices[0], backbone.tower.visual.proj)
    assert torch.equal(backbone.taps.norms[0].weight, backbone.tower.visual.ln_post.weight)
    assert all(torch.equal(matrix, backbone.taps.matrices[0]) for matrix in backbone.taps.matrices)
    with torch.no_grad():
        backbone.tower.visual.proj.zero_()
        backbone.tower.visual.ln_post.weight.zero_()
    # copies, not the same tensors
    assert bool(backbone.taps.matrices.any()) and bool(backbone.taps.norms[0].weight.any())


def test_small_constants_of_the_norms() -> None:
    clip = load_clip(config_from_dict(ModelConfig, TINY_MODEL).clip)
    clip.visual.ln_post.eps = 1e-3
    config = config_from_dict(ModelConfig, {**TINY_MODEL, "projection": {"init": "clip"}})
    backbone = build_segmenter(config, clip).backbone
    assert backbone.prompt_norm.eps == 1e-6  # not PyTorch's 1e-5
    # a copy of CLIP's norm is one in this too
    assert {norm.eps for norm in backbone.taps.norms} == {1e-3}


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
    assert torch.equal(first.layers[0].attention.key.weight, first.mask_attention.key.weight)
    assert not torch.equal(first.mask_attention.query.weight, second.mask_attention.query.weight)


def test_drop_path_skips_blocks_in_training_only() -> None:
    model = build({"drop_path": 0.9, "prompts": {"tokens": 3, "dropout": 0.0}})
    images = torch.randn(2, 3, 64, 64)
    plain = build({"prompts": {"tokens": 3, "dropout": 0.0}}).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(
            model.eval().features(images, [12]).patches[12],
            plain.features(images, [12]).patches[12],
        )
        assert not torch.equal(
            model.train().features(images, [12]).patches[12],
            plain.features(images, [12]).patches[12],
        )


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
    query, key = (
        attention.query(queries).unflatten(-1, (4, 8)),
        attention.key(patches).unflatten(-1, (4, 8)),
    )
    expected = torch.einsum("bchd,bnhd->bhcn", query, key).mean(dim=1) / 8**0.5
    torch.testing.assert_close(
        attention.mask_logits(queries, patches), expected, rtol=1e-5, atol=1e-6
    )


def test_similarities_stay_float32_under_autocast() -> None:
    attention = MaskAttention(32, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            attention.mask_logits(torch.randn(1, 5, 32), torch.randn(1, 9, 32)).dtype
            == torch.float32
        )


def test_logits_stay_float32_under_autocast() -> None:
    model, images, text = build({}).eval(), torch.randn(1, 3, 48, 64), torch.randn(3, 32)
    with torch.inference_mode():
        exact = model(images, text)
        with torch.autocast("cpu", torch.bfloat16):
            features, logits = model.features(images), model(images, text.bfloat16())
    assert (
        logits.dtype
        == features.class_token.dtype
        == features.patches[6].dtype
        == features.patches[12].dtype
        == torch.float32
    )
    # the rest does use bfloat16
    assert 0 < float((logits - exact).abs().max()) < 0.1 * float(exact.abs().max())


def test_relation_descriptor() -> None:
    result = relation_descriptor(torch.tensor([[2.0, 3.0]]), torch.tensor([[5.0, 7.0], [1.0, 1.0]]))
    assert result.tolist() == [[[10.0, 21.0, 5.0, 7.0], [2.0, 3.0, 1.0, 1.0]]]


@pytest.mark.parametrize(
    ("blocks", "sigma", "weights"),
    [
        (3, 1.0, [0.1353, 0.6065, 1.0]),  # the paper's Table 17
        (2, 1.0, [0.6065, 1.0]),
        (3, 0.8, [0.0439, 0.4578, 1.0]),  # exp(-4 / 1.28), exp(-1 / 1.28)
        (3, 1.2, [0.2494, 0.7066, 1.0]),  # exp(-4 / 2.88), exp(-1 / 2.88)
        (3, 2.0, [0.6065, 0.8825, 1.0]),  # wider
        (1, 1.0, [1.0]),  # the last block always counts in full
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


def test_concatenation_by_hand() -> None:
    maps = torch.randn(3, 2, 5, 8).unbind()
    join = build_aggregation(AggregationConfig("concat"), 3, 8)
    parts = join.linear.weight.split(8, dim=1)  # one (D, D) matrix per block, first to last
    expected = (
        sum(feature @ part.T for feature, part in zip(maps, parts, strict=True)) + join.linear.bias
    )
    torch.testing.assert_close(join(maps), expected)


def test_block_attention_by_hand() -> None:
    """Each patch attends over its own three maps, in 8 heads; the result is the mean over the
    maps."""
    maps = torch.randn(3, 2, 5, 16).unbind()
    attend = build_aggregation(AggregationConfig("attention"), 3, 16)
    tokens = torch.stack(maps, dim=2)  # (B, N, d, D)
    query, key, value = F.linear(
        tokens, attend.attention.in_proj_weight, attend.attention.in_proj_bias
    ).chunk(3, dim=-1)
    heads = [part.unflatten(-1, (8, 2)) for part in (query, key, value)]
    shares = torch.einsum("bnlhe,bnmhe->bnhlm", heads[0], heads[1]).div(2**0.5).softmax(dim=-1)
    mixed = torch.einsum("bnhlm,bnmhe->bnlhe", shares, heads[2]).flatten(-2)
    torch.testing.assert_close(
        attend(maps), attend.attention.out_proj(mixed).mean(dim=2), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "clip": {**TINY_MODEL["clip"], "architecture": {**TINY_CLIP, "embed_dim": 36}},
                "aggregation": {"kind": "attention"},
            },
            "width 36",
        ),
        ({"stages": [[6], [13]]}, "block 13, but tiny has blocks 1 to 12"),
        ({"decoder": {"heads": 5}}, "heads must divide the joint width 32, got 5"),
    ],
)
def test_compositions_that_cannot_be_built(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(changes)


def test_features_of_too_few_blocks() -> None:
    model = build({}).eval()
    with pytest.raises(
        ValueError, match=r"hold blocks \[9, 12\], the stages need \[6, 7, 8, 10, 11\] too"
    ):
        model.decode(model.features(torch.zeros(1, 3, 64, 64), [9, 12]), torch.zeros(2, 32))


@pytest.mark.parametrize("shape", [(5, 31), (32,), (0, 32)])
def test_text_of_another_width(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"text embeddings must have shape \(classes, 32\)"):
        build({})(torch.zeros(1, 3, 64, 64), torch.zeros(shape))
