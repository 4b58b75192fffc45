"""Outlines of masks as polygons, for annotation programs."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Polygon = list[tuple[float, float]]


def outline_mask(mask: NDArray[np.bool_], smallest: int = 16) -> list[Polygon]:
    """Closed outlines (x, y) of the connected parts of a mask (H, W), in pixels; (0, 0) is the upper left corner.

    A hole is joined to its part by a cut of no width, so that every part is one polygon. Parts of fewer than `smallest` pixels' area are
    left out.
    """
    from contourpy import FillType, contour_generator  # comes with matplotlib

    framed = np.pad(mask.astype(np.float32), 1)  # (H + 2, W + 2); outlines close at the border of the image
    lines = contour_generator(z=framed, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    parts: list[Polygon] = []
    for points, offsets in zip(*lines, strict=True):
        rings = [points[start:end] - 0.5 for start, end in itertools.pairwise(offsets)]  # from centres in the frame to corners
        if abs(sum(_area(ring) for ring in rings)) >= smallest:
            outline = _join([_straighten(ring) for ring in rings])
            parts.append([(round(float(x), 2), round(float(y), 2)) for x, y in outline])
    return parts


def _area(ring: NDArray[np.float64]) -> float:
    """Signed area of a closed ring (N, 2); holes run the other way."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def _straighten(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """A closed ring (N, 2) without the points that lie on a straight line between their neighbours."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    corners = points[np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9]
    return np.concatenate([corners, corners[:1]])


def _join(rings: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One ring of an outer ring and its holes: to the nearest point of a hole, around it, and back."""
    outline = rings[0][:-1]
    for hole in rings[1:]:
        distance = ((outline[:, None] - hole[None, :-1]) ** 2).sum(axis=-1)  # (N, M)
        leave, enter = np.unravel_index(int(distance.argmin()), distance.shape)
        around = np.concatenate([hole[enter:-1], hole[: enter + 1]])
        outline = np.concatenate([outline[: leave + 1], around, outline[leave:]])
    return outline
