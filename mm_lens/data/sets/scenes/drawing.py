"""Scenes as they are described, and as they are drawn: one to four coloured shapes on a ground.

Edges are hard: every pixel of an object has its colour to the last bit, and no pixel of a ground
has it, so that masks are exact and can be read off the picture.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from mm_lens.data.sources import Outline, Source

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = {
    "black": (0, 0, 0),
    "blue": (30, 60, 220),
    "brown": (120, 70, 20),
    "gray": (128, 128, 128),
    "green": (20, 150, 40),
    "red": (215, 25, 30),
    "teal": (0, 128, 128),
    "yellow": (200, 180, 0),
}
GROUNDS = ("plain", "gradient", "textured")
RATIOS = ((1, 1), (5, 4), (4, 3), (3, 2), (16, 9))
LONG = (160, 256)
"""Shortest and longest of the longer side, in pixels."""
EXTENTS = {"small": (0.14, 0.2), "large": (0.24, 0.34)}
"""Height and width of an object, as parts of the shorter side."""
LIGHTEST = 225
"""The darkest that a ground is: no object is as light."""
GAP = 3
"""Pixels between two objects, at least."""
Box: TypeAlias = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels; x1 and y1 are the first behind."""


@dataclass(frozen=True)
class Thing:
    """One object.

    Attributes:
        shape: of `SHAPES`.
        colour: of `COLOURS`.
        size: "small" or "large".
        box: the pixels from its first to its last, in both directions.
    """

    shape: str
    colour: str
    size: str
    box: Box

    @property
    def square(self) -> bool:
        """Whether it is as high as it is wide: only such a one can be a circle."""
        x0, y0, x1, y1 = self.box
        return x1 - x0 == y1 - y0

    def mask(self, width: int, height: int) -> Bool[np.ndarray, "height width"]:
        """Which pixels it covers: those whose centre lies inside."""
        x0, y0, x1, y1 = self.box
        y, x = np.mgrid[:height, :width] + 0.5
        inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
        across, down = abs(x - (x0 + x1) / 2) / ((x1 - x0) / 2), (y - y0) / (y1 - y0)
        if self.shape == "circle":
            inside &= across**2 + (2 * down - 1) ** 2 <= 1
        if self.shape == "triangle":
            inside &= across <= down
        found: Bool[np.ndarray, "height width"] = inside
        return found


@dataclass(frozen=True)
class Scene(Source):
    """A picture that is drawn when it is looked at; equal ones have the same pixels.

    Attributes:
        width: in pixels.
        height: in pixels.
        ground: of `GROUNDS`.
        grain: seed of what the ground looks like.
        things: its objects; no two have both shape and colour in common.
    """

    width: int
    height: int
    ground: str
    grain: int
    things: tuple[Thing, ...]

    def draw(self) -> Image.Image:
        """The picture."""
        pixels = self._lay_ground()
        for thing in self.things:
            pixels[thing.mask(self.width, self.height)] = COLOURS[thing.colour]
        return Image.fromarray(pixels)

    def read(self, name: str) -> tuple[Image.Image, ...]:
        """The picture."""
        return (self.draw(),)

    def outline(self) -> Outline:
        """What it is described by."""
        return repr(self), 0, 0

    def measure(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    def with_thing(self, index: int, thing: Thing) -> Scene:
        """The same scene with another object in the place of one."""
        things = (*self.things[:index], thing, *self.things[index + 1 :])
        return replace(self, things=things)

    def _lay_ground(self) -> UInt8[np.ndarray, "height width 3"]:
        chance = np.random.default_rng(self.grain)
        corners = chance.integers(LIGHTEST + 8, 248, (2, 3)).astype(float)
        lit = np.broadcast_to(corners[0], (self.height, self.width, 3)).copy()
        if self.ground != "plain":
            y, x = np.mgrid[: self.height, : self.width]
            angle = chance.uniform(0, np.pi / 2)
            along = x / self.width * np.cos(angle) + y / self.height * np.sin(angle)
            share = (along / along.max())[..., None]
            lit = corners[0] * (1 - share) + corners[1] * share
        if self.ground == "textured":
            lit = lit + chance.normal(0, 3, lit.shape[:2])[..., None]
        return lit.round().clip(LIGHTEST, 255).astype(np.uint8)


def make_scene(chance: random.Random) -> Scene:
    """A scene at random."""
    long = chance.randint(*LONG)
    ratio = chance.choice(RATIOS)
    sides = [long, round(long * ratio[1] / ratio[0])]
    chance.shuffle(sides)
    width, height = sides
    things: list[Thing] = []
    wanted = chance.randint(1, 4)
    while len(things) < wanted:
        thing = _make_thing(chance, width, height)
        if all(_may_stand(thing, other) for other in things):
            things.append(thing)
    return Scene(width, height, chance.choice(GROUNDS), chance.getrandbits(32), tuple(things))


def _make_thing(chance: random.Random, width: int, height: int) -> Thing:
    size = chance.choice(tuple(EXTENTS))
    # Odd, so that the tip of a triangle is a pixel and boxes are tight.
    across, down = (
        2 * round(chance.uniform(*EXTENTS[size]) * min(width, height) / 2) + 1 for _ in range(2)
    )
    shape = chance.choice(SHAPES)
    if shape == "circle":
        down = across
    x, y = chance.randint(1, width - across - 1), chance.randint(1, height - down - 1)
    return Thing(shape, chance.choice(tuple(COLOURS)), size, (x, y, x + across, y + down))


def _may_stand(thing: Thing, other: Thing) -> bool:
    """Whether two objects are apart, and can be told apart by words."""
    (x0, y0, x1, y1), (u0, v0, u1, v1) = thing.box, other.box
    apart = x0 >= u1 + GAP or u0 >= x1 + GAP or y0 >= v1 + GAP or v0 >= y1 + GAP
    return apart and (thing.shape, thing.colour) != (other.shape, other.colour)
