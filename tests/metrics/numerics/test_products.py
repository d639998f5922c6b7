"""Products in split float32."""

from __future__ import annotations

import pytest
import torch
from made_streams import batches, equal
from made_tokens import normal, rotation

from mm_lens.errors import MMLensWarning
from mm_lens.metrics.accumulators import (
    LinearityMoments,
    SpectrumMoments,
)
from mm_lens.metrics.numerics import products


def residual_layer(n: int, d: int, narrow: float) -> tuple[torch.Tensor, torch.Tensor]:
    """States of unequal variance along rotated axes, massive tokens at position 0."""
    x = normal(0, n, d) * torch.logspace(0, narrow, d).double() @ rotation(1, d)
    x[::60] *= 300
    x = x + 30
    return x, x + torch.tanh(x - 30) @ normal(2, d, d) / d + 0.3 * normal(3, n, d)


@pytest.mark.parametrize("narrow", [0, -1, -2])
def test_split_float32_mode(narrow):
    """R² of state and update to 1e-6 of the float64 one."""
    exact, fast = LinearityMoments(), LinearityMoments(fast=True)
    for part in batches([0, 1000, 2000, 3000], *residual_layer(3000, 64, narrow)):
        exact.update(*part)
        fast.update(*part)
    equal(fast.compute(), exact.compute(), 1e-6)
    spectrum, quick = SpectrumMoments(), SpectrumMoments(fast=True)
    x, _ = residual_layer(3000, 64, narrow)
    spectrum.update(x)
    quick.update(x)
    equal(quick.compute(), spectrum.compute(), 1e-5)


def test_split_mode_says_where_float32_is_not_enough():
    fast = LinearityMoments(fast=True)
    fast.update(*residual_layer(3000, 64, -5))
    with pytest.warns(MMLensWarning, match="Use fast=False"):
        fast.compute()


@pytest.mark.parametrize("scale", [1e-25, 1e-10, 1e10, 1e25])
def test_split_mode_at_any_scale(scale):
    x, y = (t * scale for t in residual_layer(1000, 16, -1))
    exact, fast = LinearityMoments(), LinearityMoments(fast=True)
    exact.update(x, y)
    fast.update(x, y)
    equal(fast.compute(), exact.compute(), 1e-6)
    perfect = LinearityMoments(fast=True)
    perfect.update(x, x @ rotation(4, 16))
    assert perfect.compute()["linearity_paper"] == pytest.approx(1, abs=1e-6)


def test_split_mode_does_not_hear_of_autocast_or_rounded_products(monkeypatch):
    x, y = residual_layer(1000, 16, -1)
    exact, plain = LinearityMoments(), LinearityMoments(fast=True)
    exact.update(x, y)
    plain.update(x, y)
    fast, rounded = LinearityMoments(fast=True), LinearityMoments(fast=True)
    with torch.autocast("cpu", torch.bfloat16):
        fast.update(x, y)
    assert fast.compute() == plain.compute()
    monkeypatch.setattr(products, "keeps_float32", lambda device: False)
    rounded.update(x, y)
    assert rounded.compute() == exact.compute()
