"""Least squares and ridge from moments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_pairs import pair, run, svd_r2
from made_tokens import normal
from torch import Tensor

from mm_lens.metrics.numerics.linear_fit import TARGETS
from mm_lens.metrics.numerics.regression import N_CHOICES, Moments, Ridge, fit_ridge


def rank_deficient() -> dict[str, tuple[Tensor, Tensor]]:
    x, y = pair(0, 300, 24)
    constant = x.clone()
    constant[:, 5], constant[:, 9] = 0.1, 1e6
    return {
        "constant columns": (constant, y),
        "low rank": (normal(4, 300, 6) @ normal(5, 6, 24), y),
        "repeated tokens": (x[:10].repeat(30, 1), y),
        "repeated columns": (torch.cat([x[:, :12], x[:, :12]], 1), y),
        "fewer tokens than dimensions": (x[:15], y[:15]),
        "copied column with rounding": (torch.cat([x[:, :23], x[:, :1] * 3], 1), y),
    }


@pytest.mark.parametrize("name", rank_deficient())
def test_rank_deficient_inputs_equal_a_truncated_svd(name):
    x, y = rank_deficient()[name]
    found = run(x, y)["linearity_paper"]
    centred = (x - x.mean(0)).numpy()
    spread = np.linalg.norm(centred, axis=0)
    keep = spread > 1e-12 * x.abs().max().item()
    rank = int(np.linalg.matrix_rank(centred[:, keep] / spread[keep], tol=1e-7))
    assert found.value == pytest.approx(svd_r2(x, y, cut=1e-7), abs=1e-9)
    assert found.chance == pytest.approx(rank / (len(x) - 1))


@pytest.mark.parametrize("target", TARGETS)
def test_errors_from_moments_are_errors_of_rows(target):
    x, y = pair(1, 90, 5)
    train, held = slice(0, 60), slice(60, 90)
    ridge = Ridge(Moments.of(x[train], y[train]))
    errors = ridge.errors(Moments.of(x[held], y[held]))[target]
    inputs = x[held] - x[train].mean(0)
    goal = y - x if target == "update" else y
    outputs = goal[held] - goal[train].mean(0)
    for choice in (0, 20, 40, 57):
        direct = (outputs - inputs @ ridge.fitted(target, choice).map).square().sum()
        assert float(errors[choice]) == pytest.approx(float(direct), rel=1e-9)
    assert float(errors[-1]) == pytest.approx(float(outputs.square().sum()), rel=1e-12)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("choice", [0, 30, N_CHOICES - 1])
def test_one_strength_needs_no_eigenvectors(target, choice, monkeypatch):
    """The map and its effects are those of the decomposition; numpy's least squares agrees."""
    x = normal(3, 400, 24)
    y = x @ normal(4, 24, 24) + normal(5, 400, 24)
    train, rows = Moments.of(x[:300], y[:300]), (x[300:], y[300:] - x[300:], y[300:] * 0.1)
    part = Moments.of(x[:40], y[:40])
    want = Ridge(train).fitted(target, choice)
    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "eigh", None)
        found = fit_ridge(train, target, choice)
    torch.testing.assert_close(found.map, want.map, rtol=1e-8, atol=1e-10)
    effects = [fitted.effects(*rows)(part) for fitted in (found, want)]
    torch.testing.assert_close(*effects, rtol=1e-8, atol=1e-10)
    if choice == 0:
        xc, yc = (each[:300] - each[:300].mean(0) for each in (x, y))
        plain = np.linalg.lstsq(xc.numpy(), (yc - xc if target == "update" else yc).numpy())[0]
        torch.testing.assert_close(found.map, torch.from_numpy(plain), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", rank_deficient())
def test_weak_directions_are_cut_off_as_before(name):
    train = Moments.of(*rank_deficient()[name])
    for choice in (0, 30):
        found, want = fit_ridge(train, "state", choice), Ridge(train).fitted("state", choice)
        assert torch.equal(found.map, want.map)
