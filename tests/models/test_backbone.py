"""Towers: equal to open_clip's own output, any image size, any block, prompts of every kind."""

from __future__ import annotations

import copy
import math
from typing import Any

import open_clip
import pytest
import torch
from torch.nn import functional as F

from cascade_clip.config import ClipConfig, ModelConfig, PromptConfig
from cascade_clip.config.serialization import config_from_dict
from cascade_clip.encoders.clip import load_clip
from cascade_clip.encoders.positions import MOST_GRIDS, PositionEmbedding, resize_positions
from cascade_clip.models.builder import build_segmenter
from cascade_clip.models.segmenter import Segmenter


def shallow_tower(name: str, **vision: Any) -> dict[str, Any]:
    """The open_clip configuration of a model with two blocks instead of all: width, patch, heads
    and pooling are its own."""
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
    """With prompts off, at the native size: the image embedding, and the patch tokens after the
    last norm and projection."""
    clip = ClipConfig(name="tower", weights="random", architecture=TOWERS[name], tokenizer=False)
    model = build_segmenter(
        config_from_dict(ModelConfig, {**PLAIN, "stages": [[2]], "clip": vars(clip)})
    ).eval()
    own = load_clip(clip).visual  # random weights are the same each time
    own.output_tokens = True
    images = torch.randn(1, 3, *own.image_size)
    with torch.inference_mode():
        pooled, tokens = own(images)
        features = model.features(images, [2])
        normed = own.ln_post(tokens) if own.final_ln_after_pool else tokens
    torch.testing.assert_close(features.class_token, F.normalize(pooled, dim=-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        features.patches[2], F.normalize(normed @ own.proj, dim=-1), rtol=0, atol=1e-5
    )


@pytest.fixture(scope="module")
def siglip_clip() -> ClipConfig:
    """SigLIP, whose text side is not used, with a text tower of one layer."""
    settings = open_clip.get_model_config("ViT-B-16-SigLIP")
    assert settings is not None
    text = {**settings["text_cfg"], "layers": 1, "width": 64, "heads": 1, "vocab_size": 8}
    architecture = {**settings, "text_cfg": text}
    return ClipConfig("siglip", "random", architecture=architecture, tokenizer=False)


@pytest.fixture(scope="module")
def siglip(siglip_clip: ClipConfig) -> Segmenter:
    config = config_from_dict(
        ModelConfig, {**PLAIN, "clip": siglip_clip, "prompts": {"kind": "deep", "tokens": 2}}
    )
    return build_segmenter(config).eval()


def test_a_timm_trunk_equals_open_clip(siglip: Segmenter, siglip_clip: ClipConfig) -> None:
    """SigLIP has no class token: g is the tower's own pooled embedding, patches are the tokens
    after its last norm."""
    own = load_clip(siglip_clip).visual
    images = torch.randn(1, 3, 224, 224)
    backbone = copy.copy(siglip.backbone)
    backbone.prompts, backbone.prompt_norm = None, None
    with torch.inference_mode():
        features = backbone(images, [12])
        tokens = own.trunk.forward_features(images)
        pooled = own(images)
    torch.testing.assert_close(features.class_token, F.normalize(pooled, dim=-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.patches[12], F.normalize(tokens, dim=-1), rtol=0, atol=1e-5)


def test_a_timm_trunk_with_another_grid(siglip: Segmenter) -> None:
    """Its positions are resized as any tower's, and patches stand where the image has them."""
    images = torch.zeros(1, 3, 40, 64)
    images[:, :, 16:32, 48:64] = 3.0  # row 1, column 3
    with torch.inference_mode():
        plain, other = (
            siglip.features(batch, [1], projected=False)
            for batch in (torch.zeros(1, 3, 40, 64), images)
        )
    assert plain.grid == (3, 4)
    assert int((plain.patches[1] - other.patches[1]).norm(dim=-1).argmax()) == 1 * 4 + 3


def timm_tower(name: str) -> dict[str, Any]:
    vision = {
        "image_size": 160,
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
    }
    return {
        "embed_dim": 32,
        "vision_cfg": vision,
        "text_cfg": shallow_tower("ViT-B-32")["text_cfg"],
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        # a class token of its own
        ("test_vit", "1 prefix tokens are not supported; choose a SigLIP model"),
        ("test_vit_relpos", "no learned position embedding"),
        ("test_resnet", "not a plain ViT; choose one such as"),
    ],
)
def test_timm_trunks_that_are_not_supported(name: str, message: str) -> None:
    clip = {"name": name, "weights": "random", "architecture": timm_tower(name), "tokenizer": False}
    with pytest.raises(ValueError, match=message):
        build_segmenter(config_from_dict(ModelConfig, {**PLAIN, "stages": [[2]], "clip": clip}))


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
        torch.testing.assert_close(
            model.features(images).class_token, F.normalize(own(images), dim=-1), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("kind", ["CoCa", "ResNet"])
def test_towers_that_are_no_plain_vit(kind: str) -> None:
    settings = shallow_tower("ViT-B-32", attentional_pool=True, attn_pooler_heads=8)
    if kind == "ResNet":
        settings["vision_cfg"] = {
            "image_size": 64,
            "layers": [1, 1, 1, 1],
            "width": 16,
            "patch_size": None,
        }
    clip = {"name": "other", "weights": "random", "architecture": settings, "tokenizer": False}
    with pytest.raises(ValueError, match="plain ViT"):
        build_segmenter(config_from_dict(ModelConfig, {**PLAIN, "stages": [[2]], "clip": clip}))


def test_axes_are_not_swapped(tiny_model: Segmenter) -> None:
    """Only one patch differs from the rest; its row and column are found in the features of a wide
    image."""
    images = torch.zeros(1, 3, 48, 128)
    changed = images.clone()
    changed[:, :, 16:32, 96:112] = 3.0  # row 1, column 6
    with torch.inference_mode():
        plain, other = (
            tiny_model.features(image, [1], projected=False) for image in (images, changed)
        )
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


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 15), (7, 200)])
def test_images_smaller_than_a_few_patches(tiny_model: Segmenter, size: tuple[int, int]) -> None:
    with torch.inference_mode():
        features = tiny_model.features(torch.randn(1, 3, *size))
    rows, columns = -(-size[0] // 16), -(-size[1] // 16)
    assert features.grid == (rows, columns)
    assert all(patches.shape == (1, rows * columns, 32) for patches in features.patches.values())


def test_turning_the_image_turns_the_grid(tiny_model: Segmenter) -> None:
    """Rows and columns play the same part: what is asked of a tall image is asked of a wide one."""
    wide = torch.randn(1, 3, 32, 96)
    with torch.inference_mode():
        assert tiny_model.features(wide).grid == (2, 6)
        assert tiny_model.features(wide.transpose(2, 3)).grid == (6, 2)


def test_hidden_states_are_those_of_the_blocks(tiny_model: Segmenter) -> None:
    """Any block, tapped or not; asking for some changes nothing in the others; unit vectors once
    projected."""
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        every = tiny_model.features(images, range(1, 13), projected=False)
        one = tiny_model.features(images, [3], projected=False)
        projected = tiny_model.features(images, [6, 12])
    assert sorted(every.patches) == list(range(1, 13))
    assert torch.equal(one.patches[3], every.patches[3]) and one.patches[3].shape == (2, 16, 64)
    assert sorted(projected.patches) == [6, 12]
    for rows in (*projected.patches.values(), projected.class_token):
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(rows.shape[:-1]))


