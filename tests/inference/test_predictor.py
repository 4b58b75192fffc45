"""Inference: windows at any size, chunks of classes, calibration, names, and images that cannot be
segmented."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cascade_clip.config import InferenceConfig
from cascade_clip.inference.loading import LoadOptions, load_predictor
from cascade_clip.inference.predictor import Predictor
from cascade_clip.inference.windows import list_windows
from cascade_clip.ops.devices import find_device
from cascade_clip.sandbox.scenes import SceneConfig, make_scene


@pytest.fixture
def text() -> torch.Tensor:
    return torch.nn.functional.normalize(
        torch.randn(7, 32, generator=torch.Generator().manual_seed(0)), dim=-1
    )


@pytest.mark.parametrize(
    ("canvas", "windows"),
    [
        ((512, 512), 1),  # counts that the method page states
        ((512, 683), 2),
        ((512, 939), 3),
        ((1024, 1365), 12),
        ((300, 400), 1),  # smaller than the window
    ],
)
def test_window_counts(canvas: tuple[int, int], windows: int) -> None:
    assert len(list_windows(canvas, 512, 426)) == windows


def test_windows_cover_every_pixel_and_stay_inside() -> None:
    for height in range(40, 200, 13):
        for width in range(40, 200, 17):
            count = np.zeros((height, width), dtype=int)
            for window in list_windows((height, width), 64, 43):
                assert window.top + window.height <= height
                assert window.left + window.width <= width
                count[
                    window.top : window.top + window.height,
                    window.left : window.left + window.width,
                ] += 1
            assert count.min() >= 1, (height, width)


@pytest.mark.parametrize("chunk", [1, 2, 7, 100])
def test_class_chunks_change_nothing(cascade: Predictor, text: torch.Tensor, chunk: int) -> None:
    image = torch.randint(
        0, 256, (3, 90, 130), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    whole, chunked = (
        cascade.with_settings(class_chunk=7),
        cascade.with_settings(class_chunk=chunk),
    )
    bound = whole.bind(text=text, calibration=0.1)
    expected, found = whole.label_map(image, bound), chunked.label_map(image, bound)
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.scores, expected.scores)
    scores = whole.scores(image, bound)
    assert torch.equal(expected.labels, scores.argmax(dim=0))
    torch.testing.assert_close(expected.scores, scores.max(dim=0).values)


def test_of_equal_scores_the_first_class_wins(cascade: Predictor, text: torch.Tensor) -> None:
    same = text[:1].expand(7, -1)
    labels = (
        cascade.with_settings(class_chunk=2)
        .label_map(torch.zeros(3, 64, 64, dtype=torch.uint8), cascade.bind(text=same))
        .labels
    )
    assert int(labels.max()) <= 1  # never a class of a later chunk


def test_windows_in_batches_change_nothing(cascade: Predictor, text: torch.Tensor) -> None:
    image = torch.randint(0, 256, (3, 90, 130), dtype=torch.uint8)
    bound = cascade.bind(text=text)
    one, four = (cascade.with_settings(window_batch=batch).scores(image, bound) for batch in (1, 4))
    torch.testing.assert_close(one, four, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (20, 64), (17, 33), (64, 200), (131, 90), (16, 16)])
def test_any_size_with_and_without_resizing(
    cascade: Predictor, text: torch.Tensor, size: tuple[int, int]
) -> None:
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    bound = cascade.bind(text=text)
    for resize in (False, True):
        result = cascade.with_settings(resize=resize).label_map(image, bound)
        assert result.labels.shape == size
        assert bool(torch.isfinite(result.scores).all())


def test_scores_have_the_size_of_the_training_crop_first(
    cascade: Predictor, text: torch.Tensor
) -> None:
    """A window of another size than the crop: sigmoid at the crop's size, then a resize of
    scores."""
    predictor = cascade.with_settings(window=96, stride=96, score_size=64)
    image = torch.randn(3, 96, 96)
    bound = predictor.bind(text=text, calibration=0.1)
    logits = predictor.model(image[None], text)
    small = torch.nn.functional.interpolate(
        logits, size=(64, 64), mode="bilinear", align_corners=False
    ).sigmoid()
    small = small - 0.1 * bound.seen[:, None, None].float()
    expected = torch.nn.functional.interpolate(
        small, size=(96, 96), mode="bilinear", align_corners=False
    )[0]
    torch.testing.assert_close(predictor.scores_of_input(image, bound), expected)


@pytest.mark.parametrize(
    ("names", "calibration"),
    [
        (["a", "b", "c"], 0.1),  # c is unseen: a and b are held back
        (["a", "b"], 0.0),  # all seen: it would change nothing but the scores
        (["C", "zebra"], 0.1),  # none seen; names match whatever their case
    ],
)
def test_calibration_holds_for_names_that_were_seen(
    cascade: Predictor, names: list[str], calibration: float
) -> None:
    rows = torch.randn(len(names), 32)
    bound = cascade.bind(names, calibration=0.1, text=rows)
    assert bound.calibration == calibration
    assert bound.seen.tolist() == [name in ("a", "b") for name in names]


def test_names_travel_with_the_result(tmp_path: Path, tiny_folder: Path) -> None:
    predictor = load_predictor(tiny_folder, device="cpu")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(
        tmp_path / "photo.png"
    )
    result = predictor.segment(tmp_path / "photo.png", "zebra, sofa = couch; settee")
    assert result.class_names == ("zebra", "sofa")
    assert result.labels.shape == (50, 70)
    assert (
        predictor.segment(np.zeros((30, 40, 3), dtype=np.uint8)).class_names
        == predictor.vocabulary.names
    )
    other = predictor.segment(tmp_path / "photo.png", ["sofa", "zebra"])
    assert other.class_names == ("sofa", "zebra")


def test_the_mask_of_a_class_does_not_depend_on_the_others(tiny_folder: Path) -> None:
    predictor = load_predictor(tiny_folder, device="cpu")
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    alone = predictor.scores(image, predictor.bind(["zebra"]))[0]
    among = predictor.scores(image, predictor.bind(["cat", "zebra", "grass"]))[1]
    torch.testing.assert_close(alone, among, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("", "empty"),
        ("cat, ", "empty"),
        ("cat, Cat", "twice"),
        ([], "no class names"),
    ],
)
def test_names_that_cannot_be_used(tiny_folder: Path, classes: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_predictor(tiny_folder, device="cpu").segment(
            np.zeros((64, 64, 3), dtype=np.uint8), classes
        )  # type: ignore[arg-type]


def test_a_model_without_text_tower_says_what_it_knows(cascade: Predictor) -> None:
    with pytest.raises(ValueError, match="without a text tower"):
        cascade.segment(np.zeros((64, 64, 3), dtype=np.uint8), ["a", "zebra"])


def test_an_image_smaller_than_a_patch(cascade: Predictor, text: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"8 x 9 pixels is smaller than one patch \(16 pixels\)"):
        cascade.label_map(torch.zeros(3, 9, 8, dtype=torch.uint8), cascade.bind(text=text))


def test_devices() -> None:
    assert find_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="unknown device"):
        find_device("tpu")  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        assert find_device("auto").type in ("cpu", "mps")
        with pytest.raises(ValueError, match="not available here"):
            find_device("cuda")


def test_memory_does_not_grow_with_classes(cascade: Predictor) -> None:
    """The largest tensor of a run has at most a chunk of classes at full size, whatever the number
    of classes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.size = max(self.size, result.numel())
            return result

    sizes = []
    for classes in (8, 64):
        names = [f"class {index}" for index in range(classes)]
        bound = cascade.bind(names, text=torch.randn(classes, 32))
        with Largest() as largest:
            cascade.with_settings(class_chunk=4).label_map(
                torch.zeros(3, 200, 300, dtype=torch.uint8), bound
            )
        sizes.append(largest.size)
    assert sizes[0] == sizes[1]


