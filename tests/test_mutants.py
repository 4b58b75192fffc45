"""Hand-computed cases of the numerical core: each was missing when its code was changed on purpose
(tests/trust/mutation.py)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_clip.config import AggregationConfig, DecoderConfig, LossConfig
from cascade_clip.evaluation.metrics import ConfusionMatrix
from cascade_clip.inference.class_binding import BoundClasses
from cascade_clip.inference.loading import load_predictor
from cascade_clip.inference.predictor import Predictor
from cascade_clip.inference.sliding import OTHER_PIXELS_AT_ONCE, PIXELS_AT_ONCE
from cascade_clip.inference.training_free import DEFAULT_BLOCK
from cascade_clip.losses.mask_losses import mask_loss
from cascade_clip.models.aggregation import (
    BlockAttention,
    Concatenation,
    LastBlock,
    WeightedSum,
    build_aggregation,
    gaussian_weights,
)
from cascade_clip.models.decoders.similarity import Similarity
from cascade_clip.models.decoders.transformer import (
    CrossAttention,
    Decoder,
    DecoderLayer,
    MaskAttention,
)
from cascade_clip.ops.devices import autocast_type, find_device
from cascade_clip.ops.resize import resize_image


def maps(count: int, shape: tuple[int, ...] = (2, 3, 16)) -> list[Tensor]:
    """Feature maps with fixed random values."""
    return list(torch.randn(count, *shape, generator=torch.Generator().manual_seed(count)))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention written out, head by head: (n, D) from (n, D), (m, D), (m, D)."""
    width = query.shape[-1] // heads
    parts = []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = query[:, own] @ key[:, own].T / math.sqrt(width)
        parts.append(scores.softmax(dim=-1) @ value[:, own])
    return torch.cat(parts, dim=-1)


class TestAggregation:
    def test_one_block_is_returned_as_it_is(self) -> None:
        (only,) = maps(1)
        assert LastBlock()([only]) is only
        with pytest.raises(ValueError, match="too many"):
            LastBlock()([only, only])

    @pytest.mark.parametrize("trained", [True, False])
    def test_weighted_sum(self, trained: bool) -> None:
        first, second, third = maps(3)
        module = WeightedSum([2.0, -3.0, 0.5], trained=trained)
        torch.testing.assert_close(
            module([first, second, third]), 2 * first - 3 * second + 0.5 * third
        )
        assert isinstance(module.weights, nn.Parameter) is trained
        assert "weights" in module.state_dict()
        with pytest.raises(ValueError, match="shorter"):
            module([first, second])

    def test_concatenation_keeps_the_order(self) -> None:
        first, second = maps(2)
        module = Concatenation(2, 16)
        assert module.linear.weight.shape == (16, 32)
        expected = (
            first @ module.linear.weight[:, :16].T
            + second @ module.linear.weight[:, 16:].T
            + module.linear.bias
        )
        torch.testing.assert_close(module([first, second]), expected)

    @pytest.mark.parametrize("heads", [1, 4])
    def test_block_attention_mixes_the_blocks_of_a_patch(self, heads: int) -> None:
        features = maps(3)
        torch.manual_seed(0)
        module = BlockAttention(16, heads)
        nn.init.normal_(module.attention.in_proj_bias)
        query, key, value = module.attention.in_proj_weight.chunk(3)
        biases = module.attention.in_proj_bias.chunk(3)
        found = module(features)
        assert found.shape == (2, 3, 16)
        for image, patch in ((0, 0), (0, 2), (1, 1)):
            tokens = torch.stack([block[image, patch] for block in features])  # (d, D)
            parts = [
                tokens @ weight.T + bias
                for weight, bias in zip((query, key, value), biases, strict=True)
            ]
            mixed = module.attention.out_proj(attend(*parts, heads))
            torch.testing.assert_close(found[image, patch], mixed.mean(dim=0))

    def test_heads_must_divide_the_width(self) -> None:
        assert BlockAttention(24).attention.num_heads == 8
        with pytest.raises(ValueError, match="8 heads must divide the joint width 20"):
            BlockAttention(20)

    def test_gaussian_weights(self) -> None:
        assert gaussian_weights(3, 1.0) == pytest.approx([math.exp(-2), math.exp(-0.5), 1])
        assert gaussian_weights(4, 3.0) == pytest.approx(
            [math.exp(-0.5), math.exp(-4 / 18), math.exp(-1 / 18), 1]
        )

    @pytest.mark.parametrize("trained", [True, False])
    def test_kinds(self, trained: bool) -> None:
        def built(kind: str, blocks: int = 3) -> nn.Module:
            return build_aggregation(
                AggregationConfig(kind=kind, sigma=2.0, trained=trained), blocks, 16
            )  # type: ignore[arg-type]

        assert all(
            isinstance(built(kind, 1), LastBlock) for kind in ("nga", "sum", "concat", "attention")
        )
        assert built("nga", 2).weights.tolist() == pytest.approx([math.exp(-1 / 8), 1])
        assert built("nga").weights.tolist() == pytest.approx([math.exp(-0.5), math.exp(-1 / 8), 1])
        assert built("sum").weights.tolist() == [1, 1, 1]
        assert [isinstance(built(kind).weights, nn.Parameter) for kind in ("nga", "sum")] == [
            trained,
            trained,
        ]
        assert built("concat").linear.weight.shape == (16, 48)
        assert isinstance(built("attention"), BlockAttention)


