"""Rows that come in batches and shards."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import strategies as st
from made_tokens import normal

N = 300


D = 8


X = normal(0, N, D) * torch.logspace(0, 1, D).double() + 1000  # a mean that costs raw sums 6 digits


Y = X + torch.tanh(X - 1000) @ normal(1, D, D) + 0.3 * normal(2, N, D)


splits = st.lists(st.integers(0, N), max_size=6).map(lambda cuts: [0, *sorted(cuts), N])


def batches(cuts: list[int], *rows: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    return [tuple(r[a:b] for r in rows) for a, b in itertools.pairwise(cuts)]


def stream(make, parts, shards: int):
    """Feed the parts to shards in turn, then merge the shards, the last first."""
    accumulators = [make() for _ in range(shards)]
    for i, part in enumerate(parts):
        accumulators[i % shards].update(*part)
    merged = make()
    for accumulator in reversed(accumulators):
        merged.merge(accumulator)
    return merged


def equal(found: dict[str, float], expected: dict[str, float], rel: float) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        # R² is measured on the scale of one.
        assert found[name] == pytest.approx(expected[name], rel=rel, abs=rel), name
