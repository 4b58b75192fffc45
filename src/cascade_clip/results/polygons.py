"""Outlines of masks as polygons, for annotation programs."""

import itertools

import numpy as np
from numpy.typing import NDArray

Polygon = list[tuple[float, float]]
_PAIRS = 2**20
"""Distances that are held at once."""


def outline_mask(mask: NDArray[np.bool_], smallest: int = 16) -> list[Polygon]:
    """Closed outlines (x, y), in pixels, (0, 0) upper left, of a mask's (H, W) connected parts.

    A hole is joined to its part by a cut of no width, so that every part is one polygon. Parts of
    fewer than `smallest` pixels' area are left out.
    """
    from contourpy import FillType, contour_generator  # comes with matplotlib

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return []
    # only of the part with the mask, since tracing takes 30 times its memory
    corner = np.array([columns[0], rows[0]]) - 0.5
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    framed = np.pad(part, 1).astype(np.float64)  # outlines close at the border of the image
    x, y = (np.arange(size, dtype=np.float64) for size in framed.shape[::-1])
    lines = contour_generator(x, y, framed, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    parts: list[Polygon] = []
    for points, offsets in zip(*lines, strict=True):
        # from centres in the frame to corners
        rings = [points[start:end] + corner for start, end in itertools.pairwise(offsets)]
        if abs(sum(_area(ring) for ring in rings)) >= smallest:
            outline = _join([_straighten(ring) for ring in rings])
            parts.append([(round(float(x), 2), round(float(y), 2)) for x, y in outline])
    return parts


def _area(ring: NDArray[np.float64]) -> float:
    """Signed area of a closed ring (N, 2); holes run the other way."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def _straighten(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """A closed ring (N, 2) without the points on a straight line between their neighbours."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    corners = points[np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9]
    return np.concatenate([corners, corners[:1]])


def _join(rings: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Join an outer ring and its holes: to the nearest point of a hole, around it, and back."""
    outline = rings[0][:-1]
    for hole in rings[1:]:
        leave, enter = _nearest(outline, hole[:-1])
        around = np.concatenate([hole[enter:-1], hole[: enter + 1]])
        outline = np.concatenate([outline[: leave + 1], around, outline[leave:]])
    return outline


def _nearest(points: NDArray[np.float64], others: NDArray[np.float64]) -> tuple[int, int]:
    """Which of points (N, 2) and of others (M, 2) are the nearest pair; of equals the first."""
    best, found = np.inf, (0, 0)
    step = max(1, _PAIRS // len(others))
    for start in range(0, len(points), step):
        distance = ((points[start : start + step, None] - others[None]) ** 2).sum(axis=-1)  # (n, M)
        place, enter = np.unravel_index(int(distance.argmin()), distance.shape)
        if distance[place, enter] < best:
            best, found = distance[place, enter], (start + int(place), int(enter))
    return found