class TestDecoder:
    QUERIES, PATCHES = (
        torch.randn(2, count, 16, generator=torch.Generator().manual_seed(count))
        for count in (5, 7)
    )

    def test_mask_logits_are_the_mean_over_heads(self) -> None:
        module = MaskAttention(16, 4)
        query, key = module.query(self.QUERIES), module.key(self.PATCHES)
        heads = [
            query[..., part : part + 4] @ key[..., part : part + 4].transpose(1, 2) / 2
            for part in range(0, 16, 4)
        ]
        torch.testing.assert_close(module.mask_logits(self.QUERIES, self.PATCHES), sum(heads) / 4)

    def test_mask_logits_are_float32_under_autocast(self) -> None:
        module = MaskAttention(16, 4)
        with torch.autocast("cpu", torch.bfloat16):
            found = module.mask_logits(self.QUERIES, self.PATCHES)
            query, key = module.query(self.QUERIES), module.key(self.PATCHES)
        assert found.dtype == torch.float32
        torch.testing.assert_close(
            found, query.float() @ key.float().transpose(1, 2) / 8, rtol=1e-5, atol=1e-6
        )

    @pytest.mark.parametrize("heads", [3, 5])
    def test_heads_must_divide_the_width(self, heads: int) -> None:
        with pytest.raises(
            ValueError, match=f"model.decoder.heads must divide the joint width 16, got {heads}"
        ):
            MaskAttention(16, heads)

    def test_cross_attention(self) -> None:
        module = CrossAttention(16, 2, dropout=0.0)
        found = module(self.QUERIES, self.PATCHES)
        for image in (0, 1):
            query, key, value = (
                module.query(self.QUERIES[image]),
                module.key(self.PATCHES[image]),
                module.value(self.PATCHES[image]),
            )
            torch.testing.assert_close(found[image], module.output(attend(query, key, value, 2)))

    def test_dropout_only_in_training(self) -> None:
        module = CrossAttention(16, 2, dropout=0.5)
        assert not torch.equal(
            module(self.QUERIES, self.PATCHES), module(self.QUERIES, self.PATCHES)
        )
        without = CrossAttention(16, 2, dropout=0.0)
        without.load_state_dict(module.state_dict())
        assert torch.equal(
            module.eval()(self.QUERIES, self.PATCHES), without(self.QUERIES, self.PATCHES)
        )

    def test_layer(self) -> None:
        layer = DecoderLayer(
            16, DecoderConfig(layers=2, heads=4, feedforward=24, dropout=0.25)
        ).eval()
        assert (
            layer.expand.out_features,
            layer.dropout.p,
            layer.attention.dropout,
            layer.attention.heads,
        ) == (24, 0.25, 0.25, 4)
        with torch.no_grad():
            layer.attention_norm.weight.uniform_(0.5, 2)
            layer.feedforward_norm.bias.uniform_(-1, 1)
        first = layer.attention_norm(self.QUERIES + layer.attention(self.QUERIES, self.PATCHES))
        second = first + layer.contract(layer.expand(first).clamp(min=0))
        torch.testing.assert_close(
            layer(self.QUERIES, self.PATCHES), layer.feedforward_norm(second)
        )

    def test_similarity_is_the_log_odds_of_the_softmax(self) -> None:
        found = Similarity(10.0)(self.QUERIES, self.PATCHES, (1, 7))
        cosines = torch.stack(
            [
                F.cosine_similarity(self.QUERIES[:, row, None], self.PATCHES, dim=-1)
                for row in range(5)
            ],
            dim=1,
        )
        shares = (10 * cosines.double()).softmax(dim=1)  # (B, C, N)
        torch.testing.assert_close(
            found.double(), (shares / (1 - shares)).log(), rtol=1e-3, atol=1e-3
        )
        torch.testing.assert_close(found.sigmoid().double(), shares, rtol=1e-4, atol=1e-5)

    def test_similarity_of_one_name_is_finite(self) -> None:
        found = Similarity(100.0)(self.QUERIES[:, :1], self.PATCHES, (1, 7))
        torch.testing.assert_close(found, torch.full((2, 1, 7), -math.log(1e-6)), rtol=0.02, atol=0)

    def test_decoder_is_its_layers_and_the_mask_attention(self) -> None:
        decoder = Decoder(16, DecoderConfig(layers=3, heads=4, feedforward=24, dropout=0.0))
        first, second = decoder.layers
        assert all(
            torch.equal(one, other)
            for one, other in zip(first.parameters(), second.parameters(), strict=True)
        )
        assert first.expand.weight is not second.expand.weight
        assert torch.equal(decoder.mask_attention.query.weight, first.attention.query.weight)
        assert torch.equal(decoder.mask_attention.key.weight, first.attention.key.weight)
        assert torch.equal(decoder.mask_attention.query.bias, first.attention.query.bias)
        assert torch.equal(decoder.mask_attention.key.bias, first.attention.key.bias)
        assert decoder.mask_attention.heads == 4
        with torch.no_grad():
            second.expand.weight.mul_(2)
        refined = second(first(self.QUERIES, self.PATCHES), self.PATCHES)
        expected = decoder.mask_attention.mask_logits(refined, self.PATCHES)
        torch.testing.assert_close(decoder(self.QUERIES, self.PATCHES, (1, 7)), expected)
        assert len(Decoder(16, DecoderConfig(layers=1, heads=4)).layers) == 0


