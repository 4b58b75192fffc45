"""Shares and durations as text, the same in every table, report and message."""


def format_percent(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """A share in 0..1 as a number of percent; `-` where there is none (None or NaN)."""
    if value is None or value != value:
        return "-"
    return f"{100 * value:{'+' if signed else ''}.{digits}f}"


def format_duration(seconds: float) -> str:
    """A duration for reading: `12.3 s`, `4.5 min` or `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min"


def format_clock(seconds: float) -> str:
    """A duration as a clock shows it: `4:05` or `2:04:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
