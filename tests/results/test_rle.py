"""Run-length encoded masks: hand-computed strings, every small mask, and the COCO tools' own
results where they are installed."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cascade_clip.results.rle import decode_mask, encode_mask


@pytest.mark.parametrize(
    ("rows", "counts", "text"),
    [
        ([[0, 0], [0, 0]], [4], "4"),  # one run of zeros
        ([[1, 1], [1, 1]], [0, 4], "04"),  # the first run is of zeros, always
        ([[0, 1], [0, 1]], [2, 2], "22"),  # column by column: 0 0 1 1
        ([[0, 0], [1, 1]], [1, 1, 1, 1], "1110"),  # 0 1 0 1; the fourth is stored as 1 - 1
        # 16 has the sign bit of one group, so a second one follows: 16 + 32 + 48 = 96, 0 + 48
        ([[0] * 16], [16], "`0"),
        # 2 - 5 = -3 = 29 in five bits, 29 + 48 = 77
        ([[1] * 5 + [0] * 3 + [1] * 2], [0, 5, 3, 2], "053M"),
    ],
)
def test_hand_computed(rows: list[list[int]], counts: list[int], text: str) -> None:
    mask = np.array(rows, dtype=bool)
    assert encode_mask(mask) == {"size": list(mask.shape), "counts": text}
    for written in (text, text.encode(), counts, np.array(counts)):
        decoded = decode_mask({"size": list(mask.shape), "counts": written})
        assert decoded.dtype == np.bool_
        assert np.array_equal(decoded, mask)


def test_every_small_mask_comes_back() -> None:
    for shape in ((1, 1), (1, 5), (5, 1), (2, 4), (3, 3)):
        for bits in itertools.product([False, True], repeat=shape[0] * shape[1]):
            mask = np.array(bits).reshape(shape)
            assert np.array_equal(decode_mask(encode_mask(mask)), mask)


@settings(max_examples=200, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.booleans()))
def test_any_mask_comes_back_through_json(mask: np.ndarray) -> None:
    assert np.array_equal(decode_mask(json.loads(json.dumps(encode_mask(mask)))), mask)


def test_equals_the_coco_tools() -> None:
    tools = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(0)
    shapes = [(1, 1), (1, 700), (700, 1), (37, 53), (480, 640)]
    for shape, share in itertools.product(shapes, (0.0, 0.001, 0.03, 0.5, 0.97, 1.0)):
        mask = random.random(shape) < share
        theirs = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert encode_mask(mask) == {"size": theirs["size"], "counts": theirs["counts"].decode()}
        assert np.array_equal(decode_mask(theirs), mask)
        assert np.array_equal(tools.decode(encode_mask(mask)), mask)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ({"counts": "4"}, "needs `size`"),
        ({"size": [2, 2]}, "needs `size`"),
        ({"size": [2], "counts": "4"}, "needs `size`"),
        ({"size": [2, 2], "counts": "5"}, "fill 2 x 2 pixels"),
        ({"size": [2, 2], "counts": [1, 1]}, "fill 2 x 2 pixels"),
        ({"size": [2, 2], "counts": [5, -1]}, "fill 2 x 2 pixels"),
        ({"size": [-2, -2], "counts": [4]}, "fill -2 x -2 pixels"),
        ({"size": [2, 2], "counts": ""}, "damaged"),
        ({"size": [2, 2], "counts": "`"}, "damaged"),  # says that a group follows
        ({"size": [2, 2], "counts": "4 "}, "damaged"),
        ({"size": [2, 2], "counts": "4€"}, "damaged"),
        ({"size": [2, 2], "counts": "p"}, "damaged"),  # 112 = 48 + 64
        ({"size": [2, 2], "counts": "`" * 13 + "0"}, "60 bits"),
        ({"size": [2, 2], "counts": [1.5, 2.5]}, "whole numbers"),
        ({"size": [2, 2], "counts": None}, "whole numbers"),
        ({"size": [2, 2], "counts": [[4]]}, "whole numbers"),
        ({"size": [2, 2], "counts": []}, "fill 2 x 2 pixels"),
    ],
)
def test_damaged_encodings(encoded: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_mask(encoded)


@pytest.mark.parametrize(
    "mask", [np.zeros((2, 2)), np.zeros(4, dtype=bool), np.zeros((0, 3), dtype=bool)]
)
def test_what_is_no_mask(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="boolean array"):
        encode_mask(mask)
