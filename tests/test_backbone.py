"""Towers: equal to open_clip's own output, any image size, any block, prompts of every kind."""

from __future__ import annotations

import copy
import math
from typing import Any

import open_clip
import pytest
import torch
from torch.nn import functional as F

from cascade_clip.backbone import PositionEmbedding, resize_positions
from cascade_clip.clip import load_clip
from cascade_clip.config import ClipConfig, ModelConfig, PromptConfig
from cascade_clip.model import Segmenter, build_segmenter
from cascade_clip.plain_values import config_from_dict


def shallow_tower(name: str, **vision: Any) -> dict[str, Any]:
    """The open_clip configuration of a model with two blocks instead of all: width, patch, heads and pooling are its own."""
    settings = copy.deepcopy(open_clip.get_model_config(name))
    settings["vision_cfg"] |= {"layers": 2, **vision}
    settings["text_cfg"] |= {"layers": 1}
    return dict(settings)


PLAIN = {"prompts": {"kind": "none"}, "class_embedding_twice": False, "position_grid": None}
TOWERS = {
    "ViT-B-16-quickgelu": shallow_tower("ViT-B-16-quickgelu"),
    "ViT-B-32": shallow_tower("ViT-B-32"),
    "ViT-L-14": shallow_tower("ViT-L-14"),
    "average pooling": shallow_tower("ViT-B-32", pool_type="avg"),
    "norm after pooling": shallow_tower("ViT-B-32", pool_type="avg", final_ln_after_pool=True),
}


