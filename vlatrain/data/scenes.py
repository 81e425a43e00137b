"""Generated scenes: a few coloured shapes on a plain canvas, drawn the same on every machine.

A scene is a small immutable description; `render` turns it into pixels. Outlines are rounded to 1/64 pixel before
anything is drawn and coverage is counted in integers on a 4 x 4 grid a pixel, so that no rounding of a maths library
can change a pixel; chance comes from `random.Random.random`, whose stream Python guarantees.

`tiny_blip` and `tiny_clip` were pre-trained on such scenes (scripts/pretrain_tiny.py) and the built-in tasks
(`vlatrain.data.shapes`) are made of them.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from PIL import Image

CANVAS = 64  # pixels a side
UNIT = 64  # outline units a pixel
GRID = 4  # coverage samples a pixel and axis

Rgb = tuple[int, int, int]
Point = tuple[int, int]
T = TypeVar("T")

#: Shades of each colour word; a shape's colour is one of them, jittered.
COLOURS: dict[str, tuple[Rgb, ...]] = {
    "red": ((255, 0, 0), (220, 20, 40), (235, 40, 30)),
    "green": ((0, 255, 0), (0, 128, 0), (34, 139, 34), (50, 205, 50), (0, 180, 20)),
    "blue": ((0, 0, 255), (30, 60, 220), (65, 105, 225), (10, 10, 150)),
    "yellow": ((255, 255, 0), (255, 225, 20), (240, 235, 60)),
    "orange": ((255, 140, 0), (255, 155, 10), (250, 120, 20)),
    "purple": ((128, 0, 128), (148, 0, 211), (120, 40, 190)),
    "pink": ((255, 105, 180), (255, 182, 193), (255, 60, 170)),
    "brown": ((165, 42, 42), (139, 69, 19), (115, 60, 30)),
    "gray": ((128, 128, 128), (105, 105, 105), (155, 155, 155)),
    "black": ((0, 0, 0), (20, 20, 20)),
    "white": ((255, 255, 255), (244, 244, 244)),
    "teal": ((0, 128, 128), (20, 145, 140), (0, 110, 115)),
}
KINDS = ("circle", "rectangle", "triangle", "star", "cross", "ring", "diamond")


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """A uniform choice that draws on `rng.random` alone, whose stream does not change between Python versions."""
    return options[int(rng.random() * len(options))]


def between(rng: random.Random, low: float, high: float) -> float:
    """A uniform number in [low, high)."""
    return low + (high - low) * rng.random()


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    """The items in random order."""
    return [item for _, _, item in sorted((rng.random(), place, item) for place, item in enumerate(items))]


@dataclass(frozen=True, slots=True)
class Figure:
    """One coloured shape.

    Attributes:
        kind: one of `KINDS`.
        colour: one of `COLOURS`; rgb: its jittered shade.
        box: left, top, right, bottom in units of 1/64 pixel.
        outline: polygon in units of 1/64 pixel; empty for round kinds.
        radii: outer radius of a circle; outer and inner radius of a ring.
    """

    kind: str
    colour: str
    rgb: Rgb
    box: tuple[int, int, int, int]
    outline: tuple[Point, ...] = ()
    radii: tuple[int, ...] = ()

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the box (x, y) in pixels."""
        return (self.box[0] + self.box[2]) / (2 * UNIT), (self.box[1] + self.box[3]) / (2 * UNIT)

    @property
    def extent(self) -> float:
        """The longer side of the box in pixels."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1]) / UNIT


@dataclass(frozen=True)
class Scene:
    """A canvas with shapes that do not overlap. It is a `Picture`: loads as a 64 x 64 RGB image.

    Attributes:
        figures: the shapes; background: canvas colour; noise: half-width of uniform pixel noise (0..255 scale);
        grain: seed of the noise.
    """

    figures: tuple[Figure, ...]
    background: Rgb
    noise: int = 0
    grain: int = 0

    @cached_property
    def key(self) -> str:
        """Content identity."""
        facts = (self.figures, self.background, self.noise, self.grain if self.noise else 0)
        return "shapes-" + hashlib.sha256(repr(facts).encode()).hexdigest()[:24]

    def load(self) -> Image.Image:
        """The drawn image, RGB, 64 x 64."""
        return Image.fromarray(render(self))


@dataclass(frozen=True)
class SceneMask:
    """What each pixel of a scene shows: 0 for the canvas, else the place of the figure's kind in `KINDS`, from 1. A `Picture`.

    Attributes:
        scene: the scene.
        names: what the classes are called.
    """

    scene: Scene
    names: tuple[str, ...]

    @property
    def key(self) -> str:
        """Content identity."""
        return f"{self.scene.key}-mask"

    def ids(self) -> np.ndarray:
        """(64, 64): pixels that a figure covers in part, its edge, are 255, which is ignored."""
        found = np.zeros((CANVAS, CANVAS), dtype=np.int32)
        for figure in self.scene.figures:
            share = cover(figure)
            found[share > 0] = 255
            found[share == GRID * GRID] = 1 + KINDS.index(figure.kind)
        return found

    def load(self) -> Image.Image:
        """The classes as an image: 64 x 64, one number a pixel."""
        return Image.fromarray(self.ids().astype(np.uint8))


def cover(figure: Figure) -> np.ndarray:
    """How much of each pixel the figure covers: (64, 64) uint8, 0 to 16."""
    step = UNIT // GRID
    left, top, right, bottom = figure.box
    x0, y0 = max(left // UNIT, 0), max(top // UNIT, 0)
    x1, y1 = min(right // UNIT + 1, CANVAS), min(bottom // UNIT + 1, CANVAS)
    xs = np.arange(x0 * GRID, x1 * GRID, dtype=np.int64) * step + step // 2
    ys = (np.arange(y0 * GRID, y1 * GRID, dtype=np.int64) * step + step // 2)[:, None]
    if figure.radii:
        squared = (2 * xs - left - right) ** 2 + (2 * ys - top - bottom) ** 2
        inside = squared <= (2 * figure.radii[0]) ** 2
        if len(figure.radii) == 2:
            inside &= squared >= (2 * figure.radii[1]) ** 2
    else:
        inside = np.zeros((len(ys), len(xs)), dtype=bool)
        ends = figure.outline[1:] + figure.outline[:1]
        for (ax, ay), (bx, by) in zip(figure.outline, ends, strict=True):  # even-odd rule, edge by edge
            if ay > by:
                ax, ay, bx, by = bx, by, ax, ay
            low, high = np.searchsorted(ys[:, 0], (ay, by))
            rows = ys[low:high]
            inside[low:high] ^= (xs - ax) * (by - ay) < (bx - ax) * (rows - ay)
    # (h * 4, w * 4) -> (h, 4, w, 4) -> (h, w)
    counts = inside.reshape(y1 - y0, GRID, x1 - x0, GRID).sum((1, 3), dtype=np.uint8)
    whole = np.zeros((CANVAS, CANVAS), dtype=np.uint8)
    whole[y0:y1, x0:x1] = counts
    return whole


def paint(scene: Scene, covers: Sequence[np.ndarray]) -> np.ndarray:
    """Pixels (64, 64, 3) uint8 of a scene whose figures cover `covers`, as `cover` counts."""
    full = GRID * GRID
    pixels = np.empty((CANVAS, CANVAS, 3), dtype=np.int32)
    pixels[:] = scene.background
    for figure, part in zip(scene.figures, covers, strict=True):
        share = part[..., None].astype(np.int32)
        pixels += (share * (np.asarray(figure.rgb, dtype=np.int32) - pixels) + full // 2) // full
    if scene.noise:
        speckle = np.random.RandomState(scene.grain)  # the legacy generator's stream is frozen for good
        pixels += speckle.randint(-scene.noise, scene.noise + 1, pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8)


def render(scene: Scene) -> np.ndarray:
    """Pixels (64, 64, 3) uint8 of a scene."""
    return paint(scene, [cover(figure) for figure in scene.figures])


def _shade(rng: random.Random, colour: str) -> Rgb:
    """One of the colour's shades, as it is or jittered by up to 12 a channel."""
    red, green, blue = pick(rng, COLOURS[colour])
    if rng.random() < 0.3:
        return red, green, blue
    if colour in ("gray", "white", "black"):  # keep them grey: one jitter for all channels
        shift = round(between(rng, -12, 12))
        parts = [red + shift, green + shift, blue + shift]
    else:
        parts = [part + round(between(rng, -12, 12)) for part in (red, green, blue)]
    red, green, blue = (min(max(part, 0), 255) for part in parts)
    return red, green, blue


