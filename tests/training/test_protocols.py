"""Labels become targets by protocol, and unseen labels leave no trace in inductive training."""

from __future__ import annotations

import pytest
import torch

from cascade_clip.config import find_part

SEEN = torch.tensor([True, False, True, True, False])
LABELS = torch.tensor([[[0, 1], [2, 3]], [[4, -1], [1, 0]]])
LOGITS = torch.zeros(2, 5, 1, 1)
LOGITS[0, 1] = -3.0  # image 0: class 4 beats class 1
LOGITS[1, 1] = 3.0  # image 1: class 1 beats class 4
LOGITS[:, 0] = 9.0  # a seen class never becomes a pseudo-label


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        # seen classes by rank, unseen ignored
        ("inductive", [[[0, -1], [1, 2]], [[-1, -1], [-1, 0]]]),
        ("supervised", [[[0, 1], [2, 3]], [[4, -1], [1, 0]]]),  # as they are
        # unseen pixels by the model's own guess; ignore stays
        ("transductive", [[[0, 4], [2, 3]], [[1, -1], [1, 0]]]),
    ],
)
def test_targets(protocol: str, expected: list[list[list[int]]]) -> None:
    assert find_part("protocols", protocol)(SEEN).targets(LABELS, LOGITS, 2).tolist() == expected


@pytest.mark.parametrize(
    ("protocol", "rows"),
    [("inductive", [0, 2, 3]), ("transductive", [0, 1, 2, 3, 4]), ("supervised", [0, 1, 2, 3, 4])],
)
def test_queries(protocol: str, rows: list[int]) -> None:
    text = torch.arange(10.0).reshape(5, 2)
    assert torch.equal(find_part("protocols", protocol)(SEEN).queries(text), text[rows])


@pytest.mark.parametrize("protocol", ["inductive", "transductive"])
def test_which_unseen_class_a_pixel_has_makes_no_difference(protocol: str) -> None:
    scrambled = torch.where(LABELS == 1, 4, torch.where(LABELS == 4, 1, LABELS))
    assert not torch.equal(scrambled, LABELS)
    rule = find_part("protocols", protocol)(SEEN)
    assert torch.equal(rule.targets(LABELS, LOGITS, 2), rule.targets(scrambled, LOGITS, 2))


@pytest.mark.parametrize(
    ("protocol", "seen", "message"),
    [
        ("transductive", [True, True], "needs unseen classes"),
        ("inductive", [False, False], "at least one seen class"),
    ],
)
def test_splits_that_make_no_sense(protocol: str, seen: list[bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_part("protocols", protocol)(torch.tensor(seen))


def test_what_augmentation_may_see() -> None:
    seen = torch.tensor([True, False, True, False])
    labels = torch.tensor([[0, 1, 2], [3, -1, 0]])
    assert find_part("protocols", "inductive")(seen).hide(labels).tolist() == [
        [0, -1, 2],
        [-1, -1, 0],
    ]
    # that it is unseen, not which
    assert find_part("protocols", "transductive")(seen).hide(labels).tolist() == [
        [0, 1, 2],
        [1, -1, 0],
    ]
    assert find_part("protocols", "supervised")(seen).hide(labels).tolist() == labels.tolist()
    assert find_part("protocols", "supervised")(torch.tensor([True, True])).hide(
        torch.tensor([[1, -1]])
    ).tolist() == [[1, -1]]