@pytest.mark.parametrize("name", TOWERS)
def test_plain_output_equals_open_clip(name: str) -> None:
    """With prompts off, at the native size: the image embedding, and the patch tokens after the last norm and projection."""
    clip = ClipConfig(name="tower", weights="random", architecture=TOWERS[name], tokenizer=False)
    model = build_segmenter(config_from_dict(ModelConfig, {**PLAIN, "stages": [[2]], "clip": vars(clip)})).eval()
    own = load_clip(clip).visual  # random weights are the same each time
    own.output_tokens = True
    images = torch.randn(1, 3, *own.image_size)
    with torch.inference_mode():
        pooled, tokens = own(images)
        features = model.features(images, [2])
        normed = own.ln_post(tokens) if own.final_ln_after_pool else tokens
    torch.testing.assert_close(features.class_token, F.normalize(pooled, dim=-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.patches[2], F.normalize(normed @ own.proj, dim=-1), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def siglip() -> Segmenter:
    clip = {"name": "ViT-B-16-SigLIP", "weights": "random", "tokenizer": False}
    config = config_from_dict(ModelConfig, {**PLAIN, "clip": clip, "prompts": {"kind": "deep", "tokens": 2}})
    return build_segmenter(config).eval()


def test_a_timm_trunk_equals_open_clip(siglip: Segmenter) -> None:
    """SigLIP has no class token: g is the tower's own pooled embedding, patches are the tokens after its last norm."""
    own = load_clip(ClipConfig(name="ViT-B-16-SigLIP", weights="random", tokenizer=False)).visual
    images = torch.randn(1, 3, 224, 224)
    backbone = copy.copy(siglip.backbone)
    backbone.prompts, backbone.prompt_norm = None, None
    with torch.inference_mode():
        features = backbone(images, [12])
        tokens = own.trunk.forward_features(images)
        pooled = own(images)
    torch.testing.assert_close(features.class_token, F.normalize(pooled, dim=-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.patches[12], F.normalize(tokens, dim=-1), rtol=0, atol=1e-5)


def test_a_cascade_on_a_timm_trunk(siglip: Segmenter) -> None:
    with torch.inference_mode():
        logits = siglip(torch.randn(1, 3, 64, 96), torch.randn(5, 768))
    assert logits.shape == (1, 5, 4, 6)
    assert bool(torch.isfinite(logits).all())


@pytest.mark.slow
def test_the_default_tower_at_its_real_size() -> None:
    clip = ClipConfig(weights="random", tokenizer=False)
    model = build_segmenter(config_from_dict(ModelConfig, {**PLAIN, "clip": vars(clip)})).eval()
    own = load_clip(clip).visual
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(model.features(images).class_token, F.normalize(own(images), dim=-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["CoCa", "ResNet"])
def test_towers_that_are_no_plain_vit(kind: str) -> None:
    settings = shallow_tower("ViT-B-32", attentional_pool=True, attn_pooler_heads=8)
    if kind == "ResNet":
        settings["vision_cfg"] = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    clip = {"name": "other", "weights": "random", "architecture": settings, "tokenizer": False}
    with pytest.raises(ValueError, match="plain ViT"):
        build_segmenter(config_from_dict(ModelConfig, {**PLAIN, "stages": [[2]], "clip": clip}))


def test_axes_are_not_swapped(tiny_model: Segmenter) -> None:
    """Only one patch differs from the rest; its row and column are found in the features of a wide image."""
    images = torch.zeros(1, 3, 48, 128)
    changed = images.clone()
    changed[:, :, 16:32, 96:112] = 3.0  # row 1, column 6
    with torch.inference_mode():
        plain, other = (tiny_model.features(image, [1], projected=False) for image in (images, changed))
    assert plain.grid == (3, 8)
    difference = (plain.patches[1] - other.patches[1]).norm(dim=-1).unflatten(1, plain.grid)[0]
    assert divmod(int(difference.argmax()), 8) == (1, 6)


def test_sides_that_the_patch_does_not_divide_are_padded(tiny_model: Segmenter) -> None:
    images = torch.randn(1, 3, 50, 70)
    padded = F.pad(images, (0, 10, 0, 14))
    with torch.inference_mode():
        first, second = tiny_model.features(images), tiny_model.features(padded)
    assert first.grid == second.grid == (4, 5)
    assert all(torch.equal(first.patches[block], second.patches[block]) for block in first.patches)


@pytest.mark.parametrize(
    ("blocks", "projected", "message"),
    [
        ([0], False, r"blocks \[0\] do not exist: this tower has blocks 1 to 12"),
        ([13], True, r"blocks \[13\] do not exist"),
        ([2, 3], True, r"blocks \[2, 3\] have no projection \(those of \[6, 7, 8, 9, 10, 11, 12\] do\)"),
    ],
)
def test_blocks_that_cannot_be_read(tiny_model: Segmenter, blocks: list[int], projected: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model.features(torch.zeros(1, 3, 64, 64), blocks, projected=projected)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 0, 64)])
def test_images_of_another_shape(tiny_model: Segmenter, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, H, W\)"):
        tiny_model.features(torch.zeros(shape))


def test_positions_are_resized_once_per_grid() -> None:
    embedding = PositionEmbedding(torch.randn(16, 8), (4, 4))
    assert embedding((4, 4)) is embedding.positions
    with torch.inference_mode():
        found = embedding((5, 3))
    assert embedding((5, 3)) is found
    torch.testing.assert_close(found, resize_positions(embedding.positions, (4, 4), (5, 3)))
    (torch.ones(15, 8, requires_grad=True) * found).sum().backward()  # filled under inference mode, used in training
    embedding.load_state_dict({"positions": torch.zeros(16, 8)})
    assert float(embedding((5, 3)).abs().max()) == 0  # new weights, new values


def test_shallow_prompts_are_carried_on(tiny_model: Segmenter) -> None:
    """Against a loop written out: prompts enter once, behind the class token, and go through all blocks."""
    backbone = copy.deepcopy(tiny_model.backbone)
    backbone.prompts.tokens = torch.nn.Parameter(backbone.prompts.tokens[:1].detach().clone())
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        class_token, patches = backbone.tower.embed(images)
        prompts = backbone.prompts.projection(backbone.prompts.tokens[0]).expand(2, -1, -1)
        tokens = torch.cat([class_token, prompts, patches], dim=1)
        for block in backbone.tower.blocks:
            tokens = block(tokens)
        found = backbone(images, [12], projected=False).patches[12]
    torch.testing.assert_close(found, tokens[:, 4:])


def test_dropout_draws_a_fresh_mask_for_every_image_and_block() -> None:
    prompts = build_segmenter(tiny_config(prompts=PromptConfig(tokens=3, dropout=0.5))).backbone.prompts.train()
    first, second = prompts.before(2, 2), prompts.before(3, 2)
    assert not torch.equal(first[0] == 0, first[1] == 0)
    assert not torch.equal(first == 0, second == 0)
    prompts.eval()
    assert torch.equal(*prompts.before(2, 2))


def test_initial_prompts_and_their_map() -> None:
    prompts = build_segmenter(tiny_config(prompts=PromptConfig(tokens=40))).backbone.prompts
    bound = math.sqrt(6 / (3 * 16**2 + 64))
    assert prompts.tokens.shape == (12, 40, 64)
    assert bound * 0.98 < float(prompts.tokens.abs().max()) <= bound
    assert float(prompts.tokens.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert float(prompts.projection.weight.std()) == pytest.approx(math.sqrt(2 / 64), rel=0.06)


def tiny_config(**changes: Any) -> ModelConfig:
    import dataclasses

    from conftest import TINY_MODEL

    return dataclasses.replace(config_from_dict(ModelConfig, TINY_MODEL), **changes)


@pytest.fixture(scope="module")
def tiny_model() -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(tiny_config()).eval()
