"""Held-out error over folds of samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_pairs import pair
from made_tokens import clustered, tokens_of
from torch import Tensor

from mm_lens.metrics.intervals import sample_groups
from mm_lens.metrics.numerics.linear_fit import LinearFit
from mm_lens.metrics.numerics.regression import _STRENGTHS


def test_held_out_equals_ridge_by_explicit_solves():
    """The chosen map, its choice and its score, by plain loops over rows."""
    x, y = pair(0, 120, 6)
    tokens, tokens_next = tokens_of(x, 12), tokens_of(y, 12)
    fit = LinearFit(tokens, tokens_next, seed=3)
    fold, _ = sample_groups(tokens.sample, 4, seed=3)

    def solve(rows: Tensor, strength: float) -> tuple[Tensor, Tensor, Tensor]:
        a, b = x[rows] - x[rows].mean(0), y[rows] - y[rows].mean(0)
        gram = a.T @ a
        penalty = strength * gram.trace() / len(gram) * torch.eye(len(gram)).double()
        map_ = torch.linalg.solve(gram + penalty, a.T @ b)
        return map_, x[rows].mean(0), y[rows].mean(0)

    def error(rows: Tensor, test: Tensor, strength: float) -> float:
        map_, mean_x, mean_y = solve(rows, strength)
        return float((y[test] - mean_y - (x[test] - mean_x) @ map_).square().sum())

    residual = total = 0.0
    finite = [float(s) for s in _STRENGTHS[:-1]]
    for f in range(4):
        inner = [g for g in range(4) if g != f]
        scores = [
            sum(error((fold != f) & (fold != g), fold == g, s) for g in inner) for s in finite
        ]
        best = finite[int(np.argmin(scores))]
        residual += error(fold != f, fold == f, best)
        total += float((y[fold == f] - y[fold != f].mean(0)).square().sum())
    assert fit.held_out("state")[0] == pytest.approx(1 - residual / total, rel=1e-8)


def test_folds_by_sample_do_not_leak():
    """A map that only recognises the sample scores high by token and nothing by sample."""
    n, d, samples = 1200, 60, 40
    x, y = clustered(0, n, d, samples, 0.9), clustered(7, n, d, samples, 0.9)
    by_sample = LinearFit(tokens_of(x, samples), tokens_of(y, samples), 0)
    by_token = LinearFit(tokens_of(x), tokens_of(y), 0)
    assert by_token.held_out("state")[0] > 0.5
    assert abs(by_sample.held_out("state")[0]) < 0.02
