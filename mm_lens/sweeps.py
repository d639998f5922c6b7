"""Running many interventions: several in one forward pass, with progress, and to be gone on with.

What is done is kept in a file, if one is named: after Ctrl-C or a kill, the same call goes on where
it stopped and ends with the same values. The file says what it was made from, and is refused for
anything else.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mm_lens.checked import read_file, tensor_checksum, write_file
from mm_lens.errors import DataError
from mm_lens.sampling import digest

SAVE_EVERY = 10.0
"""Seconds between two writes of the file."""


def chunks(cells: Sequence[Any], groups: Sequence[Any], size: int) -> list[list[int]]:
    """Indices of `cells` in runs of at most `size`, none across two of `groups`."""
    out: list[list[int]] = []
    for i in range(len(cells)):
        if not out or len(out[-1]) == size or groups[out[-1][0]] != groups[i]:
            out.append([])
        out[-1].append(i)
    return out


def sweep(
    work: Sequence[Sequence[int]],
    evaluate: Callable[[Sequence[int]], Float[Tensor, "chunk ..."]],
    *,
    origin: str = "",
    save: str | PathLike[str] | None = None,
    progress: bool = True,
    desc: str = "sweep",
) -> Float[Tensor, "cell ..."]:
    """Values of all cells; `evaluate` is called once for each chunk of `work`.

    Args:
        work: cells of each forward pass, every cell once.
        evaluate: values of the cells of one chunk, on the CPU.
        origin: what the values depend on, as a digest: a file of another origin is refused.
        save: file that keeps what is done.
        progress: show a progress bar on stderr.
        desc: its title.

    Raises:
        DataError: the file holds something else, or cannot be read or written.
    """
    n = sum(map(len, work))
    done = torch.zeros(n, dtype=torch.bool)
    values: Tensor | None = None
    path = None if save is None else Path(save)
    if path is not None and path.exists():
        done, values = _read(path, origin, n)
    last = time.monotonic()
    with tqdm(total=n, initial=int(done.sum()), desc=desc, disable=not progress) as bar:
        try:
            for cells in work:
                if bool(done[list(cells)].all()):
                    continue
                found = evaluate(cells)
                if values is None:
                    values = found.new_full((n, *found.shape[1:]), torch.nan)
                values[list(cells)] = found
                fresh = int((~done[list(cells)]).sum())
                done[list(cells)] = True
                bar.update(fresh)
                if path is not None and time.monotonic() - last > SAVE_EVERY:
                    _write(path, origin, done, values)
                    last = time.monotonic()
        finally:  # on Ctrl-C too
            if path is not None and values is not None:
                _write(path, origin, done, values)
    assert values is not None, "a sweep has at least one cell"
    return values


def fingerprint(*parts: Iterable[Any]) -> str:
    """Digest of tensors (by their bits) and of anything with a telling `repr`."""
    told = [
        tensor_checksum(part) if isinstance(part, Tensor) else repr(part) for part in chain(*parts)
    ]
    return f"{digest(repr(told)):x}"


def _write(path: Path, origin: str, done: Tensor, values: Tensor) -> None:
    content = io.BytesIO()
    torch.save({"origin": origin, "done": done, "values": values}, content)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content.getvalue())
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error}. Name another file in save=."
        ) from error


def _read(path: Path, origin: str, n: int) -> tuple[Tensor, Tensor]:
    try:
        held = torch.load(io.BytesIO(read_file(path)), weights_only=True)
        done, values = held["done"], held["values"]
    except Exception as error:
        raise DataError(
            f"{path} is no sweep that can be gone on with: {error}. Move it."
        ) from error
    if held["origin"] != origin or len(done) != n:
        raise DataError(
            f"{path} holds another sweep: other inputs, model, metric, regions or options. Delete "
            "it to begin anew, or name another file in save=."
        )
    return done, values
