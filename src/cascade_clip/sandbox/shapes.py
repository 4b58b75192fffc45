"""Things of the built-in world as coloured polygons in a box from -1 to 1 (y points down)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade_clip.sandbox.textures import FloatArray, shade

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """One polygon of a thing."""

    points: Points  # (P, 2), x and y
    colour: str
    """main, dark, light, accent, white, black, brown, green; hole cuts through what is below."""


@dataclass(frozen=True)
class Thing:
    """How a thing class looks: its polygons from back to front, and its colour habit."""

    parts: Callable[[], list[Part]]
    hue: float
    """Usual hue of the main colour, 0..1."""
    accent: float
    """Usual hue of the accent colour, 0..1."""
    turn: float = 18.0
    """Largest rotation either way, in degrees."""
    vivid: tuple[float, float] = (0.78, 0.92)
    """Usual saturation and value of the main colour."""


def _disc(x: float, y: float, radius: float, height: float | None = None) -> Points:
    """An ellipse as a polygon."""
    angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    return np.stack([x + radius * np.cos(angle), y + (height or radius) * np.sin(angle)], axis=1)


def _arc(x: float, y: float, radius: float, start: float, end: float, count: int = 20) -> Points:
    """Points on a circle from angle `start` to `end`, in degrees."""
    angle = np.radians(np.linspace(start, end, count))
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    """An upright rectangle as a polygon."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=float)


def _poly(*points: tuple[float, float]) -> Points:
    """A polygon from its corners."""
    return np.array(points, dtype=float)


def _star() -> list[Part]:
    angle = np.radians(np.arange(10) * 36 - 90)
    outline = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)[:, None]
    return [Part(outline * radius, "dark"), Part(outline * radius * 0.86, "main")]


def _ring() -> list[Part]:
    discs = ((1.0, "dark"), (0.93, "main"), (0.6, "dark"), (0.53, "hole"))
    return [Part(_disc(0, 0, radius), colour) for radius, colour in discs]


def _heart() -> list[Part]:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    shine = Part(_disc(-0.42, -0.4, 0.14, 0.2), "light")
    return [Part(np.stack([x, y], axis=1) / 16.5, "main"), shine]


def _arrow() -> list[Part]:
    outline = _poly(
        (-1, -0.28), (0.12, -0.28), (0.12, -0.78), (1, 0), (0.12, 0.78), (0.12, 0.28), (-1, 0.28)
    )
    return [Part(outline, "dark"), Part(outline * [0.9, 0.78], "main")]


def _moon() -> list[Part]:
    outer, inner = _arc(0, 0, 1.0, 50, 310, 30), _arc(0.52, 0, 0.86, 296, 64, 30)
    craters = [Part(_disc(-0.66, 0.15, 0.13), "dark"), Part(_disc(-0.45, -0.55, 0.1), "dark")]
    return [Part(np.concatenate([outer, inner]), "main"), *craters]


def _flower() -> list[Part]:
    angles = np.radians(np.arange(6) * 60 - 90)
    petals = [
        Part(_disc(0.6 * np.cos(a), 0.6 * np.sin(a), 0.4), "main" if i % 2 else "light")
        for i, a in enumerate(angles)
    ]
    return [*petals, Part(_disc(0, 0, 0.36), "accent")]


def _fish() -> list[Part]:
    tail = _poly((0.35, 0), (1, -0.6), (0.85, 0), (1, 0.6))
    fin = _poly((-0.35, -0.35), (0.1, -0.82), (0.35, -0.3))
    body = Part(_disc(-0.25, 0, 0.75, 0.5), "main")
    stripes = [Part(_box(x, -0.42, x + 0.13, 0.42), "light") for x in (-0.25, 0.08)]
    eye = [Part(_disc(-0.62, -0.1, 0.14), "white"), Part(_disc(-0.64, -0.1, 0.08), "black")]
    return [Part(tail, "dark"), Part(fin, "dark"), body, *stripes, *eye]