class TestLosses:
    def test_one_labelled_pixel(self) -> None:
        labels = torch.full((1, 4, 4), -1)
        labels[0, 2, 1] = 0
        config = LossConfig(focal=100.0, alpha=0.25, gamma=2.0, ignored="masked")
        found = mask_loss(torch.zeros(1, 2, 2, 2), labels, 2, config)
        assert float(found.focal) == pytest.approx(
            100 * (0.25 + 0.75) * 0.5**2 * math.log(2), rel=1e-5
        )
        assert int(found.masks) == 1


class TestMetrics:
    @pytest.mark.parametrize("kind", ["u1", "<i2", ">i2", ">u2", "<u4", ">i8", "<u8"])
    def test_whole_numbers_of_any_kind_and_byte_order(self, kind: str) -> None:
        matrix = ConfusionMatrix(3)
        matrix.update(np.array([[0, 1, 2]], dtype=kind), np.array([[2, 1, 2]], dtype=kind))
        assert matrix.matrix.tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 1]]


def plain_scores(predictor: Predictor, image: Tensor, target: BoundClasses) -> Tensor:
    """Scores (R, H, W) of a normalised image (3, H, W), window by window and class by class,
    without any chunk."""
    window, stride = predictor.settings.window, predictor.settings.stride
    total, count = torch.zeros(len(target.text), *image.shape[1:]), torch.zeros(image.shape[1:])
    starts = [
        sorted({min(start, max(side - window, 0)) for start in range(0, side, stride)})
        for side in image.shape[1:]
    ]
    for top in starts[0]:
        for left in starts[1]:
            part = image[:, top : top + window, left : left + window]
            padded = F.pad(part, (0, window - part.shape[2], 0, window - part.shape[1]))
            logits = predictor.model(padded[None], target.text)
            masks = F.interpolate(
                logits,
                scale_factor=predictor.model.patch_size,
                mode="bilinear",
                align_corners=False,
            )[0].sigmoid()
            masks = masks - (target.seen * target.calibration)[:, None, None]
            total[:, top : top + window, left : left + window] += masks[
                :, : part.shape[1], : part.shape[2]
            ]
            count[top : top + window, left : left + window] += 1
    return total / count


