"""Corrupted counterparts of an image, for patching: what is lost, and how.

Every picture is opened as `prepare` opens it (`mm_lens.data.open_picture`): upright, in RGB. Boxes
are (x0, y0, x1, y1) in pixels of that. All keep the size, hence the layout. *Another image* is a
corruption too: of the same question, with another answer; `others` deals them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from einops import rearrange
from PIL import Image, ImageFilter

from mm_lens.arguments import require_number, require_whole
from mm_lens.data.pictures import Picture, open_picture
from mm_lens.errors import InputError
from mm_lens.layout.groups import Rect

T = TypeVar("T")


def others(items: Sequence[T], seed: int = 0) -> list[T]:
    """For each item another one of the same list; each is used once.

    Raises:
        InputError: there are fewer than two.
    """
    order = np.random.default_rng(seed).permutation(len(items))
    return [items[j] for j in assign_others(order.tolist())]


def assign_others(order: Sequence[int]) -> list[int]:
    """For each index another one: the next in `order`, a permutation of all, as in a circle.

    Raises:
        InputError: there are fewer than two.
    """
    if len(order) < 2:
        raise InputError(
            f"There are {len(order)} to draw another one from. Give at least two: none may stand "
            "for itself."
        )
    following = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [following[i] for i in range(len(order))]


def blank(image: Picture, colour: tuple[int, int, int] | None = None) -> Image.Image:
    """One colour all over; None takes the mean colour of the image."""
    picture = open_picture(image)
    chosen = _mean(np.asarray(picture)) if colour is None else _check_colour(colour)
    return Image.new("RGB", picture.size, chosen)


def noise(image: Picture, strength: float = 1.0, seed: int = 0) -> Image.Image:
    """Blend with uniform noise: strength 1 is nothing but noise, 0 the image.

    Raises:
        InputError: `strength` is not in 0 to 1.
    """
    require_number("strength", strength, 0, 1)
    pixels = np.asarray(open_picture(image), dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, 256, pixels.shape)
    return Image.fromarray(np.round((1 - strength) * pixels + strength * drawn).astype(np.uint8))


def blur_box(image: Picture, box: Rect, radius: float = 8.0) -> Image.Image:
    """Gaussian blur of `radius` pixels inside `box`, from the pixels of the whole image.

    Raises:
        InputError: the radius is negative, or the box none of this image.
    """
    require_number("radius", radius, 0)
    out = open_picture(image)
    rect = _rect(out, box)
    out.paste(out.filter(ImageFilter.GaussianBlur(radius)).crop(rect), rect[:2])
    return out


def remove_box(
    image: Image.Image, box: Rect, colour: tuple[int, int, int] | None = None
) -> Image.Image:
    """Fill `box` with one colour; None takes the mean of the pixels that frame it.

    Raises:
        InputError: the box covers the whole image, so nothing frames it.
    """
    out = open_picture(image)
    rect = _rect(out, box)
    if colour is None:
        x0, y0, x1, y1 = rect
        pixels = np.asarray(out)
        frame = np.zeros(pixels.shape[:2], dtype=bool)
        frame[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = True
        frame[y0:y1, x0:x1] = False
        if not frame.any():
            raise InputError("The box covers the whole image. Pass colour=, or use blank().")
        colour = _mean(pixels[frame])
    out.paste(_check_colour(colour), rect)
    return out


def _mean(pixels: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (round(float(c)) for c in rearrange(pixels, "... rgb -> (...) rgb").mean(0))
    return red, green, blue


def _check_colour(colour: Any) -> tuple[int, int, int]:
    """Red, green and blue: Pillow takes numbers beyond 255 for 255.

    Raises:
        InputError: they are no whole numbers from 0 to 255.
    """
    try:
        red, green, blue = (require_whole("red, green or blue", part, 0) for part in colour)
        fits = max(red, green, blue) <= 255
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise InputError(f"colour is (red, green, blue) from 0 to 255, not {colour!r}.")
    return red, green, blue


def _rect(image: Image.Image, box: Rect) -> tuple[int, int, int, int]:
    """The box in whole pixels, inside of the image."""
    try:
        corners = [float(corner) for corner in getattr(box, "rect", box)]
    except (TypeError, ValueError):
        corners = []
    if len(corners) != 4 or not np.isfinite(corners).all():
        raise InputError(f"A box is (x0, y0, x1, y1) in pixels, not {box!r}.")
    box = corners[0], corners[1], corners[2], corners[3]
    x0, y0 = max(int(np.floor(box[0])), 0), max(int(np.floor(box[1])), 0)
    x1 = min(int(np.ceil(box[2])), image.width)
    y1 = min(int(np.ceil(box[3])), image.height)
    if x0 >= x1 or y0 >= y1:
        raise InputError(f"The box {tuple(box)} lies outside of the image, {image.size}.")
    return x0, y0, x1, y1