def sandbox_pixels(index: int = 0) -> torch.Tensor:
    return (
        torch.from_numpy(make_scene(5, index, SceneConfig(size=96)).image)
        .permute(2, 0, 1)
        .contiguous()
    )


@pytest.fixture(scope="module")
def mini() -> Predictor:
    return load_predictor("mini", "cpu")


def test_flip_is_the_mean_with_the_mirror_image(mini: Predictor) -> None:
    pixels = sandbox_pixels()
    bound = mini.bind("grass, water, star")
    plain, mirrored = mini.scores(pixels, bound), mini.scores(pixels.flip(-1), bound).flip(-1)
    both = mini.with_settings(flip=True).scores(pixels, bound)
    torch.testing.assert_close(both, (plain + mirrored) / 2)
    assert not torch.allclose(both, plain)


def test_scales_are_the_mean_over_window_sizes(mini: Predictor) -> None:
    pixels = sandbox_pixels()
    bound = mini.bind("grass, water, star")
    parts = [
        mini.with_settings(scales=(scale,)).scores(pixels, bound) for scale in (0.75, 1.0, 1.5)
    ]
    both = mini.with_settings(scales=(0.75, 1.0, 1.5)).scores(pixels, bound)
    torch.testing.assert_close(both, sum(parts) / 3)
    torch.testing.assert_close(parts[1], mini.scores(pixels, bound), rtol=0, atol=0)
    # the same image size ...
    bigger = mini.with_settings(
        window=round(1.5 * mini.settings.window), stride=mini.settings.stride
    )
    # ... but seen through larger windows: not the same thing
    assert not torch.allclose(parts[2], bigger.scores(pixels, bound))


