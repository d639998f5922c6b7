"""Fits to ratios of distances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from made_tokens import manifold
from scipy import optimize

from mm_lens.metrics import nearest
from mm_lens.metrics.gride import SCALES
from mm_lens.metrics.numerics.ratios import fit_gride, fit_line, fit_mle, log_ratios


@pytest.mark.parametrize("n1", [1, *SCALES])
def test_gride_is_the_maximum_of_the_published_density(n1):
    """Denti et al. 2022: the log likelihood as printed, maximised by scipy."""
    found = nearest(manifold(n1, 700, 6), 2 * n1)
    mu = (found.distance[:, -1] / found.distance[:, n1 - 1]).numpy()

    def loss(d: float) -> float:
        log_beta = 2 * math.lgamma(n1) - math.lgamma(2 * n1)
        density = (
            np.log(d)
            + (n1 - 1) * np.log(mu**d - 1)
            - (d * (2 * n1 - 1) + 1) * np.log(mu)
            - log_beta
        )
        return -float(density.sum())

    best = optimize.minimize_scalar(loss, bounds=(1, 30), method="bounded", options={"xatol": 1e-9})
    assert fit_gride(log_ratios(found, n1), n1).value == pytest.approx(best.x, rel=1e-6)


@pytest.mark.parametrize("fit", [fit_mle, lambda ratios: fit_line(ratios, int(0.9 * len(ratios)))])
def test_influence_is_what_ten_more_of_a_token_move(fit):
    found = nearest(manifold(0, 8000, 4))
    ratios = (found.r2 / found.r1).log()
    before = fit(ratios)
    assert abs(float(before.influence.sum())) < 1e-9
    largest = float(before.influence.abs().max())
    order = ratios.argsort()
    for i in order[[0, 1200, 4000, 6800, 7600, -1]]:
        after = fit(torch.cat([ratios, ratios[i].repeat(10)]))
        moved = (after.value - before.value) / 10
        assert moved == pytest.approx(float(before.influence[i]), abs=0.02 * largest)
