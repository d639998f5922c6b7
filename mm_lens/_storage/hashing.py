"""Hashes that are the same in every run, process and machine: of content, and of tokens."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15


def digest(content: str | bytes) -> int:
    """A 63-bit id of some content: the same in every run and on every machine."""
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big") >> 1


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as `value`."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _scramble(z: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """SplitMix64's finaliser (Steele et al. 2014): every input bit reaches every output bit."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        # int64 shifts copy the sign bit; the mask makes them the unsigned shifts of the original.
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return z


def digest_entries(entries: Iterable[Any]) -> str:
    """Digest of things with a telling `repr`, in their order."""
    found = blake2b(digest_size=8)
    for entry in entries:
        found.update(repr(entry).encode() + b"\0")
    return found.hexdigest()


def sampling_key(
    sample: Int64[Tensor, " n"], position: Int64[Tensor, " n"], seed: int = 0
) -> Int64[Tensor, " n"]:
    """Pseudo-random key of each token: a function of (seed, sample, position) and nothing else.

    The `n` smallest keys are a uniform sample without replacement, known before the forward pass;
    merging the smallest keys of several processes gives those of one.
    """
    z = torch.full_like(sample, _signed(_GOLDEN * (seed + 1)))
    for part in (sample, position):
        z = _scramble(z + part * _signed(_GOLDEN))
    return z