def test_scales_without_resizing(mini: Predictor) -> None:
    free = mini.with_settings(resize=False, scales=(2.0,))
    assert free.scores(sandbox_pixels(), free.bind("grass, star")).shape == (2, 96, 96)


def test_background_words_compete_and_mean_one_label(mini: Predictor) -> None:
    pixels = sandbox_pixels()
    # star is a class name and stays one
    bound = mini.bind("star, tree", background="water, grass, star")
    assert bound.names == ("star", "tree", "background")
    assert bound.labels is not None and bound.labels.tolist() == [0, 1, 2, 2]
    found = mini.label_map(pixels, bound)
    flat = mini.label_map(pixels, mini.bind("star, tree, water, grass"))
    assert torch.equal(found.labels, flat.labels.clamp(max=2))
    torch.testing.assert_close(found.scores, flat.scores)
    assert bound.background == "words (water, grass)"


def test_background_words_take_the_place_of_the_name(mini: Predictor) -> None:
    bound = mini.bind("background, star", background=["water", "grass"])
    assert bound.names == ("background", "star")
    assert bound.labels is not None and bound.labels.tolist() == [1, 0, 0]
    # without a policy it is a name like any other
    assert mini.bind("background, star").labels is None


def test_threshold_leaves_pixels_unlabelled_or_background(mini: Predictor) -> None:
    pixels = sandbox_pixels()
    plain = mini.label_map(pixels, mini.bind("star, tree"))
    level = float(plain.scores.median())
    found = mini.label_map(pixels, mini.bind("star, tree", threshold=level))
    expected = torch.where(plain.scores < level, -1, plain.labels)
    assert (
        torch.equal(found.labels, expected)
        and 0.3 < float((found.labels == -1).float().mean()) < 0.7
    )
    named = mini.bind("background, star, tree", threshold=level)
    # -1 -> 0, the place of `background`
    assert torch.equal(mini.label_map(pixels, named).labels, expected + 1)
    with pytest.raises(ValueError, match="only class name"):
        mini.bind(["background"], threshold=0.5)


def test_settings_hold_where_a_call_says_nothing(mini: Predictor) -> None:
    stored = mini.with_settings(background="water, grass", threshold=0.25)
    bound = stored.bind("star")
    assert bound.names == ("star", "background") and bound.threshold == 0.25 and bound.below == 1
    assert (
        stored.bind("star", background="tree", threshold=0.5).background
        == "words (tree) and threshold 0.5"
    )


def test_none_switches_the_stored_policy_off(mini: Predictor) -> None:
    stored = mini.with_settings(background="water, grass", threshold=0.25)
    bound = stored.bind("star", background="none", threshold="none")
    assert (bound.names, bound.threshold, bound.background) == (("star",), None, "none")
    assert stored.bind("star", background="None").background == "threshold 0.25"
    assert stored.bind("star", threshold="none").background == "words (water, grass)"
    assert mini.with_settings(background="none").bind("star").names == ("star",)
    with pytest.raises(ValueError, match="a threshold is a number or 'none', got 'low'"):
        stored.bind("star", threshold="low")  # type: ignore[arg-type]


def test_class_maps_are_the_scores_at_lower_resolution(mini: Predictor) -> None:
    pixels = sandbox_pixels()
    bound = mini.bind("star, tree", background="water, grass")
    maps = mini.label_map(pixels, bound, class_maps=True).class_maps
    assert maps is not None and maps.shape == (3, 96, 96)
    scores = mini.scores(pixels, bound)  # (4, 96, 96)
    expected = torch.stack([scores[0], scores[1], scores[2:].max(dim=0).values])
    torch.testing.assert_close(maps.float(), expected, rtol=0, atol=1e-3)
    assert mini.label_map(pixels, bound).class_maps is None


