"""What users give as a background policy, and which policy comes of it."""

from __future__ import annotations

from typing import Any

import pytest

from cascade_clip.inference.class_binding import (
    NO_BACKGROUND,
    SCENERY,
    BackgroundPolicy,
    without_none,
)
from cascade_clip.vocabulary import parse_classes


@pytest.mark.parametrize(
    ("words", "threshold", "names", "level"),
    [
        (None, None, None, None),
        ("", "none", None, None),
        ("none", 0.5, None, 0.5),
        (" None ", 0, None, 0),  # 0 is a threshold
        ([], -1.0, None, -1.0),
        ("sky, sea = ocean", "none", ("sky", "sea"), None),
        (["sky", "none"], None, ("sky", "none"), None),  # in a list, `none` is a word
        (parse_classes("sky"), 0.25, ("sky",), 0.25),
        ("scenery", None, parse_classes(SCENERY).names, None),
    ],
)
def test_policies_as_users_give_them(
    words: Any, threshold: Any, names: tuple[str, ...] | None, level: float | None
) -> None:
    policy = BackgroundPolicy.parse(words, threshold)
    assert (policy.words.names if policy.words else None) == names
    assert policy.threshold == level
    assert (policy == NO_BACKGROUND) == (names is None and level is None)


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        ("low", "a threshold is a number or 'none', got 'low'"),
        (1.5, r"scores in 0\.\.1, got 1\.5"),
        (float("nan"), "got nan"),
    ],
)
def test_thresholds_that_are_none(threshold: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BackgroundPolicy.parse(None, threshold)


def test_words_that_are_class_names_stay_class_names() -> None:
    policy = BackgroundPolicy.parse("sky, Sea, background")
    beside = policy.words_besides(("sea", "background"))
    assert beside is not None and beside.names == ("sky", "background")
    assert policy.words_besides(("sky", "sea", "x")) is not None  # `background` is left
    assert BackgroundPolicy.parse("sky").words_besides(("Sky",)) is None
    assert NO_BACKGROUND.words_besides(("sky",)) is None


def test_the_word_none_alone_means_nothing() -> None:
    assert [without_none(value) for value in ("none", " NONE", "nones", 0, "")] == [
        None,
        None,
        "nones",
        0,
        "",
    ]
