"""Where the pictures of a sample are: a file, the bytes of one, an address, a data set of others.

A source is looked at when its sample is taken, not before: a large set costs little memory.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias
from urllib.error import URLError
from urllib.parse import unquote_to_bytes
from urllib.request import urlopen

from PIL import Image

from mm_lens.data.pictures import read_picture, read_size
from mm_lens.errors import DataError

ADDRESSES = ("http://", "https://", "data:")
MAX_FETCHED = 2**28
"""Most bytes of a picture that is fetched from an address, 256 MiB."""
PATIENCE = 30.0
"""Seconds that a server may be silent."""

Outline: TypeAlias = tuple[str, int, int]
"""What tells a picture from others, undecoded: a name, a size in bytes, the time of a change."""


class Source:
    """Where pictures are; equal ones are the same pictures. The classes below are all there are."""

    def read(self, name: str) -> tuple[Image.Image, ...]:
        """The pictures, decoded; `name` is what error messages call them."""
        raise NotImplementedError

    def outline(self) -> Outline:
        """What tells them from others."""
        raise NotImplementedError

    def measure(self) -> tuple[int, int]:
        """(height, width) of the picture, undecoded.

        Raises:
            OSError: the file is missing or no picture, or nothing but the pixels would tell.
        """
        raise OSError("the size of the picture is known when it is decoded")


@dataclass(frozen=True)
class File(Source):
    """A file."""

    path: Path

    def read(self, name: str) -> tuple[Image.Image, ...]:
        """The picture in it."""
        return (read_picture(self.path),)

    def outline(self) -> Outline:
        """Path, size in bytes (-1 where it is missing) and time of its last change."""
        if not self.path.is_file():
            return str(self.path), -1, 0
        about = self.path.stat()
        return str(self.path), about.st_size, about.st_mtime_ns

    def measure(self) -> tuple[int, int]:
        """From its header."""
        return read_size(self.path)


@dataclass(frozen=True)
class Content(Source):
    """The bytes of a file."""

    content: bytes

    def read(self, name: str) -> tuple[Image.Image, ...]:
        """The picture in them."""
        return (read_picture(self.content, name=name),)

    def outline(self) -> Outline:
        """Their digest and number."""
        return blake2b(self.content).hexdigest(), len(self.content), 0

    def measure(self) -> tuple[int, int]:
        """From the header of the file."""
        return read_size(self.content)


@dataclass(frozen=True)
class Address(Source):
    """An address, fetched whenever its sample is taken: only for those who asked for it."""

    url: str

    def read(self, name: str) -> tuple[Image.Image, ...]:
        """The picture that is there now.

        Raises:
            DataError: nothing answers, or what comes is larger than `MAX_FETCHED` or no picture.
        """
        return (read_picture(_fetch(self.url), name=f"{self.url} {name}"),)

    def outline(self) -> Outline:
        """The address: what stands there is not known."""
        return self.url, 0, 0


def _fetch(url: str) -> bytes:
    if url.startswith("data:"):
        head, _, body = url.partition(",")
        try:
            return base64.b64decode(body) if head.endswith(";base64") else unquote_to_bytes(body)
        except (binascii.Error, ValueError) as error:
            raise DataError(f"A data: address cannot be decoded ({error}). Correct it.") from error
    try:
        with urlopen(url, timeout=PATIENCE) as answer:
            content: bytes = answer.read(MAX_FETCHED + 1)
    except (URLError, OSError, ValueError) as error:
        raise DataError(
            f"{url} cannot be fetched ({error}). Check the address and the connection, or download "
            "the files and give their paths."
        ) from error
    if len(content) > MAX_FETCHED:
        raise DataError(
            f"{url} sends more than {MAX_FETCHED:,} bytes. Download the file and give its path."
        )
    return content


@dataclass(frozen=True, eq=False)
class Given(Source):
    """A picture in memory: whatever `open_picture` takes."""

    picture: Any

    def read(self, name: str) -> tuple[Image.Image, ...]:
        """The picture, upright, in RGB.

        Raises:
            DataError: it is none.
        """
        return (read_picture(self.picture, name=name),)

    def outline(self) -> Outline:
        """A digest of its pixels."""
        (image,) = self.read("of a data set")
        content = blake2b(repr(image.size).encode() + image.tobytes())
        return content.hexdigest(), 0, 0


@dataclass(frozen=True)
class Stored(Source):
    """A cell of a data set that reads its rows when they are asked for.

    Attributes:
        key: what tells it from others: of the data set, the row and the column.
        look: reads the cell, and says where the pictures in it are.
    """

    key: str
    look: Callable[[], tuple[Source, ...]]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stored) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def read(self, name: str) -> tuple[Image.Image, ...]:
        """The pictures in the cell; none where it is empty."""
        return tuple(image for source in self.look() for image in source.read(name))

    def outline(self) -> Outline:
        """Its key."""
        return self.key, 0, 0
