"""Content that cannot be wrong in silence: checksums of rows and of files.

A checksum finds damage (a bad disk, a file cut short, bytes of another row), not forgery.
"""

from __future__ import annotations

import os
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Int64, Shaped
from torch import Tensor

from mm_lens._storage.hashing import sampling_key
from mm_lens.errors import DamageError

REMEDY = "Begin anew: give restart=True (--restart)."

_SIZE = 16  # of the checksum behind a file's content, in bytes
_BLOCK = 2**16  # words that are worked on at a time: they stay in the cache


def row_checksums(x: Shaped[Tensor, "n d"]) -> Int64[Tensor, " n"]:
    """A 64-bit checksum of the bits of every row, on the device of `x`.

    The rows' machine words are summed with odd weights modulo 2^64, so that one wrong word is
    always found, and several are missed once in 2^60 or so.
    """
    n, d = x.shape
    word, per_row = _word(d * x.element_size())
    words = rearrange(x.contiguous(), "n d -> (n d)").view(word)
    words = rearrange(words, "(n word) -> n word", n=n, word=per_row)
    weights = _weights(max(per_row, _BLOCK), x.device)[:per_row]
    rows = max(1, _BLOCK // max(1, per_row))
    return torch.cat([(block.long() * weights).sum(1) for block in words.split(rows)])


def tensor_checksum(x: Tensor) -> str:
    """A checksum of a tensor's bits, in hexadecimal; the same on every device."""
    flat = rearrange(x.detach().contiguous(), "... -> 1 (...)")
    whole = flat.shape[1] // _BLOCK * _BLOCK
    blocks = rearrange(flat[:, :whole], "1 (block word) -> block word", word=_BLOCK)
    parts = [blocks, flat[:, whole:]]
    sums = torch.cat([row_checksums(part) for part in parts]).tolist()
    about = repr((str(x.dtype), tuple(x.shape), sums))
    return blake2b(about.encode(), digest_size=8).hexdigest()


@lru_cache(maxsize=4)
def _weights(n: int, device: torch.device) -> Int64[Tensor, " n"]:
    columns = torch.arange(n, device=device)
    return sampling_key(columns, columns, seed=2) | 1


def _word(n_bytes: int) -> tuple[torch.dtype, int]:
    """The longest integer that `n_bytes` can be cut into, and how many these are."""
    words = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
    size = next(size for size in words if n_bytes % size == 0)
    return words[size], n_bytes // size


def write_file(path: Path, content: bytes) -> None:
    """Write a file with a checksum behind its content; after a crash it is the old or the new one.

    Raises:
        OSError: it cannot be written.
    """
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.write(content + _digest(content))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_directory(path.parent)


def read_file(path: Path) -> bytes:
    """The content that `write_file` wrote.

    Raises:
        DamageError: the file is damaged.
        OSError: it cannot be read.
    """
    whole = path.read_bytes()
    content = whole[:-_SIZE]
    if whole[-_SIZE:] != _digest(content):
        raise DamageError(f"{path} is damaged: its checksum does not match its content. {REMEDY}")
    return content


def sync_directory(path: Path) -> None:
    """Have the names in a directory survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=_SIZE).digest()
