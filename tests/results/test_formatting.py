"""Shares and durations as text."""

from __future__ import annotations

import pytest

from cascade_clip.results import format_clock, format_duration, format_percent


@pytest.mark.parametrize(
    ("value", "settings", "expected"),
    [
        (0.41234, {}, "41.23"),
        (0.41234, {"digits": 1}, "41.2"),
        (0.041, {"signed": True}, "+4.10"),
        (-0.041, {"signed": True}, "-4.10"),
        (0.0, {}, "0.00"),
        (None, {}, "-"),  # the metric is not defined
        (float("nan"), {"signed": True}, "-"),  # a class that does not occur
    ],
)
def test_percent(value: float | None, settings: dict[str, int], expected: str) -> None:
    assert format_percent(value, **settings) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "duration", "clock"),
    [
        (0, "0.0 s", "0:00"),
        (59.94, "59.9 s", "1:00"),
        (245, "4.1 min", "4:05"),
        (7500, "2 h 05 min", "2:05:00"),
        (7199, "2 h 00 min", "1:59:59"),  # never 1 h 60 min
    ],
)
def test_durations(seconds: float, duration: str, clock: str) -> None:
    assert (format_duration(seconds), format_clock(seconds)) == (duration, clock)