def test_the_image_embedding_is_always_that_of_the_last_block(tiny_model: Segmenter) -> None:
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        asked = [tiny_model.features(images, blocks).class_token for blocks in ([12], [6], [])]
        asked.append(tiny_model.features(images, [1], projected=False).class_token)
    assert all(torch.equal(asked[0], other) for other in asked[1:])


@pytest.mark.parametrize(
    ("blocks", "projected", "message"),
    [
        ([0], False, r"blocks \[0\] do not exist: the tower has 1 to 12"),
        ([13], True, r"blocks \[13\] do not exist"),
        (
            [2, 3],
            True,
            r"blocks \[2, 3\] have no projection \(\[6, 7, 8, 9, 10, 11, 12\] do\)",
        ),
    ],
)
def test_blocks_that_cannot_be_read(
    tiny_model: Segmenter, blocks: list[int], projected: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model.features(torch.zeros(1, 3, 64, 64), blocks, projected=projected)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 0, 64)])
def test_images_of_another_shape(tiny_model: Segmenter, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, H, W\)"):
        tiny_model.features(torch.zeros(shape))


@pytest.mark.parametrize(
    ("old", "table", "new", "expected"),
    [
        # bilinear, pixel centres aligned; bicubic would leave the range
        ((1, 2), [0, 4], (1, 4), [0, 1, 3, 4]),
        ((2, 1), [0, 4], (4, 1), [0, 1, 3, 4]),
        ((2, 3), [0, 0, 0, 6, 6, 6], (2, 2), [0, 0, 6, 6]),  # rows stay rows
        ((1, 4), [0, 0, 8, 8], (1, 2), [0, 8]),
        # no antialias: between samples nothing is averaged
        ((1, 6), [9, 0, 9, 9, 0, 9], (1, 2), [0, 0]),
    ],
)
def test_resizing_by_hand(
    old: tuple[int, int], table: list[float], new: tuple[int, int], expected: list[float]
) -> None:
    assert resize_positions(torch.tensor(table).float()[:, None], old, new)[
        :, 0
    ].tolist() == pytest.approx(expected)


