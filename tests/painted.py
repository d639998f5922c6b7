"""Pictures with one painted place, and what a figure shows of them."""

from __future__ import annotations

import json
import re
from html import unescape

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image, ImageDraw

ASPECTS = [
    (12, 12), (31, 57), (57, 31), (20, 200), (200, 20), (40, 64), (64, 40), (36, 108), (90, 30),
    (70, 75),
]  # fmt: skip


def shades(kind, side=64):
    """A picture in flat grey: "white", "black", or both halves."""
    picture = Image.new("RGB", (side, side), "black" if kind == "black" else "white")
    if kind == "halves":
        ImageDraw.Draw(picture).rectangle((0, 0, side // 2 - 1, side), fill="black")
    return picture


def pixels_of(figure):
    """The drawn figure, from 0 to 1."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255


def colour_at(figure, pixels, axis, x, y):
    """Of the pixel at coordinates of `axis`."""
    across, up = axis.transData.transform((x, y))
    return pixels[len(pixels) - 1 - int(up), int(across)]


def data_of(html):
    """What a page draws."""
    return json.loads(html.split("const data = ")[1].split(";\nconst ")[0])


def frame_of(page):
    """The interactive picture that a page holds in a frame."""
    return unescape(re.findall(r'srcdoc="(.*?)"', page, re.DOTALL)[0])