def _tree() -> list[Part]:
    layers = [
        Part(_poly((0, top), (wide, top + 0.75), (-wide, top + 0.75)), colour)
        for top, wide, colour in ((-0.1, 0.82, "dark"), (-0.55, 0.66, "main"), (-1, 0.48, "light"))
    ]
    return [Part(_box(-0.14, 0.5, 0.14, 1), "brown"), *layers]


def _house() -> list[Part]:
    windows = [Part(_box(x, 0.1, x + 0.32, 0.42), "accent") for x in (-0.6, 0.28)]
    door = Part(_box(-0.15, 0.4, 0.15, 1), "brown")
    chimney = Part(_box(0.4, -0.85, 0.62, -0.2), "dark")
    wall = Part(_box(-0.78, -0.15, 0.78, 1), "white")
    roof = Part(_poly((0, -1), (1, -0.1), (-1, -0.1)), "main")
    return [chimney, wall, roof, *windows, door]


def _mushroom() -> list[Part]:
    cap = np.concatenate([_arc(0, 0, 0.98, 180, 360, 26), _poly((0.9, 0.2), (-0.9, 0.2))])
    stem = _poly((-0.26, 0.1), (0.26, 0.1), (0.36, 1), (-0.36, 1))
    dots = ((-0.5, -0.3, 0.18), (0.12, -0.58, 0.2), (0.58, -0.14, 0.16), (-0.05, -0.05, 0.12))
    return [Part(stem, "white"), Part(cap, "main"), *(Part(_disc(*dot), "white") for dot in dots)]


def _boat() -> list[Part]:
    hull = _poly((-1, 0.4), (1, 0.4), (0.6, 0.95), (-0.65, 0.95))
    sail = _poly((0.06, -1), (0.06, 0.24), (0.85, 0.24))
    jib = _poly((-0.1, -0.75), (-0.1, 0.24), (-0.75, 0.24))
    mast = _box(-0.07, -1, 0.05, 0.45)
    return [Part(mast, "brown"), Part(sail, "white"), Part(jib, "accent"), Part(hull, "main")]


def _car() -> list[Part]:
    body = _poly(
        (-1, 0.1), (-0.95, -0.08), (-0.55, -0.12), (0.7, -0.12), (0.95, 0.0), (1, 0.42), (-1, 0.42)
    )
    cabin = _poly((-0.6, -0.1), (-0.35, -0.6), (0.35, -0.6), (0.65, -0.1))
    panes = [
        Part(_poly((-0.45, -0.12), (-0.28, -0.48), (-0.04, -0.48), (-0.04, -0.12)), "accent"),
        Part(_poly((0.06, -0.12), (0.06, -0.48), (0.29, -0.48), (0.5, -0.12)), "accent"),
    ]
    wheels = [
        Part(_disc(x, 0.42, r), colour)
        for x in (-0.52, 0.52)
        for r, colour in ((0.25, "black"), (0.12, "white"))
    ]
    return [Part(cabin, "dark"), *panes, Part(body, "main"), *wheels]


def _balloon() -> list[Part]:
    string = _poly((-0.03, 0.5), (0.05, 0.5), (0.1, 0.75), (0.04, 1), (-0.04, 1), (0.02, 0.75))
    knot = _poly((0, 0.4), (0.14, 0.58), (-0.14, 0.58))
    body, shine = _disc(0, -0.28, 0.64, 0.72), _disc(-0.25, -0.55, 0.13, 0.2)
    return [Part(string, "black"), Part(knot, "dark"), Part(body, "main"), Part(shine, "light")]


def _butterfly() -> list[Part]:
    wings = []
    for side in (-1.0, 1.0):
        wings += [
            Part(_disc(side * 0.45, 0.42, 0.36, 0.42), "accent"),
            Part(_disc(side * 0.55, -0.35, 0.45, 0.48), "main"),
            Part(_disc(side * 0.58, -0.38, 0.2), "light"),
            Part(_poly((0, -0.6), (side * 0.32, -1), (side * 0.24, -1)), "black"),
        ]
    return [*wings, Part(_disc(0, 0, 0.12, 0.72), "black")]


