"""The gap over depth against SciPy and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FAMILIES
from native_runs import native_states
from scipy.linalg import sqrtm

from mm_lens.recipes.gap import close_gap, frechet, moments


def by_scipy(visual, text):
    scale = 1 / np.linalg.norm(text, axis=1).mean()
    a, b = scale * visual, scale * text
    s, t = np.cov(a.T), np.cov(b.T)
    root = np.real(sqrtm(s @ t))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root))


def sums(x):
    squares = (x.T @ x).flatten()
    return torch.cat([torch.tensor([len(x), x.norm(dim=1).sum()]).double(), x.sum(0), squares])


def test_the_distance_is_frechets():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(40, 6, generator=generator).double() * k + k for k in (1, 2))
    found = frechet(moments(sums(a), 6), moments(sums(b), 6))
    assert found == pytest.approx(by_scipy(a.numpy(), b.numpy()), rel=1e-6)


def test_it_is_of_the_native_models_states(model, asked):
    native = FAMILIES["llava-next"]()[0]
    visual, text = [], []
    for question in asked:
        states, _ = native_states(native, question.inputs.native, 0)
        visual.append(states[question.visual])
        text.append(states[question.inputs.layout.mask("text")])
    found = close_gap(model, asked, 0)
    want = by_scipy(torch.cat(visual).double().numpy(), torch.cat(text).double().numpy())
    assert found.table["gap"][0] == pytest.approx(want, rel=1e-3)
    gaps = found.table["gap"].to_numpy()
    assert found.value == pytest.approx(np.log(gaps[-1]) - np.log(gaps[0]))
    assert found.low <= found.high
    assert f"{np.log(gaps[1:].sum()):.3g}" in found.note
