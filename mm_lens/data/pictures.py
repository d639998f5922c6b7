"""Pictures, however they come, as RGB."""

from __future__ import annotations

import struct
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mm_lens.errors import DataError, InputError

Picture: TypeAlias = "Image.Image | np.ndarray | str | PathLike[str]"
"""What `prepare` takes for an image: a PIL image, an [height, width, 3] array, or a file's path."""

# What Pillow's format plugins raise on damaged files.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def open_picture(image: Any) -> Image.Image:
    """The picture, read to its last pixel, in RGB."""
    try:
        if isinstance(image, (str, PathLike)):
            image = Image.open(Path(image))
        elif isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        if not isinstance(image, Image.Image):
            raise InputError(
                f"An image is a PIL image, a NumPy array or a path, not {type(image).__name__}."
            )
        image.load()
        return ImageOps.exif_transpose(image).convert("RGB")  # cameras turn pictures by a note
    except (OSError, UnidentifiedImageError, TypeError, SyntaxError) as error:
        raise InputError(
            f"An image cannot be read: {error}. Check or leave out the file."
        ) from error


def read_picture(source: Path | bytes, name: str = "") -> Image.Image:
    """Decode an image completely, as RGB.

    Args:
        source: A file, or the bytes of one.
        name: What error messages call an image given as bytes.

    Raises:
        DataError: The file is missing, not an image, or truncated.
    """
    label = source if isinstance(source, Path) else name

    def opened() -> Image.Image:
        return Image.open(source if isinstance(source, Path) else BytesIO(source))

    try:
        # Opening reads the header only. Any library may have told Pillow, for the whole process,
        # to fill what is missing with grey; `verify` still checks the formats that have checksums.
        with opened() as image:
            image.verify()
        with opened() as image:
            image.load()
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(
            f"Image {label} does not exist. Correct the path or remove the row."
        ) from error
    except _DAMAGED as error:
        raise DataError(
            f"Image {label} cannot be decoded ({error}). It is damaged or not an image: "
            "replace the file or remove it from the data set."
        ) from error
