"""Running many interventions: several in one forward pass, with progress, and resumable.

What is done is kept in a file, if one is named: after Ctrl-C or a kill, the same call resumes where
it stopped and ends with the same values. The file says what it was made from, and is refused for
anything else.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from transformer_lens.utilities.statistics import derive_generator

from mm_lens._storage.checked import read_file, tensor_checksum, write_file
from mm_lens._storage.hashing import digest
from mm_lens.arguments import require_whole
from mm_lens.errors import DataError

SAVE_EVERY = 10.0
"""Seconds between two writes of the file."""
PROBES = 64
"""Enough to tell accuracies of two of eight options apart but once in 10⁸."""


def split_trials(trials: Sequence[Any], groups: Sequence[Any], size: int) -> list[list[int]]:
    """Indices of `trials` in runs of at most `size`, none across two of `groups`.

    Raises:
        InputError: `size` is no whole number above 0.
    """
    require_whole("batch_size", size, 1)
    out: list[list[int]] = []
    for i in range(len(trials)):
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
) -> Float[Tensor, "trial ..."]:
    """Values of all trials; `evaluate` is called once for each chunk of `work`.

    Args:
        work: trials of each forward pass, every trial once.
        evaluate: values of the trials of one chunk, on the CPU.
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
            for trials in work:
                if bool(done[list(trials)].all()):
                    continue
                found = evaluate(trials)
                if values is None:
                    values = found.new_full((n, *found.shape[1:]), torch.nan)
                values[list(trials)] = found
                fresh = int((~done[list(trials)]).sum())
                done[list(trials)] = True
                bar.update(fresh)
                if path is not None and time.monotonic() - last > SAVE_EVERY:
                    _write(path, origin, done, values)
                    last = time.monotonic()
        finally:  # on Ctrl-C too
            if path is not None and values is not None:
                _write(path, origin, done, values)
    assert values is not None, "a sweep has at least one trial"
    return values


def fingerprint(*parts: Any) -> str:
    """Digest of tensors and arrays (by their bits), wherever they are in lists, tuples, mappings
    and dataclasses, and of anything else with a telling `repr`.

    Cost: one pass over the tensors.
    """
    return f"{digest(repr(_describe(parts))):x}"


def probe_metrics(
    metrics: Mapping[str, Callable[[Tensor], Any]], logits: Float[Tensor, "batch pos d_vocab"]
) -> list[tuple[str, str]]:
    """What tells metrics apart: their names, and a checksum of their values on `PROBES` fixed
    pseudo-random logits of the shape of `logits`.

    A metric that fails on these is told by its name alone. Cost: `PROBES` calls of each metric;
    next to no memory, since the probes are views of one short row of numbers.
    """
    batch, pos, d_vocab = logits.shape
    # Probe k reads the row with a stride of its own: no two places are the same in all probes.
    longest = batch * pos * 2 * PROBES
    row = torch.randn(longest + PROBES * PROBES + d_vocab, generator=derive_generator(0, "probes"))
    row = row.to(logits.device, logits.dtype)
    strides = [(pos * k, k, 1) for k in range(PROBES, 2 * PROBES)]
    out = []
    for name, metric in metrics.items():
        try:
            values = [
                torch.as_tensor(metric(row.as_strided(logits.shape, stride, k * PROBES)))
                for k, stride in enumerate(strides)
            ]
            out.append((name, tensor_checksum(torch.stack(values))))
        except Exception:  # whatever a function of the user's does on logits that it is not for
            out.append((name, ""))
    return out


def _describe(part: Any) -> Any:
    if isinstance(part, np.ndarray):
        part = torch.from_numpy(np.ascontiguousarray(part))
    if isinstance(part, Tensor):
        return tensor_checksum(part)
    if is_dataclass(part) and not isinstance(part, type):
        return [type(part).__name__, *(_describe(getattr(part, f.name)) for f in fields(part))]
    if isinstance(part, Mapping):
        return [(_describe(key), _describe(value)) for key, value in part.items()]
    if isinstance(part, (list, tuple)):
        return [_describe(x) for x in part]
    return repr(part)


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
    remedy = "Delete it to begin anew, or name another file in save=."
    try:
        held = torch.load(io.BytesIO(read_file(path)), weights_only=True)
        done, values = held["done"], held["values"]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}. Name another file in save=.") from error
    except Exception as error:
        raise DataError(f"{path} is damaged, or no file of a sweep. {remedy}") from error
    if held["origin"] != origin or len(done) != n:
        raise DataError(
            f"{path} holds another sweep: other inputs, model, metric, regions or options. {remedy}"
        )
    return done, values
