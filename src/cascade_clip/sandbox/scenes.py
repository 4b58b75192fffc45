"""The built-in world: clean images with a label for every pixel, and captions, without torch.

H, W: image size in pixels. An image follows from the pair (seed, index) alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from cascade_clip.errors import SettingError
from cascade_clip.sandbox.shapes import THINGS, Part, thing_colours
from cascade_clip.sandbox.textures import TEXTURES, WORLD, FloatArray, View, blend, jitter, shade

STUFF_NAMES: tuple[str, ...] = tuple(TEXTURES)
"""The classes without a shape of their own."""
THING_NAMES: tuple[str, ...] = tuple(THINGS)
"""The classes with a shape."""
CLASS_NAMES: tuple[str, ...] = STUFF_NAMES + THING_NAMES
"""Every class of the world, in label order."""
UNSEEN_NAMES: tuple[str, ...] = ("sand", "brick wall", "star", "fish", "mushroom", "umbrella")
"""The classes whose masks a zero-shot learner must not see."""
IGNORE = 255
"""Label of pixels without a class; only single-thing pictures on a plain background have it."""
SCENES_VERSION = 1
"""Raised whenever a pair (seed, index) gives another image; part of the dataset hash in reports."""

PALETTE: tuple[tuple[int, int, int], ...] = (
    (135, 196, 250), (60, 160, 60), (30, 90, 200), (235, 210, 140), (235, 240, 250),
    (165, 70, 45), (125, 85, 50), (0, 140, 140), (135, 135, 140), (150, 50, 140), (255, 215, 0),
    (120, 60, 220), (230, 25, 75), (70, 110, 255), (250, 250, 150), (255, 120, 190),
    (255, 130, 30), (0, 95, 45), (190, 40, 40), (240, 170, 160), (70, 240, 240), (60, 60, 70),
    (170, 255, 90), (185, 140, 255), (240, 50, 230), (190, 155, 20),
)  # fmt: skip
"""One colour per class, in label order."""

_SUPERSAMPLING = 4
_TEMPLATES = (
    "a photo of {}.", "a photo of {}", "a picture of {}", "an image of {}", "{}", "{}.",
    "a drawing of {}", "this is a photo of {}.", "there is {} in the scene.",
    "a photo of {} in the scene.", "a scene with {}", "{} in the picture", "a bright photo of {}.",
    "a small picture of {}", "a close-up photo of {}.", "a photo of one {}.",
    "a good photo of {}.", "a photo of the {}.",
)  # fmt: skip


@dataclass(frozen=True)
class SceneConfig:
    """What a picture of the world contains."""

    size: int = 128
    """Side of the picture, in pixels."""
    min_things: int = 1
    """Fewest things in a picture."""
    max_things: int = 4
    """Most things in a picture."""
    max_regions: int = 3
    """Most regions of stuff in the background."""
    min_radius: float = 13.0
    """Radius of the smallest things, in units of which a picture has 128."""
    max_radius: float = 30.0
    """Radius of the largest things."""
    habit: float = 0.8
    """How often a thing has the usual colours of its class."""
    noise: float = 0.02
    """Strength of the sensor noise (standard deviation; white is 1)."""
    light: float = 0.22
    """How much brightness varies over a picture and between pictures."""
    max_zoom: float = 1.0
    """Largest magnification: above 1 a picture shows a part of its scene."""
    min_share: float = 0.006
    """A class with a smaller share of the pixels is not named among those present."""

    def __post_init__(self) -> None:
        if self.size < 16:
            raise SettingError(f"size must be at least 16 pixels, got {self.size}")
        low, high, most = self.min_things, self.max_things, len(THING_NAMES)
        if not 0 <= low <= high <= most:
            raise SettingError(
                f"need 0 <= min_things <= max_things <= {most}, got {low} and {high}"
            )
        if not 1 <= self.max_regions <= 3:
            raise SettingError(f"max_regions must be 1, 2 or 3, got {self.max_regions}")
        if not 0 < self.min_radius <= self.max_radius:
            radii = f"{self.min_radius} and {self.max_radius}"
            raise SettingError(f"need 0 < min_radius <= max_radius, got {radii}")
        if self.max_zoom < 1:
            raise SettingError(f"max_zoom must be at least 1, got {self.max_zoom}")


@dataclass(frozen=True)
class Scene:
    """One picture of the world with its labels."""

    image: NDArray[np.uint8]
    """The picture, shape (H, W, 3)."""
    mask: NDArray[np.uint8]
    """Index into CLASS_NAMES per pixel, shape (H, W)."""
    present: tuple[str, ...]
    """The classes to be seen, by area, largest first."""


@dataclass(frozen=True)
class _Placement:
    """Where one thing stands, in world units."""

    name: str
    x: float
    y: float
    radius: float


def make_scene(seed: int, index: int, config: SceneConfig | None = None) -> Scene:
    """Make image `index` of the world `seed`: 1 to 3 regions of stuff, and a few things."""
    config = config or SceneConfig()
    if seed < 0:
        raise SettingError(f"the seed of scenes must be 0 or more, got {seed}")
    rng = np.random.default_rng((seed, index))
    view = _choose_view(rng, config)
    image, mask = _background(view, rng, config)
    count = int(rng.integers(config.min_things, config.max_things + 1))
    for placement in _place_things(count, rng, config):
        _draw_thing(image, mask, view, placement, config, rng)
    return _finish(image, mask, rng, config)


def make_single(seed: int, index: int, config: SceneConfig | None = None) -> Scene:
    """Make an image of one class: a thing on a plain colour or on one stuff, or only one stuff."""
    config = config or SceneConfig()
    rng = np.random.default_rng((seed, index, 1))
    view = _choose_view(rng, replace(config, max_zoom=1.0))
    kind = rng.choice(3, p=(0.35, 0.35, 0.3))
    if kind == 0:
        low = shade(rng.random(), rng.uniform(0, 0.6), rng.uniform(0.15, 1.0))
        high = shade(rng.random(), rng.uniform(0, 0.6), rng.uniform(0.15, 1.0))
        image = blend(low, high * 0.3 + low * 0.7, view.noise(rng, 3, 3))
        mask = np.full((config.size, config.size), IGNORE, np.uint8)
    else:
        image, mask = _background(view, rng, replace(config, max_regions=1))
    if kind < 2:
        radius = rng.uniform(config.max_radius * 0.8, WORLD * 0.42)
        x, y = (jitter(rng, WORLD / 2, WORLD / 2 - radius * 0.9) for _ in range(2))
        placement = _Placement(str(rng.choice(THING_NAMES)), x, y, radius)
        _draw_thing(image, mask, view, placement, config, rng)
    return _finish(image, mask, rng, config)


def choose_names(present: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
    """Draw one to three of the classes present, in random order."""
    if not present:
        raise ValueError("a caption needs at least one class that is present, got none")
    count = min(len(present), int(rng.choice((1, 2, 3), p=(0.6, 0.25, 0.15))))
    return tuple(str(name) for name in rng.permutation(np.array(present, dtype=object))[:count])


def phrase(names: Sequence[str], rng: np.random.Generator) -> str:
    """Say the names in a sentence, such as 'a photo of a star and grass.'"""
    template = str(rng.choice(_TEMPLATES))
    article = not ("one {" in template or "the {" in template)
    *words, last = [
        _with_article(name, rng) if article or position else name
        for position, name in enumerate(names)
    ]
    return template.format(f"{', '.join(words)} and {last}" if words else last)


def _with_article(name: str, rng: np.random.Generator) -> str:
    """Put 'a' or 'an' before things, and sometimes before stuff, as common prompts do."""
    if name in TEXTURES and rng.random() < 0.5:
        return name
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _choose_view(rng: np.random.Generator, config: SceneConfig) -> View:
    """The part of the world to show: all of it unless the config allows zooming in."""
    if config.max_zoom == 1:
        return View(config.size)
    side = WORLD / rng.uniform(1.0, config.max_zoom)
    return View(config.size, rng.uniform(0, WORLD - side), rng.uniform(0, WORLD - side), side)


def _background(
    view: View, rng: np.random.Generator, config: SceneConfig
) -> tuple[FloatArray, NDArray[np.uint8]]:
    """Fill the picture with regions of stuff; gives the picture (H, W, 3) and its labels (H, W)."""
    count = int(rng.integers(1, config.max_regions + 1))
    names = [str(name) for name in rng.permutation(STUFF_NAMES)[:count]]
    upright = rng.random() < 0.3
    if not upright:
        names.sort(key=lambda name: name != "sky")  # the sky is above
    image = TEXTURES[names[0]](view, rng).astype(np.float32)  # (H, W, 3)
    mask = np.full((view.size, view.size), CLASS_NAMES.index(names[0]), np.uint8)
    u, v = view.axes()
    for number, name in enumerate(names[1:], start=1):
        wave = (view.noise(rng, 5, 5) - 0.5) * jitter(rng, 14, 12)  # (H, W), in world units
        if rng.random() < 0.25:
            x, y = jitter(rng, WORLD / 2, 40), jitter(rng, WORLD / 2, 40)
            radius = rng.uniform(26, 46)
            far = np.hypot(u - np.float32(x), (v - np.float32(y)) * np.float32(1.3))
            distance = radius - far + wave
        else:
            border = jitter(rng, WORLD * number / count, 14)
            slope = jitter(rng, 0, 0.25)
            along, across = (v, u) if upright else (u, v)
            distance = across - border + slope * (along - 64) + wave
        cover = np.clip(distance * view.scale + 0.5, 0, 1).astype(np.float32)  # (H, W)
        image = blend(image, TEXTURES[name](view, rng), cover)
        mask[cover >= 0.5] = CLASS_NAMES.index(name)
    return image, mask


def _place_things(count: int, rng: np.random.Generator, config: SceneConfig) -> list[_Placement]:
    """Choose things and places from back to front; they may overlap, but seldom hide each other."""
    placements: list[_Placement] = []
    for name in rng.permutation(THING_NAMES)[:count]:
        for _ in range(6):
            low, high = np.log(config.min_radius), np.log(config.max_radius)
            radius = float(np.exp(rng.uniform(low, high)))
            x, y = (float(rng.uniform(radius * 0.7, WORLD - radius * 0.7)) for _ in range(2))
            candidate = _Placement(str(name), x, y, radius)
            if all(np.hypot(x - p.x, y - p.y) > 0.85 * (radius + p.radius) for p in placements):
                break
        placements.append(candidate)
    return placements


def _rasterise(
    parts: Sequence[Part], colours: dict[str, FloatArray], matrix: FloatArray, h: int, w: int
) -> FloatArray:
    """Draw polygons with smooth edges, shape (h, w, 4); `matrix` (2, 3) takes them to pixels."""
    canvas = Image.new("RGBA", (w * _SUPERSAMPLING, h * _SUPERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    for part in parts:
        points = (part.points @ matrix[:, :2].T + matrix[:, 2]) * _SUPERSAMPLING  # (P, 2)
        fill = (
            (0, 0, 0, 0)
            if part.colour == "hole"
            else (*(int(c * 255) for c in colours[part.colour].clip(0, 1)), 255)
        )
        draw.polygon(points.ravel().tolist(), fill=fill)
    return np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float32) / 255  # (h, w, 4)


def _draw_thing(
    image: FloatArray,
    mask: NDArray[np.uint8],
    view: View,
    placement: _Placement,
    config: SceneConfig,
    rng: np.random.Generator,
) -> None:
    """Draw one thing with its shadow into `image` (H, W, 3) and `mask` (H, W)."""
    thing = THINGS[placement.name]
    colours = thing_colours(thing, config.habit, rng)
    angle, stretch = np.radians(rng.uniform(-thing.turn, thing.turn)), jitter(rng, 1.0, 0.12)
    flip = 1 if rng.random() < 0.5 else -1
    toward_light = rng.uniform(-1, 1)
    radius = placement.radius * view.scale
    x, y = (placement.x - view.left) * view.scale, (placement.y - view.top) * view.scale
    reach = radius * 1.45 + 4 * view.scale
    left, top = max(0, int(x - reach)), max(0, int(y - reach))
    right, bottom = min(view.size, int(x + reach) + 1), min(view.size, int(y + reach) + 1)
    if right <= left or bottom <= top:
        return
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag([flip * stretch, 1 / stretch]) * radius
    matrix = np.column_stack([linear, (x - left, y - top)]).astype(np.float32)
    layer = _rasterise(thing.parts(), colours, matrix, bottom - top, right - left)  # (h, w, 4)
    alpha = layer[..., 3]  # (h, w)
    columns = (np.arange(left, right, dtype=np.float32) + 0.5 - x) / radius
    rows = (np.arange(top, bottom, dtype=np.float32) + 0.5 - y) / radius
    shading = 1 - 0.14 * rows[:, None] + 0.10 * toward_light * columns[None, :]  # (h, w)
    window = image[top:bottom, left:right]
    darkening = 1 - 0.38 * _shadow(alpha, view.scale)  # (h, w)
    for channel in range(3):  # long loops are faster than many loops of three
        below = window[..., channel] * darkening
        window[..., channel] = below + (layer[..., channel] * shading - below) * alpha
    mask[top:bottom, left:right][alpha >= 0.5] = CLASS_NAMES.index(placement.name)


def _shadow(alpha: FloatArray, scale: float) -> FloatArray:
    """A soft copy of a thing's outline, moved down and to the right, shape (h, w)."""
    moved = max(1, round(2.2 * scale))
    shifted = np.zeros(alpha.shape, np.uint8)
    shifted[moved:, moved:] = alpha[:-moved, :-moved] * 255
    blurred = Image.fromarray(shifted).filter(ImageFilter.BoxBlur(1.3 * scale))
    return np.asarray(blurred, dtype=np.float32) / 255


def _finish(
    image: FloatArray, mask: NDArray[np.uint8], rng: np.random.Generator, config: SceneConfig
) -> Scene:
    """Light the picture, add noise, and list what it shows."""
    size = config.size
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    down, across, gain = (float(rng.uniform(-config.light, config.light)) for _ in range(3))
    light = 1 + 0.6 * (down * ramp[:, None] + across * ramp[None, :]) + 0.5 * gain  # (H, W)
    tint = 1 + rng.uniform(-0.04, 0.04, 3).astype(np.float32)
    for channel in range(3):
        image[..., channel] *= light * tint[channel]
    noise = rng.standard_normal((size, size, 3), dtype=np.float32)
    image += noise * np.float32(config.noise * rng.uniform(0.3, 1.2))
    np.clip(image, 0, 1, out=image)
    image *= 255
    image += 0.5
    pixels = image.astype(np.uint8)  # (H, W, 3)
    area = np.bincount(mask.ravel(), minlength=IGNORE + 1)[: len(CLASS_NAMES)]
    order = np.argsort(-area, kind="stable")
    seen = [label for label in order if area[label] >= config.min_share * mask.size]
    return Scene(pixels, mask, tuple(CLASS_NAMES[label] for label in seen))