def _umbrella() -> list[Part]:
    scallops = [_arc(x, 0, r, 0, -180, 8) for x, r in ((0.66, 0.32), (0, 0.34), (-0.66, 0.32))]
    top = np.concatenate([_arc(0, 0, 0.98, 180, 360, 26), *scallops])
    panel = np.concatenate([_poly((0, -0.98)), _arc(0, 0, 0.34, 0, -180, 8)])
    hook = np.concatenate([_arc(0.2, 0.72, 0.26, 180, 0, 12), _arc(0.2, 0.72, 0.13, 0, 180, 12)])
    stick = _box(-0.06, -0.4, 0.07, 0.74)
    return [Part(stick, "brown"), Part(hook, "brown"), Part(top, "main"), Part(panel, "light")]


def _key() -> list[Part]:
    teeth = [Part(_box(x, 0.1, x + 0.18, h), "main") for x, h in ((0.42, 0.42), (0.76, 0.52))]
    bow = [Part(_disc(-0.55, 0, 0.46), "main"), Part(_disc(-0.55, 0, 0.23), "hole")]
    return [*bow, Part(_box(-0.12, -0.12, 0.98, 0.14), "main"), *teeth]


THINGS: dict[str, Thing] = {
    "star": Thing(_star, hue=0.14, accent=0.1, turn=40, vivid=(0.85, 0.98)),
    "ring": Thing(_ring, hue=0.78, accent=0.1, turn=90),
    "heart": Thing(_heart, hue=0.97, accent=0.9),
    "arrow": Thing(_arrow, hue=0.62, accent=0.1, turn=180),
    "moon": Thing(_moon, hue=0.16, accent=0.1, turn=40, vivid=(0.35, 0.97)),
    "flower": Thing(_flower, hue=0.91, accent=0.14, turn=30, vivid=(0.58, 0.96)),
    "fish": Thing(_fish, hue=0.06, accent=0.1, vivid=(0.88, 0.97)),
    "tree": Thing(_tree, hue=0.38, accent=0.1, turn=6, vivid=(0.8, 0.55)),
    "house": Thing(_house, hue=0.02, accent=0.55, turn=5, vivid=(0.75, 0.7)),
    "mushroom": Thing(_mushroom, hue=0.0, accent=0.1, turn=14),
    "boat": Thing(_boat, hue=0.58, accent=0.03, turn=8, vivid=(0.8, 0.6)),
    "car": Thing(_car, hue=0.5, accent=0.56, turn=8),
    "balloon": Thing(_balloon, hue=0.33, accent=0.1, turn=14),
    "butterfly": Thing(_butterfly, hue=0.74, accent=0.08, turn=30),
    "umbrella": Thing(_umbrella, hue=0.83, accent=0.1, turn=16),
    "key": Thing(_key, hue=0.12, accent=0.1, turn=180, vivid=(0.6, 0.78)),
}
"""The look of every thing class, in label order."""

_FIXED = {
    "white": (0.97, 0.96, 0.93),
    "black": (0.13, 0.12, 0.15),
    "brown": (0.45, 0.29, 0.17),
    "green": (0.2, 0.55, 0.25),
}


def thing_colours(thing: Thing, habit: float, rng: np.random.Generator) -> dict[str, FloatArray]:
    """Draw the colours of one thing: the usual ones with probability `habit`, else any hue."""
    usual = rng.random() < habit
    hue = thing.hue + rng.normal(0, 0.025) if usual else rng.random()
    saturation, value = 0.75, 0.88
    if usual:
        saturation = thing.vivid[0] + rng.normal(0, 0.06)
        value = thing.vivid[1] + rng.normal(0, 0.04)
    colours = {name: np.array(rgb, dtype=np.float32) for name, rgb in _FIXED.items()}
    colours["main"] = shade(hue, saturation, value)
    colours["dark"] = shade(hue - 0.015, saturation + 0.1, value * 0.72)
    colours["light"] = shade(hue + 0.02, saturation * 0.5, min(1.0, value * 1.2))
    colours["accent"] = shade(thing.accent + rng.normal(0, 0.03), 0.7, 0.95)
    return colours
