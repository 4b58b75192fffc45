"""Settings beyond the paper: losses on every stage, weighted stages, a guided upsampler; and words
that are easily mistaken."""

from __future__ import annotations

import csv
import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_clip.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from cascade_clip.cli.main import main
from cascade_clip.cli.options import InferenceOptions
from cascade_clip.config import Config, InferenceConfig, LossConfig
from cascade_clip.config.serialization import config_from_dict
from cascade_clip.data.registry import build_dataset
from cascade_clip.inference.class_binding import BackgroundPolicy
from cascade_clip.inference.loading import load_predictor
from cascade_clip.inference.predictor import Predictor
from cascade_clip.losses.objective import step_loss
from cascade_clip.models.segmenter import StageMasks
from cascade_clip.ops.upsampling import (
    box_mean,
    fit_colors,
    upsample_bilinear,
    upsample_guided,
    window_guide,
)
from cascade_clip.research.analysis import keep_stages
from cascade_clip.serving.http.batching import segment_together
from cascade_clip.training.fit import fit, prepare
from cascade_clip.training.task import SegmentationTask
from cascade_clip.vocabulary import load_words
from tiny_models import TINY_CLIP, TINY_MODEL, build_tiny
from tiny_runs import tiny_config, weights, write_folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def mini() -> Predictor:
    return load_predictor("mini", "cpu")


def with_settings(predictor: Predictor, **changes: Any) -> Predictor:
    return Predictor(
        predictor.checkpoint, dataclasses.replace(predictor.settings, **changes), "cpu"
    )


def stages_and_labels() -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(2)
    stages = [torch.randn(2, 5, 4, 5, generator=generator, requires_grad=True) for _ in range(3)]
    return stages, torch.randint(-1, 4, (2, 16, 20), generator=generator)


@pytest.mark.parametrize(
    "terms", [{}, {"ssim": 2.0, "cross_entropy": 3.0, "class_chunk": 2}], ids=["masks", "all"]
)
def test_every_stage_gets_the_same_loss(terms: dict[str, Any]) -> None:
    config = LossConfig(auxiliary=0.25, **terms)
    stages, labels = stages_and_labels()
    found = step_loss(stages[0] + stages[1] + stages[2], labels, 4, config, None, stages)
    gradients = torch.autograd.grad(found.total, stages)
    plain = dataclasses.replace(config, auxiliary=0.0)
    whole = step_loss(stages[0] + stages[1] + stages[2], labels, 4, plain)
    each = [step_loss(stage, labels, 4, plain).total for stage in stages]
    expected = whole.total + 0.25 * (each[0] + each[1] + each[2])
    assert float(found.auxiliary) == pytest.approx(
        0.25 * float(torch.stack(each).sum().detach()), rel=1e-6
    )
    assert float(found.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert (found.focal, found.dice, found.masks) == (whole.focal, whole.dice, whole.masks)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, stages), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)
    assert float(whole.auxiliary) == 0


