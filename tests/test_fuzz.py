"""Properties that hold for any input: vocabularies, label maps, settings, transforms, windows, run
lengths and scores."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cascade_clip.config import AugmentConfig, Config
from cascade_clip.config.serialization import config_from_dict, config_to_dict
from cascade_clip.data.augmentation import TrainTransform
from cascade_clip.evaluation.metrics import ConfusionMatrix, compute_metrics
from cascade_clip.inference.windows import cut_windows, list_windows
from cascade_clip.results.rle import decode_mask, encode_mask
from cascade_clip.results.segmentation import Segmentation, file_name
from cascade_clip.vocabulary import IGNORED, LONGEST_NAME, Vocabulary, build_palette, parse_classes

few = settings(max_examples=25, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**32 - 1)
names = st.lists(
    st.text(max_size=30) | st.sampled_from(["../x", "a/b", "con", ".x", "猫", "🐈"]),
    min_size=1,
    max_size=8,
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)


@few
@given(words=names)
@example(words=["x" * (LONGEST_NAME + 1)])
def test_vocabularies(words: list[str]) -> None:
    """Class names are kept as they are or refused in one line, and their file names are plain."""
    try:
        found = Vocabulary(
            tuple(words), tuple((word,) for word in words), build_palette(len(words))
        )
    except ValueError as error:
        assert len(str(error).split("\n")) == 1
        return
    assert found.names == tuple(words)
    assert len({word.casefold() for word in words}) == len(words)
    for word in words:
        part = file_name(word)
        assert part and not set(part) & set("/\\.\0:") and len(part.encode()) <= 60


@few
@given(text=st.text(alphabet="ab=;, \n\0é", max_size=30))
def test_class_lists_in_text(text: str) -> None:
    """A list of names in text is parsed to clean different names, or refused."""
    try:
        found = parse_classes(text)
    except ValueError:
        return
    assert all(
        name == name.strip() and name in words
        for name, words in zip(found.names, found.synonyms, strict=True)
    )
    assert len(found.names) == text.count(",") + 1


@few
@given(
    pairs=st.dictionaries(st.integers(0, 65535), st.integers(0, 4), max_size=12),
    ignore=st.integers(0, 65535),
)
def test_label_maps(pairs: dict[int, int], ignore: int) -> None:
    """Every mask value means its class, or nothing, and never two things."""
    words = tuple("abcde")
    found = Vocabulary(
        words,
        tuple((word,) for word in words),
        build_palette(5),
        raw_values=tuple(pairs.items()),
        ignore=ignore,
    )
    if ignore in pairs:
        with pytest.raises(ValueError, match="means both"):
            found.label_table()
        return
    table = found.label_table()
    assert all(table[value] == pairs.get(value, IGNORED) for value in [*pairs, ignore, 0, 65535])
    assert int((table != IGNORED).sum()) == len(pairs)
    assert found.unknown_values([*pairs, ignore]) == []


@few
@given(seed=seeds, classes=st.sampled_from([1, 3, 255, 256, 300]))
def test_label_maps_in_files(seed: int, classes: int) -> None:
    """Label maps become index pictures and come back, unlabelled pixels too."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(-1, classes, (int(draws.integers(1, 9)), int(draws.integers(1, 9))))
    words = tuple(f"c{number}" for number in range(classes))
    result = Segmentation(labels, words, build_palette(classes))
    stored = np.asarray(result.index_image()).astype(int)
    assert np.array_equal(
        np.where(stored == (255 if classes <= 255 else 65535), -1, stored), labels
    )
    assert sum(result.coverage.values()) == pytest.approx(float((labels >= 0).mean()))


def change(values: dict[str, Any], path: list[int], value: Any) -> None:
    """Put a value at a place of nested mappings that some numbers choose."""
    for number in path:
        key = sorted(values)[number % len(values)]
        if not isinstance(values[key], dict) or not values[key] or number == path[-1]:
            values[key] = value
            return
        values = values[key]


@few
@given(path=st.lists(st.integers(0, 50), min_size=1, max_size=4), value=plain)
@example(path=[3], value=10**400)
def test_settings(path: list[int], value: Any) -> None:
    """Settings with any value in any place survive YAML, or are refused in one short line that
    names the place."""
    values = config_to_dict(Config())
    change(values, path, value)
    try:
        config = config_from_dict(Config, values)
    except ValueError as error:
        assert len(str(error)) < 1000
        return
    text = yaml.safe_dump(config_to_dict(config))
    again = config_to_dict(config_from_dict(Config, yaml.safe_load(text)))
    assert json.dumps(again) == json.dumps(config_to_dict(config))  # so that NaN equals itself


