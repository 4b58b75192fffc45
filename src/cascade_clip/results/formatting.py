"""Numbers as people read them, written the same way on every page and screen."""

from __future__ import annotations

import math


def percent(value: float | None, digits: int = 2) -> str:
    """Write a share in 0..1 in percent, without the sign; `-` where there is none (None, NaN)."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def duration(seconds: float) -> str:
    """Write a duration in its largest unit, such as `41.0 s`, `4.5 min`, `2.3 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