def gradients(config: Config, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
    checkpoint = prepare(config, build_dataset(config.data))
    assert checkpoint.text is not None
    task = SegmentationTask(
        checkpoint.model, checkpoint.text, torch.tensor(checkpoint.vocabulary.seen_mask), config
    )
    result = task.accumulate_gradients(images, labels)
    found = [
        parameter.grad.flatten()
        for name, parameter in task.model.named_parameters()
        if parameter.grad is not None and "key.bias" not in name
    ]
    return torch.cat(found), {name: float(value) for name, value in result._asdict().items()}


@pytest.mark.parametrize("protocol", ["inductive", "transductive"])
def test_micro_batches_change_nothing(folders: Path, protocol: str) -> None:
    generator = torch.Generator().manual_seed(3)
    images, labels = (
        torch.randn(4, 3, 64, 64, generator=generator),
        torch.randint(-1, 4, (4, 64, 64), generator=generator),
    )
    labels[0], labels[1] = -1, 2
    settings = {
        "protocol": protocol,
        "loss": {"auxiliary": 0.5},
        "ema_teacher": 0.9 if protocol == "transductive" else 0.0,
    }
    whole, figures = gradients(
        tiny_config(folders, {"stage_weights": "learned"}, **settings), images, labels
    )
    for share in (1, 2):
        split, others = gradients(
            tiny_config(folders, {"stage_weights": "learned"}, micro_batch=share, **settings),
            images,
            labels,
        )
        assert others == pytest.approx(figures, rel=1e-5)
        assert float((split - whole).norm() / whole.norm()) < 1e-5
    assert figures["auxiliary"] > 0
    assert figures["total"] == pytest.approx(
        figures["focal"] + figures["dice"] + figures["auxiliary"], rel=1e-5
    )


def test_full_size_masks_of_all_classes_never_exist() -> None:
    saved: list[int] = []
    stages = [torch.randn(1, 32, 4, 4, requires_grad=True) for _ in range(3)]
    config = LossConfig(auxiliary=1.0, class_chunk=2)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        total = torch.stack(stages).sum(dim=0)
        step_loss(
            total, torch.zeros(1, 64, 64, dtype=torch.long), 16, config, None, stages
        ).total.backward()
    assert 0 < max(saved) <= 32 * 4 * 4


def read_log(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_with_all_of_it(folders: Path, tmp_path: Path) -> None:
    """Logged as a column of its own only when on; the trained numbers are in the checkpoint, and
    move."""
    config = tiny_config(folders, {"stage_weights": "learned"}, loss={"auxiliary": 0.5}, steps=2)
    trained = fit(config, tmp_path / "on")
    row = read_log(tmp_path / "on")[0]
    assert float(row["loss"]) == pytest.approx(
        float(row["focal"]) + float(row["dice"]) + float(row["auxiliary"]), rel=1e-5
    )
    kept = weights(tmp_path / "on")["stage_weights"]
    assert (
        kept.shape == (3,)
        and not torch.equal(kept, torch.ones(3))
        and float((kept - 1).abs().max()) < 0.1
    )
    assert torch.equal(kept, trained.model.stage_weights)  # type: ignore[arg-type]
    fit(tiny_config(folders, steps=1), tmp_path / "off")
    assert "auxiliary" not in read_log(tmp_path / "off")[0]
    assert "stage_weights" not in weights(tmp_path / "off")


def test_a_run_of_an_older_version_goes_on(folders: Path, tmp_path: Path) -> None:
    """Its config.yaml does not have settings that came later; their defaults are what it did."""
    config = tiny_config(folders, steps=2)
    fit(config, tmp_path / "run")
    settings = tmp_path / "run" / "config.yaml"
    older = [
        line
        for line in settings.read_text().splitlines()
        if not line.strip().startswith(("auxiliary:", "stage_weights:", "combine:"))
    ]
    settings.write_text("\n".join(older))
    assert fit(config, tmp_path / "run", resume="auto").record["steps"] == 2
    with pytest.raises(ValueError, match=r"other settings \(train.loss.auxiliary\)"):
        fit(tiny_config(folders, steps=2, loss={"auxiliary": 0.5}), tmp_path / "run", resume="auto")


def weighted(values: tuple[float, ...]) -> Predictor:
    checkpoint = build_tiny({**TINY_MODEL, "stage_weights": "learned"})
    with torch.no_grad():
        checkpoint.model.stage_weights.copy_(torch.tensor(values))  # type: ignore[union-attr]
    return Predictor(checkpoint, device="cpu")


def test_learned_weights_start_as_the_plain_sum_and_scale_every_stage(tmp_path: Path) -> None:
    plain, ones, others = (
        Predictor(build_tiny(), device="cpu"),
        weighted((1, 1, 1)),
        weighted((2, 0.5, -1)),
    )
    image, text = torch.randn(1, 3, 64, 64), F.normalize(torch.randn(4, 32), dim=-1)
    with torch.inference_mode():
        stages = plain.model.stage_masks(image, text).stages
        assert torch.equal(ones.model(image, text), plain.model(image, text))
        torch.testing.assert_close(
            others.model(image, text), 2 * stages[0] + 0.5 * stages[1] - stages[2]
        )
        torch.testing.assert_close(
            keep_stages(others, (3, 1)).model(image, text), 2 * stages[0] - stages[2]
        )
        loaded = load_checkpoint(save_checkpoint(tmp_path / "model", others.checkpoint)).model
        assert torch.equal(loaded(image, text), others.model(image, text))
    assert plain.model.stage_weights is None and "stage_weights" not in plain.model.state_dict()
    assert set(ones.model.state_dict()) - set(plain.model.state_dict()) == {"stage_weights"}


def test_confidence_by_hand() -> None:
    """Margins of softmax probabilities: 0.8 - 0.2 and 0.5 - 0.5; weights 2 softmax([0.6, 0])."""
    sure, unsure = torch.tensor([0.8, 0.2]).log().view(1, 2, 1, 1) + 7, torch.zeros(1, 2, 1, 1)
    high = 2 / (1 + np.exp(-0.6))
    found = StageMasks((sure, unsure + 3)).weighted_by_confidence()
    torch.testing.assert_close(found, high * sure + (2 - high) * (unsure + 3))
    three = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    # equally sure: the sum
    torch.testing.assert_close(
        StageMasks((three, three, three)).weighted_by_confidence(), 3 * three
    )
    one = (three[:, :1], 2 * three[:, :1])
    # a class alone
    assert torch.equal(StageMasks(one).weighted_by_confidence(), StageMasks(one).total)
    assert torch.equal(StageMasks((three,)).weighted_by_confidence(), three)


def test_confidence_in_the_predictor(cascade: Predictor) -> None:
    image, text = torch.randn(3, 64, 64), F.normalize(torch.randn(7, 32), dim=-1)
    sure = with_settings(cascade, combine="confidence")
    target = sure.bind(text=text)
    masks = cascade.model.stage_masks(image[None], text).weighted_by_confidence()
    expected = F.interpolate(masks, size=(64, 64), mode="bilinear", align_corners=False).sigmoid()[
        0
    ]
    torch.testing.assert_close(sure.scores_of_input(image, target), expected)
    assert not torch.allclose(expected, cascade.scores_of_input(image, target), atol=1e-4)
    pixels = torch.randint(0, 256, (3, 90, 130), dtype=torch.uint8)
    few = with_settings(sure, class_chunk=2, window_batch=3)  # several windows, chunks of classes
    torch.testing.assert_close(
        few.scores(pixels, target), sure.scores(pixels, target), rtol=0, atol=1e-5
    )


def test_pictures_together_with_confidence(mini: Predictor) -> None:
    sure = with_settings(mini, combine="confidence")
    pictures = [
        torch.randint(
            0, 256, (3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(i)
        )
        for i in range(2)
    ]
    target = sure.bind("grass, star, tree")
    with ThreadPoolExecutor(2) as pool:
        found = segment_together(sure, pictures, target, pool)
    for picture, one in zip(pictures, found, strict=True):
        assert np.array_equal(one.labels, sure.segment_pixels(picture, target).labels)  # type: ignore[union-attr]


def test_box_mean_leaves_out_what_is_outside() -> None:
    values = torch.arange(12.0).view(1, 3, 4)
    found = box_mean(values, 1)[0]
    assert float(found[0, 0]) == (0 + 1 + 4 + 5) / 4
    assert float(found[1, 1]) == sum((0, 1, 2, 4, 5, 6, 8, 9, 10)) / 9
    assert float(found[2, 3]) == (6 + 7 + 10 + 11) / 4


def test_the_fit_is_ridge_regression_in_every_window() -> None:
    generator = torch.Generator().manual_seed(0)
    maps, colors = (
        torch.randn(2, 5, 6, generator=generator).double(),
        torch.rand(3, 5, 6, generator=generator).double(),
    )
    slopes = np.zeros((2, 5, 6, 3))
    offsets = np.zeros((2, 5, 6))
    for row, column in np.ndindex(5, 6):
        window = (slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2))
        x = colors[:, window[0], window[1]].flatten(1).T.numpy()  # (places, 3)
        for index in range(2):
            y = maps[index, window[0], window[1]].flatten().numpy()
            centred = x - x.mean(0)
            slope = np.linalg.solve(
                centred.T @ centred + len(x) * 0.05 * np.eye(3), centred.T @ (y - y.mean())
            )
            slopes[index, row, column], offsets[index, row, column] = (
                slope,
                y.mean() - slope @ x.mean(0),
            )
    found_slopes, found_offsets = fit_colors(maps, colors, 1, 0.05)
    expected = torch.from_numpy(slopes).permute(3, 0, 1, 2).contiguous()  # (3, c, h, w)
    torch.testing.assert_close(
        found_slopes, torch.stack([box_mean(slope, 1) for slope in expected])
    )
    torch.testing.assert_close(found_offsets, box_mean(torch.from_numpy(offsets), 1))


def test_masks_follow_a_border_of_colours_inside_a_patch() -> None:
    """Left of column 22 red, right of it blue; patches of 8 pixels, of which the one at 16..23 is
    mixed."""
    guide = torch.zeros(3, 64, 64)
    guide[0, :, :22], guide[2, :, 22:] = 0.9, 0.9
    # (1, 8, 8), how much of a patch is red
    share = F.adaptive_avg_pool2d(guide[None, :1] / 0.9, 8)[0]
    logits = 10 * share - 5
    truth = torch.zeros(64, dtype=torch.bool)
    truth[:22] = True
    guided, plain = (
        upsample_guided(logits, guide, 1, 1e-4)[0] > 0,
        upsample_bilinear(logits, (64, 64))[0] > 0,
    )
    assert torch.equal(guided, truth.expand(64, 64))
    assert not torch.equal(plain, guided)


def test_a_plain_area_gives_a_smooth_mean_and_a_linear_map_itself() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 6, 6, generator=generator)
    flat = upsample_guided(logits, torch.full((3, 48, 48), 0.4), 1, 0.01)
    torch.testing.assert_close(
        flat, upsample_bilinear(box_mean(box_mean(logits, 1), 1), (48, 48)), rtol=1e-4, atol=1e-4
    )
    # every patch of one colour
    coarse = (
        torch.rand(3, 6, 6, generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    )
    linear = 2 * coarse[:1, ::8, ::8] - coarse[1:2, ::8, ::8] + 0.5
    found = upsample_guided(linear, coarse, 2, 1e-7)
    torch.testing.assert_close(found, 2 * coarse[:1] - coarse[1:2] + 0.5, rtol=0, atol=0.02)


def test_the_guide_is_the_picture_again() -> None:
    pixels = torch.rand(3, 20, 30)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    normalised = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    found = window_guide(normalised, mean, std, 32, 32)
    torch.testing.assert_close(found[:, :20, :30], pixels)
    # the last row goes on
    torch.testing.assert_close(found[:, 20:, :30], pixels[:, -1:].expand(3, 12, 30))
    assert window_guide(normalised, mean, std, 32, 16).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ((64, 64), {}),
        ((131, 90), {}),  # several windows
        ((40, 37), {}),  # smaller than the window
        ((90, 64), {"window": 58, "stride": 30}),  # the patch does not divide the window
        ((96, 96), {"window": 96, "stride": 96, "score_size": 64}),
        ((70, 64), {"resize": True, "scales": (1.0, 1.5), "flip": True}),
    ],
)
def test_guided_at_any_size(
    cascade: Predictor, size: tuple[int, int], changes: dict[str, Any]
) -> None:
    guided = with_settings(cascade, upsampler="guided", class_chunk=7, **changes)
    target = guided.bind(text=F.normalize(torch.randn(7, 32), dim=-1), calibration=0.1)
    pixels = torch.randint(
        0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    scores = guided.scores(pixels, target)
    assert scores.shape == (7, *size) and bool(torch.isfinite(scores).all())
    few = with_settings(guided, class_chunk=2).label_map(pixels, target)
    torch.testing.assert_close(few.scores, scores.max(dim=0).values)
    assert not torch.allclose(
        scores, with_settings(guided, upsampler="bilinear").scores(pixels, target), atol=1e-4
    )


def test_guided_windows_by_hand(cascade: Predictor) -> None:
    """Two windows side by side, each guided by its own part of the image; then the mirror image."""
    guided = with_settings(
        cascade, upsampler="guided", window=64, stride=64, guide_radius=2, guide_epsilon=0.1
    )
    target = guided.bind(text=F.normalize(torch.randn(7, 32), dim=-1))
    image = torch.randn(3, 64, 128, generator=torch.Generator().manual_seed(0))
    config = guided.checkpoint.config.model
    parts = []
    for part in image.split(64, dim=-1):
        guide = (
            part * torch.tensor(config.std)[:, None, None]
            + torch.tensor(config.mean)[:, None, None]
        )
        with torch.inference_mode():
            parts.append(
                upsample_guided(guided.model(part[None], target.text)[0], guide, 2, 0.1).sigmoid()
            )
    torch.testing.assert_close(guided.scores_of_input(image, target), torch.cat(parts, dim=-1))
    both = with_settings(guided, flip=True).scores_of_input(image, target)
    mirrored = guided.scores_of_input(image.flip(-1), target).flip(-1)
    torch.testing.assert_close(both, (torch.cat(parts, dim=-1) + mirrored) / 2)


def test_guided_memory_does_not_grow_with_classes(cascade: Predictor) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.size = max(self.size, result.numel())
            return result

    sizes = []
    for classes in (8, 64):
        predictor = with_settings(cascade, upsampler="guided", combine="confidence", class_chunk=4)
        target = predictor.bind(
            [f"class {index}" for index in range(classes)], text=torch.randn(classes, 32)
        )
        with Largest() as largest:
            predictor.label_map(torch.zeros(3, 100, 130, dtype=torch.uint8), target)
        sizes.append(largest.size)
    assert sizes[0] == sizes[1]


def one_block(**changes: Any) -> dict[str, Any]:
    clip = {
        "name": "tiny",
        "weights": "random",
        "architecture": {**TINY_CLIP, "vision_cfg": {**TINY_CLIP["vision_cfg"], "layers": 1}},
    }  # type: ignore[dict-item]
    decoder = {"layers": 1, "heads": 4, "feedforward": 64, "dropout": 0.0}
    return {**TINY_MODEL, "clip": clip, "stages": [[1], [1]], "decoder": decoder, **changes}


def test_learned_weights_are_in_the_network_that_is_exported() -> None:
    from cascade_clip.export.onnx import ExportedModel

    predictor = weighted((2, 0.5, -1))
    config, target = predictor.checkpoint.config.model, predictor.bind()
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        found = ExportedModel(predictor)(255 * (image * std + mean), target.text)
        torch.testing.assert_close(found, predictor.model(image, target.text), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_learned_weights_are_exported(tmp_path: Path) -> None:
    """The graph is compared with the model before it is written; here also with a weight that is
    not 1."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from cascade_clip.export.onnx import export_onnx

    checkpoint = build_tiny(one_block(stage_weights="learned"))
    with torch.no_grad():
        checkpoint.model.stage_weights.copy_(torch.tensor([3.0, 0.25]))  # type: ignore[union-attr]
    predictor = Predictor(checkpoint, device="cpu")
    target = predictor.bind()
    export_onnx(predictor, tmp_path / "tiny.onnx", target)
    session = onnxruntime.InferenceSession(
        str(tmp_path / "tiny.onnx"), providers=["CPUExecutionProvider"]
    )
    config = predictor.checkpoint.config.model
    pixels = torch.rand(1, 3, 64, 48) * 255
    (logits,) = session.run(None, {"pixels": pixels.numpy(), "text": target.text.numpy()})
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    with torch.inference_mode():
        stages = predictor.model.stage_masks((pixels / 255 - mean) / std, target.text).stages
        torch.testing.assert_close(
            torch.from_numpy(logits), stages[0] + stages[1], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("changes", [{"combine": "confidence"}, {"upsampler": "guided"}], ids=str)
def test_what_cannot_be_exported_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from cascade_clip.export.compare import ExportedNetwork
    from cascade_clip.export.onnx import export_torch

    predictor = with_settings(Predictor(build_tiny(one_block()), device="cpu"), **changes)
    name, value = next(iter(changes.items()))
    with pytest.raises(
        ValueError, match=rf"inference\.{name} {value} cannot be exported; set it to \w+ in"
    ):
        export_torch(predictor, tmp_path / "tiny.pt2")
    with pytest.raises(ValueError, match="cannot be exported"):
        ExportedNetwork(tmp_path / "tiny.onnx", predictor)
    assert not list(tmp_path.iterdir())


def test_flags_of_evaluate(mini: Predictor, tmp_path: Path) -> None:
    stored = InferenceConfig()
    given = InferenceOptions(
        combine="confidence", upsampler="guided", guide_radius=3, guide_epsilon=0.1
    ).apply(stored)
    assert given == dataclasses.replace(
        stored, combine="confidence", upsampler="guided", guide_radius=3, guide_epsilon=0.1
    )
    assert InferenceOptions(combine="sum").apply(given).combine == "sum"
    words = [
        "evaluate",
        "mini",
        "--data",
        "sandbox",
        "--limit",
        "1",
        "--out",
        str(tmp_path / "report.json"),
    ]
    assert main([*words, "--upsampler", "guided", "--combine", "confidence"]) == 0
    text = (tmp_path / "report.json").read_text()
    assert (
        "stages combined by confidence, guided upsampling (radius 1, epsilon 0.003), fp32" in text
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"loss": {"auxiliary": -1}}}, "train.loss.auxiliary must be 0 or more, got -1"),
        (
            {"train": {"loss": {"focal": 0, "dice": 0, "auxiliary": 1}}},
            "every weight of train.loss is 0; set one of focal, dice",
        ),
        ({"model": {"stage_weights": "mean"}}, "stage_weights must be one of"),
        ({"inference": {"combine": "vote"}}, "combine must be one of"),
        ({"inference": {"guide_radius": 0}}, "inference.guide_radius must be at least 1, got 0"),
        ({"inference": {"guide_epsilon": 0}}, "inference.guide_epsilon must be positive, got 0"),
    ],
)
def test_wrong_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_dict(Config, values)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sky, star", "given as background words, but class names already, which they stay: star"),
        ("scenry", "'scenry' is taken as a background word; did you mean scenery?"),
        ("sky, wall", ""),
        ("scenery", ""),  # that these hold class names is in the nature of the list
        ("none", ""),
    ],
)
def test_background_words_that_are_easily_mistaken(
    words: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        BackgroundPolicy.parse(words).words_besides(("Star", "tree"))
    assert caplog.messages == ([message] if message else [])


@pytest.mark.parametrize(
    ("words", "meant"),
    [("vco", "voc"), ("Cityscape", "cityscapes"), ("cat", ""), ("vco, cat", ""), ("text", "")],
)
def test_class_lists_that_are_misspelt(
    words: str, meant: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load_words(words)
    assert caplog.messages == (
        [f"{words!r} is taken as a name of its own; did you mean the class list {meant}?"]
        if meant
        else []
    )


def test_quiet_leaves_the_note_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), "green").save(tmp_path / "green.png")
    words = [
        "segment",
        str(tmp_path / "green.png"),
        "--classes",
        "grass, star",
        "--out",
        str(tmp_path / "out"),
        "--outputs",
        "",
    ]
    assert main([*words, "--quiet"]) == 0
    assert "built-in world" not in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert "mini knows only the built-in world" in capsys.readouterr().err
