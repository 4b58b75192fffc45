"""Stuff of the built-in world: grass, water, brick wall, ... as functions of world coordinates.

The world is a square of 128 x 128 units, whatever the picture's size in pixels, so that a 64 px and
a 128 px picture show the same thing. H, W: picture size in pixels.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FloatArray = NDArray[np.floating[Any]]

WORLD = 128.0
"""Side of the world, in world units."""


@dataclass(frozen=True)
class View:
    """The square window of the world that a picture shows."""

    size: int
    """Side of the picture, in pixels."""
    left: float = 0.0
    """Left border of the window, in world units."""
    top: float = 0.0
    """Upper border of the window, in world units."""
    side: float = WORLD
    """Side of the window, in world units."""

    @property
    def scale(self) -> float:
        """Pixels per world unit."""
        return self.size / self.side

    def axes(self) -> tuple[FloatArray, FloatArray]:
        """World coordinates of the pixel centres, shapes (1, W) and (H, 1)."""
        steps = (np.arange(self.size, dtype=np.float32) + 0.5) / np.float32(self.scale)
        return (steps + np.float32(self.left))[None, :], (steps + np.float32(self.top))[:, None]

    def noise(self, rng: np.random.Generator, rows: int, columns: int) -> FloatArray:
        """Smooth noise of about 0..1, `rows` x `columns` bumps over the whole world, (H, W)."""
        grid = Image.fromarray(rng.random((rows + 2, columns + 2), dtype=np.float32))
        across, down = columns / WORLD, rows / WORLD
        left, top = 1 + self.left * across, 1 + self.top * down
        right, bottom = 1 + (self.left + self.side) * across, 1 + (self.top + self.side) * down
        box = left, top, right, bottom
        # (H, W)
        return np.asarray(grid.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box))


Texture = Callable[[View, np.random.Generator], FloatArray]


def shade(hue: float, saturation: float, value: float) -> FloatArray:
    """RGB values in 0..1 of a hue (any number; its fraction counts), saturation and value."""
    clipped = min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0)
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, *clipped), dtype=np.float32)


def jitter(rng: np.random.Generator, centre: float, spread: float) -> float:
    """A number evenly drawn from centre +- spread."""
    return float(rng.uniform(centre - spread, centre + spread))


def blend(low: FloatArray, high: FloatArray, amount: FloatArray) -> FloatArray:
    """Mix two colours (3,) or pictures (H, W, 3) by an amount (H, W)."""
    share, span = np.clip(amount, 0, 1), high - low
    mixed: FloatArray = np.empty((*share.shape, 3), np.result_type(span, share))  # (H, W, 3)
    for channel in range(3):  # three long loops are faster than many loops of three
        np.multiply(span[..., channel], share, out=mixed[..., channel])
        mixed[..., channel] += low[..., channel]
    return mixed


def _edge(distance: FloatArray, view: View) -> FloatArray:
    """1 where distance (world units) is positive, 0 where negative, with a slope of one pixel."""
    slope: FloatArray = np.clip(distance * np.float32(view.scale) + np.float32(0.5), 0, 1)
    return slope


def grass(view: View, rng: np.random.Generator) -> FloatArray:
    """Upright blades of many greens."""
    hue = jitter(rng, 0.29, 0.035)
    blades = 0.65 * view.noise(rng, 18, 76) + 0.35 * view.noise(rng, 40, 110)
    patches = view.noise(rng, 4, 4)
    dark = shade(hue + 0.03, 0.75, jitter(rng, 0.28, 0.06))
    light = shade(hue - 0.05, 0.68, jitter(rng, 0.74, 0.08))
    return blend(dark, light, (blades - 0.5) * 1.9 + 0.3 + 0.4 * patches)


def water(view: View, rng: np.random.Generator) -> FloatArray:
    """Blue ripples with bright crests."""
    hue = jitter(rng, 0.56, 0.035)
    _, v = view.axes()
    wavy = view.noise(rng, 16, 5)
    ripple = np.sin(v * np.float32(jitter(rng, 0.62, 0.1)) + wavy * 9) * 0.5 + 0.5
    dark, light = shade(hue + 0.03, 0.85, 0.42), shade(hue, 0.68, jitter(rng, 0.74, 0.08))
    body = blend(dark, light, 0.75 * ripple + 0.3 * wavy)
    crest = np.clip((ripple * view.noise(rng, 30, 12) - 0.62) * 6, 0, 0.85)
    return blend(body, shade(hue, 0.1, 1.0), crest)


def sand(view: View, rng: np.random.Generator) -> FloatArray:
    """Pale dunes with fine grain."""
    hue = jitter(rng, 0.115, 0.018)
    u, v = view.axes()
    slope = jitter(rng, 0.0, 0.35)
    across = (v + u * np.float32(slope)) * np.float32(jitter(rng, 0.34, 0.06))
    dune = np.sin(across + view.noise(rng, 4, 4) * 7)
    grain = view.noise(rng, 110, 110) - 0.5
    dark, light = shade(hue - 0.015, 0.52, 0.70), shade(hue, 0.34, jitter(rng, 0.95, 0.04))
    return blend(dark, light, 0.55 + 0.33 * dune + 0.5 * grain)


def sky(view: View, rng: np.random.Generator) -> FloatArray:
    """A blue gradient with soft clouds."""
    hue = jitter(rng, 0.575, 0.025)
    _, v = view.axes()
    height = np.broadcast_to(v / np.float32(WORLD), (view.size, view.size))
    air = blend(shade(hue, jitter(rng, 0.62, 0.1), 0.88), shade(hue, 0.22, 0.99), height * 1.1)
    large, medium, small = (view.noise(rng, *bumps) for bumps in ((6, 4), (14, 9), (30, 22)))
    clouds = 0.6 * large + 0.28 * medium + 0.12 * small
    cover = np.clip((clouds - jitter(rng, 0.55, 0.05)) * 4.5, 0, 0.95)
    return blend(air, np.ones(3, np.float32), cover)


def snow(view: View, rng: np.random.Generator) -> FloatArray:
    """White drifts with bluish hollows and sparkles."""
    hue = jitter(rng, 0.60, 0.03)
    drifts = 0.7 * view.noise(rng, 7, 5) + 0.3 * view.noise(rng, 18, 14)
    body = blend(shade(hue, 0.24, 0.84), shade(hue, 0.02, 0.99), (drifts - 0.25) * 2.0)
    sparkle = (view.noise(rng, 90, 90) - 0.72) * 2.5
    hollows = (0.24 - view.noise(rng, 60, 60)) * 2.0
    return blend(blend(body, shade(hue, 0.35, 0.72), hollows), np.ones(3, np.float32), sparkle)


def brick_wall(view: View, rng: np.random.Generator) -> FloatArray:
    """Rows of reddish bricks with pale mortar."""
    hue = jitter(rng, 0.025, 0.02)
    u, v = view.axes()
    height = jitter(rng, 9.0, 1.2)
    width = 2.0 * height
    row = v / np.float32(height)
    column = u / np.float32(width) + 0.5 * (np.floor(row) % 2)  # (H, W)
    down, across = (row % 1) * height, (column % 1) * width
    inside = np.minimum(np.minimum(down, height - down), np.minimum(across, width - across))
    tones = rng.random((16, 16), dtype=np.float32)
    # (H, W)
    tone = tones[np.floor(row).astype(np.int64) % 16, np.floor(column).astype(np.int64) % 16]
    rough = view.noise(rng, 60, 60)
    dark, light = shade(hue, 0.72, 0.46), shade(hue + 0.02, 0.62, jitter(rng, 0.80, 0.06))
    bricks = blend(dark, light, 0.65 * tone + 0.5 * rough - 0.05)
    mortar = shade(0.09, 0.12, jitter(rng, 0.82, 0.06))
    return blend(mortar, bricks, _edge(inside - np.float32(0.75), view))


def wood(view: View, rng: np.random.Generator) -> FloatArray:
    """Brown boards with long grain."""
    hue = jitter(rng, 0.075, 0.015)
    u, v = view.axes()
    upright = rng.random() < 0.5
    along, over = (v, u) if upright else (u, v)
    grain_warp = view.noise(rng, 3, 12) if upright else view.noise(rng, 12, 3)
    fibre = view.noise(rng, 8, 110) if upright else view.noise(rng, 110, 8)
    width = jitter(rng, 22.0, 4.0)
    board = over / np.float32(width)
    tone = rng.random(16, dtype=np.float32)[np.floor(board).astype(np.int64) % 16]
    grain = np.sin((over * 0.95 + tone * 40) + grain_warp * 11 + along * 0.02) * 0.5 + 0.5  # (H, W)
    dark, light = shade(hue - 0.01, 0.70, 0.36), shade(hue + 0.01, 0.55, jitter(rng, 0.74, 0.06))
    body = blend(dark, light, 0.42 * grain + 0.35 * fibre + 0.4 * tone - 0.05)
    gap = np.minimum(board % 1, 1 - board % 1) * np.float32(width)
    return body * (1 - 0.7 * (1 - _edge(gap - np.float32(0.6), view)))[..., None]


def tiles(view: View, rng: np.random.Generator) -> FloatArray:
    """A chequered floor of two tones with joints."""
    hue, side = float(rng.random()), jitter(rng, 14.0, 2.5)
    u, v = view.axes()
    if rng.random() < 0.4:
        u, v = (u + v) * np.float32(0.7071), (v - u) * np.float32(0.7071)
    column, row = u / np.float32(side), v / np.float32(side)
    odd = ((np.floor(column) + np.floor(row)) % 2).astype(np.float32)  # (H, W)
    polish = view.noise(rng, 12, 12) - 0.5
    dark = shade(hue, jitter(rng, 0.35, 0.2), jitter(rng, 0.38, 0.12))
    body = blend(dark, shade(hue, 0.08, 0.95), odd * 0.9 + 0.05 + 0.12 * polish)
    across, down = (np.minimum(place % 1, 1 - place % 1) for place in (column, row))
    joint = np.minimum(across, down) * np.float32(side)
    return blend(np.full(3, 0.62, np.float32), body, _edge(joint - np.float32(0.45), view))


def gravel(view: View, rng: np.random.Generator) -> FloatArray:
    """Grey pebbles, each a cell of a Voronoi diagram."""
    side = np.float32(jitter(rng, 7.0, 0.8))
    u, v = view.axes()
    column, row = u / side, v / side
    left, top = np.floor(column).astype(np.int64), np.floor(row).astype(np.int64)
    # (3, rows, columns)
    points = rng.random((24, 24, 3), dtype=np.float32).transpose(2, 0, 1).copy()
    nearest = np.full((view.size, view.size), 9.0, np.float32)
    second, tone = nearest.copy(), nearest.copy()
    for step in range(9):
        x, y = left + step % 3 - 1, top + step // 3 - 1
        across, down, shading = points[:, y % 24, x % 24]  # (H, W) each
        distance = (x + across * 0.8 + 0.1 - column) ** 2 + (y + down * 0.8 + 0.1 - row) ** 2
        closer = distance < nearest
        second = np.where(closer, nearest, np.minimum(second, distance))
        tone = np.where(closer, shading, tone)
        nearest = np.minimum(nearest, distance)
    pebble = np.clip((np.sqrt(second) - np.sqrt(nearest)) * 2.8, 0, 1)
    hue = jitter(rng, 0.09, 0.04)
    stone = blend(shade(hue + 0.5, 0.08, 0.50), shade(hue, 0.12, 0.88), tone * 1.1 - 0.25 * nearest)
    return stone * (0.32 + 0.68 * pebble)[..., None]


def fabric(view: View, rng: np.random.Generator) -> FloatArray:
    """Woven cloth with a plaid pattern."""
    hue = jitter(rng, 0.86, 0.09)
    u, v = view.axes()
    period = np.float32(jitter(rng, 26.0, 4.0))
    bands = np.array([0.1, 0.1, 0.9, 0.1, 0.55, 0.55, 0.1, 0.9], np.float32)
    across = bands[(np.floor(u / period * 8) % 8).astype(np.int64)]  # (1, W)
    down = bands[(np.floor(v / period * 8) % 8).astype(np.int64)]  # (H, 1)
    weave = np.sin(u * np.float32(1.6)) * np.sin(v * np.float32(1.6))
    folds = view.noise(rng, 3, 3) - 0.5
    dark, light = shade(hue, 0.72, jitter(rng, 0.5, 0.08)), shade(hue + 0.06, 0.25, 0.95)
    plaid = blend(dark, light, (across + down) * 0.48)
    folded: FloatArray = plaid * (1 + 0.13 * weave + 0.35 * folds)[..., None]  # (H, W, 3)
    return folded


TEXTURES: dict[str, Texture] = {
    "sky": sky,
    "grass": grass,
    "water": water,
    "sand": sand,
    "snow": snow,
    "brick wall": brick_wall,
    "wood": wood,
    "tiles": tiles,
    "gravel": gravel,
    "fabric": fabric,
}
"""The texture of every stuff class, in label order."""
