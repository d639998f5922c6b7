"""Where the states of sampled tokens are kept: in memory, or in files.

A store belongs to one reservoir (`mm_lens.profiling.collecting.token_sample`): for every stream and
state it has `k` slots, each for the state of one token.

**Files.** One file per stream and state. A record is the token's state followed by a checksum of
it and of the token's key, so that a damaged record, or one of another token, is never taken for
the state of this token. Records are written in place, through the page cache; when memory is
short, it is the operating system that makes room. They are read through a memory map.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from mm_lens._storage.checked import REMEDY, row_checksums
from mm_lens.errors import DamageError

_HEADER = 64  # bytes: dtype and width, and the records after it aligned to words
_SUM = 8  # bytes of a checksum


@runtime_checkable
class Store(Protocol):
    """Slots for the states of tokens."""

    def write(
        self,
        stream: str,
        state: int,
        slots: Int64[Tensor, " n"],
        keys: Int64[Tensor, " n"],
        rows: Float[Tensor, "n d"],
    ) -> None:
        """Put the states of the tokens with these keys into these slots, which ascend."""

    def read(
        self, stream: str, state: int, slots: Int64[Tensor, " n"], keys: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n d"]:
        """The states of the tokens with these keys, which were put into these slots."""

    def flush(self) -> None:
        """Have what was written survive a power failure."""


class MemoryStore:
    """States in this process's memory, in the dtype of the model's activations."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.slots: dict[tuple[str, int], Float[Tensor, "k d"]] = {}

    def write(
        self,
        stream: str,
        state: int,
        slots: Int64[Tensor, " n"],
        keys: Int64[Tensor, " n"],
        rows: Float[Tensor, "n d"],
    ) -> None:
        """Put states into slots."""
        at = (stream, state)
        if at not in self.slots:
            # Not filled: memory of slots that nothing is put into is never taken.
            self.slots[at] = torch.empty(self.k, rows.shape[1], dtype=rows.dtype)
        held, n = self.slots[at], len(slots)
        if n and int(slots[-1]) - int(slots[0]) == n - 1:  # ascending: next to each other
            held[int(slots[0]) : int(slots[0]) + n] = rows
        else:
            held.index_copy_(0, slots, rows)

    def read(
        self, stream: str, state: int, slots: Int64[Tensor, " n"], keys: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n d"]:
        """The states in slots."""
        return self.slots[stream, state][slots]

    def flush(self) -> None:
        """Nothing: memory is lost with the process."""


class FileStore:
    """States in the files `prefix`.stream.state of a directory.

    Raises (when written or read):
        OSError: a file cannot be written.
        DamageError: a file is missing or damaged.
    """

    def __init__(self, directory: Path, prefix: str) -> None:
        self.directory, self.prefix = directory, prefix
        self._open: dict[tuple[str, int], int] = {}

    def write(
        self,
        stream: str,
        state: int,
        slots: Int64[Tensor, " n"],
        keys: Int64[Tensor, " n"],
        rows: Float[Tensor, "n d"],
    ) -> None:
        """Write states into slots, those next to each other at once."""
        if not len(slots):
            return
        records = _records(rows, keys)
        size, content = (
            records.shape[1],
            rearrange(records.numpy(), "record byte -> (record byte)").data,
        )
        file = self._file(stream, state, _header(rows))
        ends = [*(1 + (slots.diff() != 1).nonzero().squeeze(1)).tolist(), len(slots)]
        first, begin = slots.tolist(), 0
        for end in ends:
            _write_all(file, content[begin * size : end * size], _HEADER + first[begin] * size)
            begin = end

    def read(
        self, stream: str, state: int, slots: Int64[Tensor, " n"], keys: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n d"]:
        """Read the states in slots, and check every one of them."""
        path = self._path(stream, state)
        try:
            dtype, d = _parse(path)
            size = d * dtype.itemsize + _SUM
            whole = np.memmap(path, np.uint8, "r", offset=_HEADER)
            end = len(whole) // size * size  # what is behind it was cut off in writing
            table = rearrange(whole[:end], "(record byte) -> record byte", byte=size)
            order = slots.argsort()  # through the file from front to back
            records = torch.empty(len(slots), size, dtype=torch.uint8)
            records[order] = torch.from_numpy(table[slots[order].numpy()])
        except (OSError, ValueError, IndexError) as error:
            raise DamageError(f"{path} is damaged ({error}). {REMEDY}") from error
        rows, sums = records[:, :-_SUM], records[:, -_SUM:]
        rows = rows.clone(memory_format=torch.contiguous_format).view(dtype)
        found = sums.clone(memory_format=torch.contiguous_format).view(torch.int64)
        found = rearrange(found, "n 1 -> n")
        if wrong := int((found != row_checksums(rows) ^ keys).sum()):
            raise DamageError(
                f"{path} is damaged: {wrong:,} of {len(rows):,} states do not match their "
                f"checksums. {REMEDY}"
            )
        return rows

    def flush(self) -> None:
        """Wait until everything is on the disk."""
        for file in self._open.values():
            os.fsync(file)

    def close(self) -> None:
        """Close the files that were written."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _path(self, stream: str, state: int) -> Path:
        return self.directory / f"{self.prefix}.{stream}.{state:03}"

    def _file(self, stream: str, state: int, header: bytes) -> int:
        at = (stream, state)
        if at not in self._open:
            self._open[at] = os.open(self._path(*at), os.O_RDWR | os.O_CREAT, 0o666)
            _write_all(self._open[at], memoryview(header), 0)
        return self._open[at]


def _records(rows: Float[Tensor, "n d"], keys: Int64[Tensor, " n"]) -> UInt8[Tensor, "n size"]:
    sums = row_checksums(rows) ^ keys
    parts = rows.contiguous(), rearrange(sums, "n -> n 1")
    return torch.cat([part.view(torch.uint8) for part in parts], 1)


def _header(rows: Float[Tensor, "n d"]) -> bytes:
    return f"mm_lens {rows.dtype} {rows.shape[1]}".removeprefix("torch.").encode().ljust(_HEADER)


def _parse(path: Path) -> tuple[torch.dtype, int]:
    """Dtype and width of the states in a file."""
    with path.open("rb") as file:
        mark, dtype, d = file.read(_HEADER).decode("ascii", "replace").split() or ("", "", "")
    found = getattr(torch, dtype.removeprefix("torch."), None)
    if mark != "mm_lens" or not isinstance(found, torch.dtype):
        raise ValueError("it does not begin with the header of such a file")
    return found, int(d)


def _write_all(file: int, content: memoryview, offset: int) -> None:
    """Write at a place in a file; a nearly full disk may take a part before it refuses the rest."""
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written
