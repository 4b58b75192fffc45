"""Two reports side by side, and a report beside the figures that a checkpoint stores."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade_clip.errors import DataError, MissingFileError
from cascade_clip.results import SUMMARY_METRICS


@dataclass(frozen=True)
class Row:
    """One figure in two places, each in 0..1, or None where it cannot be computed."""

    label: str
    first: float | None
    second: float | None

    @property
    def difference(self) -> float | None:
        """Second minus first."""
        return None if self.first is None or self.second is None else self.second - self.first

    def agrees(self, tolerance: float) -> bool:
        """Whether both are None, or at most `tolerance` apart."""
        if self.first is None or self.second is None:
            return self.first is self.second
        return abs(self.second - self.first) <= tolerance


@dataclass(frozen=True)
class Comparison:
    """Two reports on one data set."""

    titles: tuple[str, str]
    figures: tuple[Row, ...]
    classes: tuple[Row, ...]
    """IoU of the classes that differ most, largest difference first; unseen ones are marked."""


def compare_figures(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[Row, ...]:
    """The figures of two summaries (see `evaluate.summarise`) side by side."""
    keys = [(metric.label, metric.key) for metric in SUMMARY_METRICS]
    return tuple(Row(label, first.get(key), second.get(key)) for label, key in keys)


def read_report(path: Path) -> dict[str, Any]:
    """A report that `cascade-clip evaluate --out` wrote.

    Raises:
        FileNotFoundError, ValueError: no such file, or no report of this program.
    """
    if not path.is_file():
        command = "cascade-clip evaluate CHECKPOINT --out FOLDER"
        raise MissingFileError(f"no report {path}; `{command}` writes one")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    text = f"{path} is not a report of this version"
    if not isinstance(values, dict) or not _CHECKS.keys() <= values.keys():
        raise DataError(f"{text}: {sorted(_CHECKS)} expected; evaluate again")
    wrong = [name for name, fits in _CHECKS.items() if not fits(values[name])]
    if wrong:
        raise DataError(f"{text}: {', '.join(wrong)} hold other values; evaluate again")
    return values


def _is_summary(value: object) -> bool:
    keys = [metric.key for metric in SUMMARY_METRICS]
    return isinstance(value, dict) and all(_is_number(value.get(key)) for key in keys)


def _is_class(entry: object) -> bool:
    if not isinstance(entry, dict) or not _is_number(entry.get("iou", "")):
        return False
    return isinstance(entry.get("name"), str) and isinstance(entry.get("seen"), bool)


def _is_number(value: object) -> bool:
    """A number or null."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


_CHECKS: dict[str, Callable[[object], bool]] = {
    "images": lambda value: type(value) is int,
    "summary": _is_summary,
    "classes": lambda value: isinstance(value, list) and all(map(_is_class, value)),
    "data": lambda value: isinstance(value, dict),
    "checkpoint": lambda value: isinstance(value, dict),
}
"""The parts of a report that are read here, and whether a value is of the kind that is read."""


def compare(first: Mapping[str, Any], second: Mapping[str, Any], count: int = 10) -> Comparison:
    """Two reports, as plain values, side by side.

    Args:
        first: the report to compare with.
        second: the report whose change is of interest.
        count: at most so many classes.

    Raises:
        ValueError: their images, class lists or splits differ.
    """
    titles = _titles(first, second)
    check_same_data(first, second["images"], str(second["data"].get("sha256", "")), titles[1])
    _check_same_split(first, second)
    rows = [
        Row(before["name"] + ("" if before["seen"] else " *"), before["iou"], after["iou"])
        for before, after in zip(first["classes"], second["classes"], strict=True)
    ]
    changed = [row for row in rows if row.difference]
    changed.sort(key=lambda row: -abs(row.difference or 0.0))
    figures = compare_figures(first["summary"], second["summary"])
    return Comparison(titles, figures, tuple(changed[:count]))


def check_same_data(
    report: Mapping[str, Any], images: int, sha256: str, title: str = "now"
) -> None:
    """Refuse a report whose dataset has another number of images or another hash.

    Raises:
        ValueError: they differ; both are named.
    """
    name, stored = report["checkpoint"].get("name"), str(report["data"].get("sha256", ""))
    if stored == sha256 and report["images"] == images:
        return
    sides = ((name or "unnamed", report["images"], stored), (title, images, sha256))
    found = "; ".join(
        f"{side}: {number} images, data-set hash {digest[:12] or 'unknown'}"
        for side, number, digest in sides
    )
    text = f"the reports rest on different data and cannot be compared ({found})"
    raise DataError(f"{text}; evaluate both on the same images")


def _check_same_split(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    names = [[entry["name"] for entry in values["classes"]] for values in (first, second)]
    if names[0] != names[1]:
        text = f"the reports list other classes ({len(names[0])} and {len(names[1])})"
        raise DataError(f"{text} and cannot be compared; make them again")
    pairs = zip(first["classes"], second["classes"], strict=True)
    differing = [before["name"] for before, after in pairs if before["seen"] is not after["seen"]]
    if differing:
        text = "the reports count other classes as unseen and cannot be compared"
        raise DataError(f"{text} ({', '.join(differing[:5])}); set --unseen for both")


def _titles(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[str, str]:
    """The names of the two checkpoints, shortened to their last parts where these differ."""
    full = [str(values["checkpoint"].get("name") or "unnamed") for values in (first, second)]
    short = [Path(name).name or name for name in full]
    before, after = short if short[0] != short[1] else full
    return (before, after) if before != after else (f"{before} (before)", f"{after} (now)")