def test_a_list_of_images_gives_a_list(mini: Predictor) -> None:
    images = [sandbox_pixels(index).permute(1, 2, 0).numpy() for index in range(3)]
    found = mini.segment(images, "grass, water, star")
    assert len(found) == 3
    for image, result in zip(images, found, strict=True):
        assert np.array_equal(result.labels, mini.segment(image, "grass, water, star").labels)


def test_max_memory_changes_the_chunk_and_nothing_else(mini: Predictor) -> None:
    small = mini.with_settings(max_memory=1)
    assert small.sliding.rows_at_once(96 * 96) == 7  # 2**20 // (4 copies * 4 bytes * 9216)
    assert small.sliding.rows_at_once(10**7) == 1
    pixels = sandbox_pixels()
    names = [f"thing {number}" for number in range(9)]
    assert torch.equal(
        small.label_map(pixels, small.bind(names)).labels,
        mini.label_map(pixels, mini.bind(names)).labels,
    )


def test_threads_share_a_predictor(mini: Predictor) -> None:
    images = [sandbox_pixels(index).permute(1, 2, 0).numpy() for index in range(8)]
    lists = ["grass, star", "water, tree, star"] * 4
    expected = [mini.segment(image, names) for image, names in zip(images, lists, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(mini.segment, images, lists))
    for one, other in zip(found, expected, strict=True):
        assert one.class_names == other.class_names and np.array_equal(one.labels, other.labels)


def test_other_settings_leave_the_predictor_as_it_was(mini: Predictor) -> None:
    before = mini.settings
    flipped = mini.with_settings(flip=True)
    assert flipped.settings == dataclasses.replace(before, flip=True) and mini.settings == before
    assert flipped.model is mini.model and flipped.text_encoder is mini.text_encoder
    whole = mini.with_settings(InferenceConfig(window=96, stride=64), stride=32)
    assert whole.settings == InferenceConfig(window=96, stride=32)
    with pytest.raises(TypeError):
        mini.with_settings(no_such_setting=1)


def test_load_options_load_what_the_function_loads() -> None:
    options = LoadOptions(device="cpu", precision="bf16", last_block="sclip")
    predictor = options.load("clip:mini")
    assert predictor.device.type == "cpu" and predictor.settings.precision == "bf16"
    assert predictor.checkpoint.config.model.last_block == "sclip"
    with pytest.raises(ValueError, match="last_block is for training-free models"):
        options.load("mini")


@pytest.mark.parametrize("method", ["label_map", "scores", "segment_pixels", "segment_with"])
def test_the_former_keyword_of_bound_names_is_accepted(mini: Predictor, method: str) -> None:
    pixels = sandbox_pixels()
    image = pixels.permute(1, 2, 0).numpy() if method == "segment_with" else pixels
    bound, call = mini.bind(["grass", "star"]), getattr(mini, method)
    for found, wanted in zip(
        _arrays(call(image, target=bound)), _arrays(call(image, bound=bound)), strict=True
    ):
        assert np.array_equal(found, wanted)
    with pytest.raises(TypeError, match="target"):
        call(image, bound=bound, target=bound)


def test_every_method_that_takes_bound_names_accepts_the_former_keyword(mini: Predictor) -> None:
    bound, image = mini.bind(["grass", "star"]), torch.zeros(3, 64, 64)
    assert mini.label_map_of_input(image, target=bound).labels.shape == (64, 64)  # type: ignore[call-arg]
    assert mini.scores_of_input(image, target=bound).shape == (2, 64, 64)  # type: ignore[call-arg]
    every = [torch.ones(2, dtype=torch.bool)]
    (best,) = mini.best_rows(sandbox_pixels(), target=bound, groups=every)  # type: ignore[call-arg]
    assert torch.equal(best.labels, mini.label_map(sandbox_pixels(), bound).labels)


def _arrays(found: Any) -> list[Any]:
    """Return labels and scores of a `Segmentation`, a `LabelMap` or scores alone."""
    if isinstance(found, torch.Tensor):
        return [found.numpy()]
    return [np.asarray(found.labels), np.asarray(found.scores)]