@few
@given(seed=seeds, flip=st.sampled_from([0.0, 1.0]))
def test_transforms_keep_image_and_mask_aligned(seed: int, flip: float) -> None:
    """Training crops: a picture whose red is drawn from its mask still fits its mask, and padding
    is unlabelled."""
    draws = np.random.default_rng(seed)
    blocks = draws.integers(0, 3, (int(draws.integers(2, 5)), int(draws.integers(2, 5))))
    labels = torch.from_numpy(blocks.repeat(24, 0).repeat(24, 1))  # (H, W)
    image = (labels * 100).to(torch.uint8).expand(3, -1, -1).clone()
    config = AugmentConfig(
        scale=(96, 96), ratio=(0.5, 2.0), crop=64, largest_share=0.75, flip=flip, photometric=False
    )
    pixels, mask = TrainTransform(config, (0.0,) * 3, (1.0,) * 3)(
        image, labels, torch.Generator().manual_seed(seed)
    )
    assert pixels.shape == (3, 64, 64) and mask.shape == (64, 64)
    inside = mask != IGNORED
    rows, columns = int(inside.any(1).sum()), int(inside.any(0).sum())
    assert inside[:rows, :columns].all() and int(inside.sum()) == rows * columns
    assert (pixels[:, ~inside] == 0).all()
    wrong = ((pixels[0] * 255 / 100).round() != mask) & inside
    edges = torch.nn.functional.max_pool2d(
        mask[None].float(), 5, 1, 2
    ) != -torch.nn.functional.max_pool2d(-mask[None].float(), 5, 1, 2)
    # bilinear and nearest differ at borders of blocks alone
    assert not (wrong & ~edges[0])[2 : rows - 2, 2 : columns - 2].any()


@few
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    side=st.integers(1, 90),
    step=st.floats(0.01, 1),
)
def test_windows(height: int, width: int, side: int, step: float) -> None:
    """Windows cover every pixel, lie inside, and averaging over them gives weights that sum to
    one."""
    stride = max(1, round(side * step))
    if height * width / stride**2 > 2000:
        return
    windows = list_windows((height, width), side, stride)
    count = torch.zeros(height, width)
    for top, left, tall, wide in windows:
        assert top >= 0 and left >= 0 and top + tall <= height and left + wide <= width
        count[top : top + tall, left : left + wide] += 1
    assert count.min() >= 1
    total = sum(
        (1 / count[top : top + tall, left : left + wide]).sum() for top, left, tall, wide in windows
    )
    assert float(total) == pytest.approx(height * width, rel=1e-4)
    image = torch.arange(3 * height * width, dtype=torch.float32).reshape(3, height, width)
    parts = cut_windows(image, windows[:2], side)
    for part, (top, left, tall, wide) in zip(parts, windows, strict=False):
        assert torch.equal(part[:, :tall, :wide], image[:, top : top + tall, left : left + wide])
        assert part[:, tall:].abs().sum() == 0 and part[:, :, wide:].abs().sum() == 0


@few
@given(seed=seeds, classes=st.integers(1, 6))
def test_scores_against_a_count(seed: int, classes: int) -> None:
    """Scores equal a count pixel by pixel, whatever is unlabelled or unpredicted."""
    draws = np.random.default_rng(seed)
    shape = (int(draws.integers(1, 7)), int(draws.integers(1, 7)))
    predicted, true = (
        draws.integers(-1, classes, shape),
        draws.choice([-1, 255, *range(classes)], shape),
    )
    matrix = ConfusionMatrix(classes)
    matrix.update(predicted, true, ignore=255)
    seen = [bool(number % 2) for number in range(classes)]
    found = compute_metrics(matrix, [str(number) for number in range(classes)], seen)
    pixels = [
        (int(p), int(t))
        for p, t in zip(predicted.flat, true.flat, strict=True)
        if t not in (-1, 255)
    ]
    expected = []
    for number in range(classes):
        union = sum(number in pair for pair in pixels)
        expected.append(
            sum(pair == (number, number) for pair in pixels) / union if union else math.nan
        )
    assert found.iou == pytest.approx(expected, nan_ok=True)
    there = [value for value in expected if not math.isnan(value)]
    assert found.miou == (pytest.approx(sum(there) / len(there)) if there else None)
    parts = [
        [
            value
            for value, flag in zip(expected, seen, strict=True)
            if flag is want and not math.isnan(value)
        ]
        for want in (True, False)
    ]
    means = [sum(part) / len(part) if part else None for part in parts]
    assert (found.seen_miou, found.unseen_miou) == tuple(
        mean if mean is None else pytest.approx(mean) for mean in means
    )


@few
@given(
    seed=seeds, damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3)
)
def test_run_lengths(seed: int, damage: list[tuple[int, int]]) -> None:
    """A mask survives run lengths; a damaged string gives a mask of the same size or a
    ValueError."""
    draws = np.random.default_rng(seed)
    mask = draws.random((int(draws.integers(1, 30)), int(draws.integers(1, 30)))) < draws.random()
    encoded = encode_mask(mask)
    assert np.array_equal(decode_mask(encoded), mask)
    content = bytearray(encoded["counts"].encode())
    for place, value in damage:
        content[place % len(content)] = value
    try:
        assert decode_mask({**encoded, "counts": bytes(content)}).shape == mask.shape
    except ValueError:
        pass


@pytest.mark.parametrize(
    "encoded",
    [
        {"size": [10**9, 10**9], "counts": [10**18]},
        {"size": [10**5, 10**5], "counts": [10**10]},
        {"size": [2, 2], "counts": [2**62] * 4 + [4]},  # the sum wraps around to 4
        {"size": [math.inf, 2], "counts": [4]},
    ],
)
def test_run_lengths_that_claim_too_much(encoded: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"run-length|run lengths"):
        decode_mask(encoded)