def _background(rng: random.Random, shades: Sequence[Rgb]) -> Rgb:
    """A canvas colour that every shade stands out from: light tinted mostly, else dark or any."""
    for attempt in range(50):
        choice = rng.random()
        low, high = (205, 256) if choice < 0.65 or attempt > 40 else (0, 60) if choice < 0.8 else (0, 256)
        red, green, blue = (int(between(rng, low, high)) for _ in range(3))
        if choice < 0.08:
            red = green = blue = 255
        if all(abs(red - r) + abs(green - g) + abs(blue - b) >= 130 for r, g, b in shades):
            return red, green, blue
    return (70, 75, 80) if any(sum(shade) > 600 for shade in shades) else (235, 235, 225)


def _corners(rng: random.Random, kind: str, size: float) -> list[tuple[float, float]]:
    """Corners of a polygon of that kind around the origin, longer side about `size` pixels."""
    half = size / 2
    if kind == "rectangle":
        other = half * between(rng, 0.45, 1)
        wide, high = (half, other) if rng.random() < 0.5 else (other, half)
        points, turn = [(-wide, -high), (wide, -high), (wide, high), (-wide, high)], 0.0
        if rng.random() < 0.15:
            turn = between(rng, -0.2, 0.2)
    elif kind == "triangle":
        tip = between(rng, -half, half) if rng.random() < 0.4 else 0.0
        points, turn = [(-half, half), (half, half), (tip, half - size * between(rng, 0.7, 1.05))], 0.0
        if rng.random() < 0.5:
            turn = between(rng, -math.pi, math.pi)
    elif kind == "diamond":
        other = half * between(rng, 0.6, 1)
        points, turn = [(0, -half), (other, 0), (0, half), (-other, 0)], 0.0
    elif kind == "cross":
        arm = half * between(rng, 0.28, 0.4)
        corner = [(arm, -half), (arm, -arm), (half, -arm), (half, arm), (arm, arm), (arm, half)]
        points, turn = corner + [(-x, -y) for x, y in corner], 0.0
    else:
        inner = half * between(rng, 0.38, 0.48)
        angles = [math.pi * corner / 5 for corner in range(10)]
        reach = [half if corner % 2 == 0 else inner for corner in range(10)]
        points = [(r * math.sin(a), -r * math.cos(a)) for r, a in zip(reach, angles, strict=True)]
        turn = between(rng, -0.3, 0.3)
    sine, cosine = math.sin(turn), math.cos(turn)
    return [(x * cosine - y * sine, x * sine + y * cosine) for x, y in points]


