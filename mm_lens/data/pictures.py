"""Pictures, however they come, as upright RGB: the one place that opens them.

`prepare`, data sets, corruptions, drawings and the command line all see the same pixels: docs/
pictures.md says which. A file is read to its last pixel, whatever Pillow was told for the process.
"""

from __future__ import annotations

import io
import struct
import sys
import threading
import warnings
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from mm_lens.data.pixels import Colour, image_of_array, to_rgb
from mm_lens.errors import DataError, InputError, MMLensWarning

if TYPE_CHECKING:
    import torch

Picture: TypeAlias = (
    "Image.Image | np.ndarray | torch.Tensor | bytes | bytearray | io.IOBase | str | PathLike[str]"
)
"""What stands for a picture: a PIL image, an array or tensor, a file's path, its bytes, or the open
file; see `open_picture`."""

BACKGROUND: Colour = (255, 255, 255)
"""What transparent pixels are laid over: white."""

ONE_FRAME = (
    "A picture has several frames or pages: only the first is used. Give the frames as pictures "
    "of their own to have all."
)

_said: list[str] = []
"""What was said already of pictures of data sets: a set of animations says it once."""

# What Pillow raises on damaged files: each format plugin in its own way.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    AttributeError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
    Image.DecompressionBombError,
)


def open_picture(
    source: Any, *, background: Colour = BACKGROUND, name: str = "An image"
) -> Image.Image:
    """A picture, read to its last pixel, upright, in RGB.

    ```python
    picture = open_picture("photo.jpg")        # upright RGB; or bytes, an array, a tensor
    ```

    Args:
        source: a PIL image of any mode; a NumPy array [height, width] or [height, width, channels]
            (channels first where the last axis can be none); a torch tensor, either way round; the
            path of a file, its bytes, or the file, opened in binary mode. Numbers of 8 and 16 bits
            are scaled by their type's range, floats are from 0 to 1.
        background: what transparent pixels are laid over.
        name: what messages call it.

    Returns:
        A new image: turned as its EXIF orientation says, of several frames the first.

    Raises:
        InputError: it is no picture, is damaged, has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`,
            or values of another range.
    """
    try:
        return _open(source, background)
    except InputError as error:
        raise InputError(f"{name} cannot be used: {error}.") from error
    except _DAMAGED as error:
        told = str(error) or type(error).__name__
        raise InputError(f"{name} cannot be read: {told}. Check or leave out the file.") from error


def read_picture(source: Any, name: str = "") -> Image.Image:
    """The picture of a sample of a data set; see `open_picture`.

    Args:
        source: a file, the bytes of one, or whatever `open_picture` takes.
        name: what error messages call an image that is no file.

    Raises:
        DataError: the file is missing, not an image, truncated, too large, or of an unknown range.
    """
    label = source if isinstance(source, Path) else name
    try:
        return _open(source, BACKGROUND, once=True)
    except FileNotFoundError as error:
        raise DataError(
            f"Image {label} does not exist. Correct the path or remove the row."
        ) from error
    except InputError as error:
        raise DataError(f"Image {label} cannot be used: {error}.") from error
    except _DAMAGED as error:
        raise DataError(
            f"Image {label} cannot be decoded ({error}). It is damaged or not an image: "
            "replace the file or remove it from the data set."
        ) from error


def read_size(source: Path | bytes) -> tuple[int, int]:
    """(height, width) that `read_picture` will give, from the header of the file.

    Raises:
        OSError: there is no such file, it is no picture, or its header does not say.
    """
    with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
        width, height = image.size
        # Of a PNG, what stands behind the pixels would have all of them decoded.
        told = image.format != "PNG" or "exif" in image.info
        turned = told and image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        if turned and image.format == "TIFF":
            raise OSError("whether its size is that before or after turning depends on Pillow")
        return (width, height) if turned else (height, width)


def _open(source: Any, background: Colour, once: bool = False) -> Image.Image:
    """The picture, with the errors of Pillow as they are; messages of ours without a full stop.

    `once` warns for the first of many pictures only.
    """
    if isinstance(source, np.ndarray):
        source = image_of_array(source, channels_first=False)
    elif _is_tensor(source):
        source = image_of_array(_numbers(source), channels_first=None)
    with _Strict():
        if isinstance(source, Image.Image):
            return _upright_rgb(source, background, once)
        return _decode(_file(source), background, once)


def _file(source: Any) -> Path | bytes:
    """A file as something that can be opened twice."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if callable(getattr(source, "read", None)):
        if callable(getattr(source, "seekable", None)) and source.seekable():
            source.seek(0)  # what was just written ends where it would be read from
        content = source.read()
        if not isinstance(content, bytes):
            raise InputError('a file of text holds no picture: open it with mode "rb"')
        return content
    if not isinstance(source, (str, PathLike)):
        raise InputError(
            "a picture is a PIL image, a NumPy array, a torch tensor, or a file: its path, its "
            f"bytes, or the open file; not {type(source).__name__}"
        )
    # As a path `https://` is `https:/`.
    text = str(source).lower()
    if text.startswith(("http:/", "https:/", "data:")) or "://" in text:
        raise InputError("addresses are not fetched: download the file and give its path")
    path = Path(fspath(source))
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise InputError(f"{path} is not a file")
    return path


def _decode(file: Path | bytes, background: Colour, once: bool) -> Image.Image:
    def opened() -> Image.Image:
        return Image.open(file if isinstance(file, Path) else io.BytesIO(file))

    # Opening reads the header only, and `verify` the checksums of the formats that have them.
    with opened() as image:
        _check_size(image)
        image.verify()
    with opened() as image:
        return _upright_rgb(image, background, once)


def _check_size(image: Image.Image) -> None:
    """Before any pixel is read: a few bytes may stand for gigabytes."""
    if 0 in image.size:
        raise InputError("it has no pixels")
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise InputError(
            f"it has {image.width}×{image.height} pixels, more than the {most:,} that Pillow takes "
            "for safe: make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"
        )


def _upright_rgb(image: Image.Image, background: Colour, once: bool) -> Image.Image:
    _check_size(image)
    # Cameras store a second picture, a preview, beside the one that was taken.
    frames = getattr(image, "is_animated", False) and image.format != "MPO"
    if frames and image.tell() == 0 and not (once and _said):
        warnings.warn(ONE_FRAME, MMLensWarning, stacklevel=2)
        _said.append(ONE_FRAME)
    image.load()
    format = image.format
    image = ImageOps.exif_transpose(image)  # cameras turn pictures by a note
    image.format = format  # which says what its numbers are
    rgb = to_rgb(image, background)
    rgb.info = {}  # a note of what was done already would be obeyed again
    return rgb


class _Strict:
    """While a picture is read, Pillow does not fill in what is missing.

    `ImageFile.LOAD_TRUNCATED_IMAGES` is one switch for the whole process, and any library may have
    set it. Formats without checksums then lose half of a picture in silence.
    """

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _inside: ClassVar[int] = 0
    _before: ClassVar[bool] = False

    def __enter__(self) -> None:
        cls = type(self)
        with cls._lock:
            if not cls._inside:
                cls._before = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False
            cls._inside += 1

    def __exit__(self, *_: object) -> None:
        cls = type(self)
        with cls._lock:
            cls._inside -= 1
            if not cls._inside:
                ImageFile.LOAD_TRUNCATED_IMAGES = cls._before


def _is_tensor(source: Any) -> bool:
    torch = sys.modules.get("torch")  # not imported for this: it takes seconds
    return torch is not None and isinstance(source, torch.Tensor)


def _numbers(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())