class TestPredictor:
    NAMES = "grass, water, hat, boots"

    @pytest.fixture(scope="class")
    def mini(self) -> Predictor:
        return load_predictor("mini", "cpu")

    @pytest.fixture(scope="class")
    def pixels(self) -> Tensor:
        return torch.randint(
            0, 256, (3, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
        )

    @pytest.mark.parametrize(
        ("size", "window", "stride"),
        [((60, 90), 32, 24), ((32, 32), 32, 24), ((20, 30), 32, 32), ((40, 24), 32, 16)],
    )
    @torch.no_grad()
    def test_scores_are_the_mean_over_windows(
        self, mini: Predictor, size: tuple[int, int], window: int, stride: int
    ) -> None:
        predictor = mini.with_settings(
            window=window, stride=stride, resize=False, window_batch=2, class_chunk=3
        )
        image = torch.randn(3, *size, generator=torch.Generator().manual_seed(size[0]))
        target = predictor.bind(self.NAMES, calibration=0.2)
        assert target.seen.any() and not target.seen.all()
        expected = plain_scores(predictor, image, target)
        torch.testing.assert_close(
            predictor.scores_of_input(image, target), expected, rtol=1e-4, atol=1e-5
        )
        found = predictor.label_map_of_input(image, target)
        assert found.labels.shape == found.scores.shape == size
        torch.testing.assert_close(found.scores, expected.amax(dim=0), rtol=1e-4, atol=1e-5)
        assert (found.labels == expected.argmax(dim=0)).float().mean() > 0.999

    def test_scores_of_another_size(self, mini: Predictor) -> None:
        predictor = mini.with_settings(window=32, stride=32, resize=False)
        image, target = (
            torch.randn(3, 32, 48, generator=torch.Generator().manual_seed(5)),
            predictor.bind(self.NAMES),
        )
        scores = predictor.scores_of_input(image, target)
        larger = F.interpolate(scores[None], size=(50, 70), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(predictor.scores_of_input(image, target, (50, 70)), larger)
        assert torch.equal(
            predictor.label_map_of_input(image, target, (50, 70)).labels, larger.argmax(dim=0)
        )
        assert (
            predictor.label_map_of_input(image, target).labels.shape
            == predictor.scores_of_input(image, target).shape[1:]
            == (32, 48)
        )

    def test_an_image_is_resized_and_normalised(self, mini: Predictor, pixels: Tensor) -> None:
        target, window = mini.bind(self.NAMES), mini.settings.window
        resized = resize_image(pixels, (window, round(90 * window / 60)))
        image = (resized.float() / 255 - 0.5) / 0.5
        expected = mini.scores_of_input(image, target, (60, 90))
        torch.testing.assert_close(mini.scores(pixels, target), expected, rtol=1e-4, atol=1e-5)
        free = mini.with_settings(resize=False)
        torch.testing.assert_close(
            free.scores(pixels, target),
            free.scores_of_input((pixels.float() / 255 - 0.5) / 0.5, target),
        )
        # never smaller than a patch
        for scale, size in ((0.5, (30, 45)), (2.0, (120, 180)), (0.1, (8, 9))):
            scaled = (resize_image(pixels, size).float() / 255 - 0.5) / 0.5
            one = mini.with_settings(resize=False, scales=(scale,)).scores(pixels, target)
            torch.testing.assert_close(
                one, free.scores_of_input(scaled, target, (60, 90)), rtol=1e-4, atol=1e-5
            )

    def test_scales_and_mirror_images_are_averaged(self, mini: Predictor, pixels: Tensor) -> None:
        target = mini.bind(self.NAMES)
        parts = [
            mini.with_settings(scales=(scale,)).scores(image, target)
            for scale in (1.0, 0.5)
            for image in (pixels, pixels.flip(-1))
        ]
        expected = (parts[0] + parts[1].flip(-1) + parts[2] + parts[3].flip(-1)) / 4
        torch.testing.assert_close(
            mini.with_settings(scales=(1.0, 0.5), flip=True).scores(pixels, target),
            expected,
            rtol=1e-4,
            atol=1e-5,
        )

    def test_the_longest_and_the_smallest_image(self, mini: Predictor) -> None:
        patch = mini.model.patch_size
        target = mini.bind(self.NAMES)
        assert mini.label_map(
            torch.zeros(3, patch, patch, dtype=torch.uint8), target
        ).labels.shape == (patch, patch)
        with pytest.raises(
            ValueError, match=f"an image of 50 x {patch - 1} pixels is smaller than one patch"
        ):
            mini.label_map(torch.zeros(3, patch - 1, 50, dtype=torch.uint8), target)

    def test_rows_that_are_held_at_once(self, mini: Predictor) -> None:
        assert PIXELS_AT_ONCE == {"cpu": 4194304} and OTHER_PIXELS_AT_ONCE == 64_000_000
        free = mini.with_settings(class_chunk=16, max_memory=0)
        assert [
            free.sliding.rows_at_once(area) for area in (1, 2**18, 2**20, 2**22 + 1, 2**30)
        ] == [
            16,
            16,
            4,
            1,
            1,
        ]
        assert [
            mini.with_settings(max_memory=64).sliding.rows_at_once(area)
            for area in (2**20, 2**21, 2**23)
        ] == [
            4,
            2,
            1,
        ]

    def test_best_rows_of_groups(self, mini: Predictor, pixels: Tensor) -> None:
        predictor = mini.with_settings(class_chunk=2)
        target = predictor.bind(self.NAMES)
        scores = predictor.scores(pixels, target)
        groups = [
            torch.tensor(flags)
            for flags in ([True, False, True, True], [False, True, False, False])
        ]
        for group, found in zip(groups, predictor.best_rows(pixels, target, groups), strict=True):
            rows = group.nonzero()[:, 0]
            assert torch.equal(found.labels, rows[scores[rows].argmax(dim=0)])
            assert torch.equal(found.scores, scores[rows].amax(dim=0))

    def test_precision(self, mini: Predictor, pixels: Tensor) -> None:
        assert (autocast_type("fp16"), autocast_type("bf16")) == (torch.float16, torch.bfloat16)
        exact, rough = (
            mini.with_settings(precision=precision).scores(pixels, mini.bind(self.NAMES))
            for precision in ("fp32", "bf16")
        )
        assert not torch.equal(exact, rough)
        torch.testing.assert_close(exact, rough, rtol=0, atol=0.05)
        assert load_predictor("mini", "cpu", "bf16").settings.precision == "bf16"
        assert load_predictor("mini", "cpu").settings == mini.checkpoint.config.inference

    def test_what_a_segmentation_holds(self, mini: Predictor, pixels: Tensor) -> None:
        target = mini.bind(self.NAMES, 0.1)
        found, map_ = (
            mini.segment(pixels.permute(1, 2, 0).numpy(), self.NAMES, 0.1),
            mini.label_map(pixels, target, class_maps=True),
        )
        assert found.class_names == ("grass", "water", "hat", "boots")
        assert (
            found.labels.tolist() == map_.labels.tolist()
            and found.scores.tolist() == map_.scores.tolist()
        )
        assert found.class_maps is not None and map_.class_maps is not None
        assert found.class_maps.tolist() == map_.class_maps.numpy().tolist()
        assert len(mini.segment([pixels.permute(1, 2, 0).numpy()] * 2, self.NAMES)) == 2

    def test_names(self, mini: Predictor) -> None:
        assert mini.bind().names == mini.vocabulary.names
        assert mini.bind("grass").calibration == 0
        text = torch.ones(2, mini.bind("grass").text.shape[1])
        assert torch.equal(mini.bind("grass, water", text=text).text, text)

    def test_stored_embeddings_go_before_the_text_tower(self, mini: Predictor) -> None:
        stored = torch.randn(len(mini.vocabulary), mini.bind("grass").text.shape[1])
        checkpoint = dataclasses.replace(mini.checkpoint, text=stored)
        names = mini.vocabulary.names
        known = [names[3].upper(), names[0]]
        assert torch.equal(Predictor(checkpoint, device="cpu").bind(known).text, stored[[3, 0]])
        mixed = Predictor(checkpoint, device="cpu").bind([names[0], "a new word"]).text
        assert torch.equal(mixed, mini.bind([names[0], "a new word"]).text)
        without = Predictor(dataclasses.replace(checkpoint, text_encoder=None), device="cpu")
        assert torch.equal(without.bind([names[1]]).text, stored[[1]])
        with pytest.raises(
            ValueError, match=r"knows no embedding of \['a new word'\]; it knows \['sky'"
        ):
            without.bind([names[0], "a new word"])
        with pytest.raises(ValueError, match=r"knows no embedding of \['sky'\]; it knows none"):
            Predictor(
                dataclasses.replace(checkpoint, text=None, text_encoder=None), device="cpu"
            ).bind(["sky"])

    def test_devices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for cuda, mps, expected in (
            (True, True, "cuda"),
            (False, True, "mps"),
            (False, False, "cpu"),
        ):
            monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
            monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
            assert find_device("auto").type == expected
            assert find_device("cpu").type == "cpu"
        with pytest.raises(
            ValueError, match=r"device mps is not available here; choose one of \['cpu'\]"
        ):
            find_device("mps")
        with pytest.raises(ValueError, match="unknown device 'tpu'; choose auto, cpu, cuda or mps"):
            find_device("tpu")  # type: ignore[arg-type]

    def test_sources(self, mini: Predictor) -> None:
        with pytest.raises(ValueError, match="last_block is for training-free models"):
            load_predictor("mini", "cpu", last_block="clearclip")
        free = load_predictor("clip:mini", "cpu")
        assert free.checkpoint.config.model.last_block == DEFAULT_BLOCK
        assert (
            load_predictor(
                "clip:mini", "cpu", last_block="maskclip"
            ).checkpoint.config.model.last_block
            == "maskclip"
        )