def _figure(rng: random.Random, kind: str, colour: str, size: float) -> Figure:
    """A figure of that kind somewhere on the canvas, wholly inside it."""
    rgb = _shade(rng, colour)
    radii: tuple[int, ...]
    if kind in ("circle", "ring"):
        outer = round(size / 2 * UNIT)
        radii = (outer,) if kind == "circle" else (outer, round(outer * between(rng, 0.5, 0.65)))
        local = [(-outer, -outer), (outer, outer)]
    else:
        radii = ()
        local = [(round(x * UNIT), round(y * UNIT)) for x, y in _corners(rng, kind, size)]
    left, top = min(x for x, _ in local), min(y for _, y in local)
    wide, high = max(x for x, _ in local) - left, max(y for _, y in local) - top
    room = CANVAS * UNIT - UNIT
    dx = round(between(rng, UNIT // 2, max(room - wide, UNIT))) - left
    dy = round(between(rng, UNIT // 2, max(room - high, UNIT))) - top
    box = (left + dx, top + dy, left + dx + wide, top + dy + high)
    outline = () if radii else tuple((x + dx, y + dy) for x, y in local)
    return Figure(kind, colour, rgb, box, outline, radii)


def _apart(one: Figure, other: Figure, gap: int = UNIT) -> bool:
    """Whether the boxes are at least `gap` units apart."""
    a, b = one.box, other.box
    return a[2] + gap < b[0] or b[2] + gap < a[0] or a[3] + gap < b[1] or b[3] + gap < a[1]


def make_scene(
    rng: random.Random,
    looks: Sequence[tuple[str, str]],
    sizes: Sequence[tuple[float, float]] = ((9.0, 34.0),),
) -> Scene:
    """A scene with one figure for each (colour, kind) in `looks`.

    Args:
        rng: source of chance; the same state gives the same scene everywhere.
        looks: colour word and kind of each figure.
        sizes: range of the longer side in pixels, one for all figures or one a figure.
    """
    figures: list[Figure] = []
    for place, (colour, kind) in enumerate(looks):
        low, high = sizes[place % len(sizes)]
        for attempt in range(200):
            top = max(low + 0.5, high * 0.985**attempt)  # crowded: ask for less, never for less than the range
            figure = _figure(rng, kind, colour, between(rng, low, top))
            if all(_apart(figure, other) for other in figures):
                figures.append(figure)
                break
    background = _background(rng, [figure.rgb for figure in figures])
    noise = int(between(rng, 2, 14)) if rng.random() < 0.3 else 0
    return Scene(tuple(figures), background, noise, int(rng.random() * 2**31))
