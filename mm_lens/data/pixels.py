"""From the numbers of a picture, in whatever type and mode, to 8-bit RGB.

Whole numbers of 8 and 16 bits are scaled by the range of their type, floats are taken from 0 to 1.
Any other range is refused, naming what was found: what is white in it, nobody can know.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Shaped, UInt8
from PIL import Image

from mm_lens.errors import InputError

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

CHANNELS = (1, 2, 3, 4)
"""Grey, grey and alpha, RGB, RGB and alpha."""

ROUNDING = 1e-4
"""How far floats may lie outside of 0 to 1: a fortieth of a step of 8 bits."""

# A 16-bit file of these formats may come as 32-bit numbers, of which it fills the lower half.
_SIXTEEN_BITS = ("PNG", "PPM", "JPEG2000")


def image_of_array(pixels: Shaped[np.ndarray, "..."], channels_first: bool | None) -> Image.Image:
    """An 8-bit image of an array.

    Args:
        pixels: [height, width], or with 1 to 4 channels in the last or the first axis.
        channels_first: whether channels come first where both axes could be; None refuses such.

    Raises:
        InputError: the shape or the range of the values is none of a picture.
    """
    levels = to_levels(_channels_last(pixels, channels_first))
    return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)


def _channels_last(
    array: Shaped[np.ndarray, "..."], channels_first: bool | None
) -> Shaped[np.ndarray, "height width channels"]:
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim != 3:
        raise InputError(
            f"an array of shape {list(array.shape)} is not one picture: give [height, width, "
            "channels] or [channels, height, width], and several pictures as a list"
        )
    else:
        first, last = (array.shape[axis] in CHANNELS for axis in (0, -1))
        if not first and not last:
            raise InputError(
                f"an array of shape {list(array.shape)} has no axis of 1 to 4 channels: give "
                "[height, width, channels] or [channels, height, width]"
            )
        if first and last and channels_first is None:
            raise InputError(
                f"in a tensor of shape {list(array.shape)} the first axis and the last could be "
                "the channels: give a NumPy array [height, width, channels] or a PIL image"
            )
        if first and (not last or channels_first):
            array = rearrange(array, "channels height width -> height width channels")
    if 0 in array.shape:
        raise InputError(f"an array of shape {list(array.shape)} has no pixels")
    return array


def to_levels(array: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """The numbers as 256 levels.

    Raises:
        InputError: they are of another range than their type's, or floats outside of 0 to 1.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(array.dtype, np.uint16):  # of any byte order
        return _rounded(array.astype(np.float64) / 257)
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise InputError(f"an array of {array.dtype} holds no pixels")
    low, high = array.min(), array.max()
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"its values are {array.dtype} from {low} to {high}, which could be levels of any "
            "range: give uint8 (0 to 255), uint16 (0 to 65535), or floats from 0 to 1"
        )
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # true of NaN, too
        raise InputError(
            f"its values are {array.dtype} from {low:g} to {high:g}, and floats are taken from 0 "
            "to 1: undo a normalisation, or divide by what is white (255, say)"
        )
    return _rounded(array.astype(np.float64).clip(0, 1) * 255)


def _rounded(levels: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    return np.round(levels).astype(np.uint8)


def to_rgb(image: Image.Image, background: Colour) -> Image.Image:
    """An image of any mode in RGB, transparent pixels laid over a background.

    Raises:
        InputError: its numbers are of no known range.
        ValueError: Pillow knows no way from its mode to RGB.
    """
    image = _eight_bits(image)
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        ground = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    array: Any = np.asarray(image)
    if image.mode == "I" and image.format in _SIXTEEN_BITS and array.min() >= 0:
        array = array.astype(np.uint16)
    grey = Image.fromarray(to_levels(array))
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # the one level of grey that is transparent
        grey.putalpha(Image.fromarray(np.where(array == clear, 0, 255).astype(np.uint8)))
    return grey