def test_positions_are_resized_once_per_grid() -> None:
    embedding = PositionEmbedding(torch.randn(16, 8), (4, 4))
    assert embedding((4, 4)) is embedding.positions
    with torch.inference_mode():
        found = embedding((5, 3))
    assert embedding((5, 3)) is found
    torch.testing.assert_close(found, resize_positions(embedding.positions, (4, 4), (5, 3)))
    # filled under inference mode, used in training
    (torch.ones(15, 8, requires_grad=True) * found).sum().backward()
    embedding.load_state_dict({"positions": torch.zeros(16, 8)})
    assert float(embedding((5, 3)).abs().max()) == 0  # new weights, new values


def test_positions_are_kept_for_a_few_grids_alone() -> None:
    """Pictures of ever new sizes must not fill the memory."""
    embedding = PositionEmbedding(torch.randn(16, 8), (4, 4))
    found = [embedding((5, columns)) for columns in range(1, 31)]
    assert [key[0] for key in embedding._cache] == [
        (5, columns) for columns in range(31 - MOST_GRIDS, 31)
    ]
    assert embedding((5, 30)) is found[-1]
    assert embedding((5, 1)) is not found[0]
    torch.testing.assert_close(embedding((5, 1)), found[0])


def test_a_model_made_under_inference_mode_works() -> None:
    """A user may load inside `torch.inference_mode()`; parameters made there do not say when they
    change."""
    with torch.inference_mode():
        embedding = PositionEmbedding(torch.randn(16, 8), (4, 4))
        first = embedding((5, 3))
        embedding.load_state_dict({"positions": torch.zeros(16, 8)})
        assert float(embedding((5, 3)).abs().max()) == 0 != float(first.abs().max())


def test_positions_are_resized_once_at_loading_too() -> None:
    """Native grid -> the grid of the settings -> the grid of the image: two steps, as the released
    program does."""
    model = build_segmenter(tiny_config(position_grid=(8, 6)))
    native = load_clip(tiny_config().clip).visual.positional_embedding.detach()
    embedding = model.backbone.tower.position_embedding
    assert embedding.grid == (8, 6)
    torch.testing.assert_close(embedding((8, 6)), resize_positions(native[1:], (4, 4), (8, 6)))
    torch.testing.assert_close(
        embedding((3, 5)),
        resize_positions(resize_positions(native[1:], (4, 4), (8, 6)), (8, 6), (3, 5)),
    )


def test_a_clip_carries_one_model() -> None:
    clip = load_clip(tiny_config().clip)
    build_segmenter(tiny_config(), clip)
    with pytest.raises(ValueError, match="carries a model already; load it again"):
        build_segmenter(tiny_config(), clip)


def test_deep_prompts_are_replaced_before_every_block(tiny_model: Segmenter) -> None:
    """Against a loop written out: what becomes of a depth's prompts behind its block is dropped."""
    backbone, images = tiny_model.backbone, torch.randn(1, 3, 48, 64)
    with torch.inference_mode():
        class_token, patches = backbone.tower.embed(images)
        for index, block in enumerate(backbone.tower.blocks):
            tokens = block(
                torch.cat(
                    [
                        class_token,
                        backbone.prompts.projection(backbone.prompts.tokens[index])[None],
                        patches,
                    ],
                    dim=1,
                )
            )
            class_token, patches = tokens[:, :1], tokens[:, 4:]
        found = backbone(images, [12], projected=False).patches[12]
    torch.testing.assert_close(found, patches)


def test_shallow_prompts_are_carried_on(tiny_model: Segmenter) -> None:
    """Against a loop written out: prompts enter once, behind the class token, and go through all
    blocks."""
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
    prompts = build_segmenter(
        tiny_config(prompts=PromptConfig(tokens=3, dropout=0.5))
    ).backbone.prompts.train()
    first, second = prompts.before(2, 2), prompts.before(3, 2)
    assert not torch.equal(first[0] == 0, first[1] == 0)
    assert not torch.equal(first == 0, second == 0)
    prompts.eval()
    assert torch.equal(*prompts.before(2, 2))


def test_initial_prompts_and_their_map() -> None:
    prompts = build_segmenter(tiny_config(prompts=PromptConfig(tokens=40))).backbone.prompts
    bound = math.sqrt(6 / (3 * 16**2 + 64))
    assert prompts.tokens.shape == (12, 40, 64)
    assert prompts.projection.weight.shape == (64, 64)  # one map for all depths
    tokens = prompts.tokens.detach()
    assert bound * 0.98 < float(tokens.abs().max()) <= bound
    assert float(tokens.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert float(prompts.projection.weight.detach().std()) == pytest.approx(
        math.sqrt(2 / 64), rel=0.06
    )


def tiny_config(**changes: Any) -> ModelConfig:
    import dataclasses

    from tiny_models import TINY_MODEL

    return dataclasses.replace(config_from_dict(ModelConfig, TINY_MODEL), **changes)


@pytest.fixture(scope="module")
def tiny_model() -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(tiny_config()).eval()
