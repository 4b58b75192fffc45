"""Scores against the released program, torchmetrics, a brute-force count and hand-computed
tables."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassJaccardIndex,
)

from cascade_clip.evaluation.metrics import ConfusionMatrix, Metrics, compute_metrics
from paths import REFERENCE


def count(
    prediction: object, target: object, classes: int = 2, ignore: int = -1
) -> ConfusionMatrix:
    matrix = ConfusionMatrix(classes)
    matrix.update(np.asarray(prediction), np.asarray(target), ignore)
    return matrix


def score(matrix: ConfusionMatrix, seen: list[bool] | None = None) -> Metrics:
    return compute_metrics(
        matrix, [f"c{index}" for index in range(matrix.classes)], seen or [True] * matrix.classes
    )


# The released program


def voc_labels(raw: np.ndarray) -> np.ndarray:
    """Raw VOC masks: 0 and 255 have no label, k is class k - 1."""
    return np.where((raw == 0) | (raw == 255), -1, raw.astype(np.int64) - 1)


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(REFERENCE / "metrics.npz") as loaded:
        return dict(loaded)


def test_areas_equal_the_released_program(reference: dict[str, np.ndarray]) -> None:
    assert reference["n"] == 4
    for index in range(4):
        counts = count(
            reference[f"pred{index}"], voc_labels(reference[f"gt_raw{index}"]), 20
        ).matrix.numpy()
        right, predicted, labelled = counts.diagonal(), counts.sum(0), counts.sum(1)
        assert np.array_equal(right, reference[f"intersect{index}"])
        # what is predicted on ignored pixels does not count
        assert np.array_equal(predicted, reference[f"pred_area{index}"])
        assert np.array_equal(labelled, reference[f"label_area{index}"])
        assert np.array_equal(predicted + labelled - right, reference[f"union{index}"])


def test_scores_equal_the_released_program(reference: dict[str, np.ndarray]) -> None:
    matrix = ConfusionMatrix(20)
    for index in range(4):
        matrix.update(
            torch.from_numpy(reference[f"pred{index}"]),
            torch.from_numpy(voc_labels(reference[f"gt_raw{index}"])),
        )
    found = score(matrix, [True] * 15 + [False] * 5)
    np.testing.assert_allclose(found.iou, reference["metric/IoU"], rtol=1e-6)
    np.testing.assert_allclose(found.accuracy, reference["metric/Acc"], rtol=1e-6)
    assert found.pixel_accuracy == pytest.approx(float(reference["metric/aAcc"]), rel=1e-6)
    assert (found.miou, found.mean_accuracy, found.pixel_accuracy) == pytest.approx(
        [float(reference[f"evaluate/{name}"]) for name in ("mIoU", "mAcc", "aAcc")], abs=5.1e-5
    )  # printed with 4 decimals
    assert found.seen_miou is not None and found.unseen_miou is not None and found.hiou is not None
    assert round(100 * found.seen_miou, 2) == pytest.approx(
        float(reference["seen_mIoU_percent_2dp"]), abs=1e-5
    )
    assert round(100 * found.unseen_miou, 2) == pytest.approx(
        float(reference["unseen_mIoU_percent_2dp"]), abs=1e-5
    )
    assert found.hiou == 2 * found.seen_miou * found.unseen_miou / (
        found.seen_miou + found.unseen_miou
    )
    assert found.absent == ()


# Other counts of the same thing

LABELS = st.integers(1, 5).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        arrays.arrays(np.int64, (2, 7), elements=st.integers(-1, classes - 1)),
        arrays.arrays(np.int64, (2, 7), elements=st.sampled_from([-1, 255, *range(classes)])),
    )
)


@settings(max_examples=150, deadline=None)
@given(LABELS)
def test_scores_equal_a_brute_force_count(case: tuple[int, np.ndarray, np.ndarray]) -> None:
    classes, prediction, target = case
    pixels = [
        (int(p), int(t))
        for p, t in zip(prediction.flat, target.flat, strict=True)
        if t not in (-1, 255)
    ]
    found = score(count(prediction, target, classes, ignore=255))
    for index in range(classes):
        both = sum(p == index and t == index for p, t in pixels)
        either = sum(p == index or t == index for p, t in pixels)
        labelled = sum(t == index for _, t in pixels)
        assert found.iou[index] == pytest.approx(both / either if either else math.nan, nan_ok=True)
        assert found.accuracy[index] == pytest.approx(
            both / labelled if labelled else math.nan, nan_ok=True
        )
        assert (f"c{index}" in found.absent) is (either == 0)
    assert found.pixel_accuracy == (
        pytest.approx(sum(p == t for p, t in pixels) / len(pixels)) if pixels else None
    )


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_torchmetrics(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    classes = 7
    # the last class is absent in odd cases
    prediction = torch.randint(0, classes - seed % 2, (3, 17, 23), generator=draws)
    target = torch.randint(-1, classes - seed % 2, (3, 17, 23), generator=draws)
    matrix = ConfusionMatrix(classes)
    for predicted, labelled in zip(prediction, target, strict=True):
        matrix.update(predicted, labelled)
    found = score(matrix)
    assert torch.equal(
        matrix.matrix, MulticlassConfusionMatrix(classes, ignore_index=-1)(prediction, target)
    )
    for average, expected in (("none", found.iou), ("macro", found.miou)):
        theirs = MulticlassJaccardIndex(classes, average=average, ignore_index=-1)(
            prediction, target
        )
        # they give an absent class 0
        np.testing.assert_allclose(theirs, np.nan_to_num(expected), rtol=1e-6)
    accuracy = MulticlassAccuracy(
        classes, average="micro", ignore_index=-1, multidim_average="global"
    )(prediction, target)
    assert found.pixel_accuracy == pytest.approx(float(accuracy), rel=1e-6)
    for average, expected in (("none", found.accuracy), ("macro", found.mean_accuracy)):
        theirs = MulticlassAccuracy(classes, average=average, ignore_index=-1)(prediction, target)
        np.testing.assert_allclose(theirs, np.nan_to_num(expected), rtol=1e-6)
    assert found.absent == (("c6",) if seed % 2 else ())
    assert math.isnan(found.iou[6]) is math.isnan(found.accuracy[6]) is bool(seed % 2)


# Tables


@pytest.mark.parametrize(
    ("prediction", "target", "iou", "accuracy"),
    [
        ([[0, 1]], [[0, 1]], [1, 1], [1, 1]),  # perfect
        # class 0 predicted once too often, class 1 missed
        ([[0, 0]], [[0, 1]], [1 / 2, 0], [1, 0]),
        # a prediction on an ignored pixel counts nowhere
        ([[0, 1]], [[0, -1]], [1, math.nan], [1, math.nan]),
        # class 1 is predicted but never true: IoU 0, no accuracy
        ([[0, 1]], [[0, 0]], [1 / 2, 0], [1 / 2, math.nan]),
        ([[-1, 1]], [[0, 1]], [0, 1], [0, 1]),  # no prediction: wrong for class 0 and for no other
        ([[-1, 0]], [[0, 0]], [1 / 2, math.nan], [1 / 2, math.nan]),  # ... and in its union
        # no prediction on an ignored pixel: nothing
        ([[-1, -1]], [[-1, 0]], [0, math.nan], [0, math.nan]),
    ],
)
def test_per_class_scores(
    prediction: list[list[int]], target: list[list[int]], iou: list[float], accuracy: list[float]
) -> None:
    found = score(count(prediction, target))
    assert found.iou == pytest.approx(iou, nan_ok=True)
    assert found.accuracy == pytest.approx(accuracy, nan_ok=True)


MIXED = ([[0, 0, 1, 1, 2]], [[0, 1, 1, 2, 2]])
"""IoU 1/2, 1/3, 1/2; class 3 absent."""


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        # the absent class 3 is not in U; 2 * 5/12 * 1/2 / (11/12)
        ([True, True, False, False], (5 / 12, 1 / 2, 5 / 11)),
        ([True, False, True, False], (1 / 2, 1 / 3, 2 / 5)),
        ([True, True, True, True], (4 / 9, None, None)),  # no unseen class
        ([True, True, True, False], (4 / 9, None, None)),  # the only unseen class is absent
        ([False, False, False, False], (None, 4 / 9, None)),  # nothing seen
    ],
)
def test_seen_and_unseen(seen: list[bool], expected: tuple[float | None, ...]) -> None:
    found = score(count(*MIXED, classes=4), seen)
    assert (found.seen_miou, found.unseen_miou, found.hiou) == tuple(
        value if value is None else pytest.approx(value) for value in expected
    )
    assert found.miou == pytest.approx(4 / 9)
    assert found.absent == ("c3",)


def test_harmonic_mean_of_nothing_right_is_zero() -> None:
    found = score(count([[1, 0]], [[0, 1]]), [True, False])
    assert (found.seen_miou, found.unseen_miou, found.hiou) == (0, 0, 0)


def test_nothing_labelled_gives_no_numbers() -> None:
    found = score(count([[0, 1]], [[-1, -1]]), [True, False])
    assert (
        found.miou,
        found.seen_miou,
        found.unseen_miou,
        found.hiou,
        found.pixel_accuracy,
        found.mean_accuracy,
    ) == (None,) * 6
    assert found.absent == ("c0", "c1")


@pytest.mark.parametrize(
    "kind", [np.uint8, np.uint16, np.int32, np.int64, torch.uint8, torch.int16, torch.int64]
)
def test_any_whole_numbers_are_counted(kind: object) -> None:
    values = [[0, 1, 1], [1, 0, 1]]
    label_map = (
        torch.tensor(values, dtype=kind)
        if isinstance(kind, torch.dtype)
        else np.array(values, dtype=kind)
    )  # type: ignore[call-overload]
    matrix = ConfusionMatrix(2)
    matrix.update(label_map, label_map)
    assert matrix.matrix.tolist() == [[2, 0], [0, 4]]


def test_ignored_value_of_files() -> None:
    assert count([[0, 1, 1]], [[0, 255, -1]], ignore=255).counts.tolist() == [[1, 0, 0], [0, 0, 0]]


def test_images_add_up_in_any_split() -> None:
    draws = torch.Generator().manual_seed(0)
    pairs = [
        (
            torch.randint(-1, 4, (5, 6), generator=draws),
            torch.randint(-1, 4, (5, 6), generator=draws),
        )
        for _ in range(6)
    ]
    whole, first, second = (ConfusionMatrix(4) for _ in range(3))
    for index, pair in enumerate(pairs):
        whole.update(*pair)
        (first if index % 2 else second).update(*pair)
    merged = first + second
    assert torch.equal(merged.counts, whole.counts)
    assert merged.counts.dtype == torch.int64
    assert torch.equal(merged.matrix.sum(1) + merged.unlabelled, merged.counts.sum(1))
    assert int(first.counts.sum()) < int(merged.counts.sum())  # the parts stay as they were


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        ([[0, 2]], [[0, 1]], r"prediction holds values 0\.\.2; give classes 0\.\.1"),
        ([[0, -2]], [[0, 1]], "prediction holds values -2"),
        ([[0, 1]], [[0, 255]], r"target holds values 0\.\.255"),  # 255 must be named as ignored
        ([[0, 1]], [[0, -2]], "target holds values -2"),
        ([[0, 1]], [[0], [1]], "one shape"),
        ([[0.0, 1.0]], [[0, 1]], "whole numbers"),
        ([[True, False]], [[0, 1]], "whole numbers"),
    ],
)
def test_wrong_labels_are_refused(prediction: object, target: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count(prediction, target)


def test_wrong_numbers_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ConfusionMatrix(0)
    with pytest.raises(ValueError, match="2 and 3 classes"):
        ConfusionMatrix(2) + ConfusionMatrix(3)
    with pytest.raises(ValueError, match="do not fit"):
        compute_metrics(ConfusionMatrix(2), ["a", "b", "c"], [True] * 3)
    with pytest.raises(ValueError, match="do not fit"):
        compute_metrics(ConfusionMatrix(2), ["a", "b"], [True])


def test_json_has_every_figure_at_full_precision_and_null_for_none() -> None:
    found = score(count(*MIXED, classes=4), [True, True, True, False])
    read = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert read["miou"] == found.miou
    assert read["unseen_miou"] is None and read["hiou"] is None
    assert read["absent"] == ["c3"]
    assert read["classes"][1] == {"name": "c1", "seen": True, "iou": found.iou[1], "accuracy": 0.5}
    assert read["classes"][3] == {"name": "c3", "seen": False, "iou": None, "accuracy": None}
