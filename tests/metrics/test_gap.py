"""Distances between modalities against scipy, closed forms and planted gaps."""

import math

import numpy as np
import pytest
import torch
from metrics.made import clustered, normal, rotation, tokens_of
from scipy import linalg

from mm_lens.metrics import Tokens
from mm_lens.metrics.gap import (
    frechet_distance,
    gap_estimate,
    integration_estimate,
    integration_rate,
    modality_gap,
)
from mm_lens.metrics.moments import Scatter


def two(seed: int = 0, n: int = 400, m: int = 300, d: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(seed, n, d) @ normal(1, d, d), normal(seed + 9, m, d) @ normal(2, d, d) + 1


def test_frechet_distance_equals_scipys_square_root():
    a, b = two()
    c, e = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = linalg.sqrtm(c @ e).real
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + np.trace(c + e - 2 * root)
    found = frechet_distance(Scatter.of(a), Scatter.of(b))
    assert found == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(Scatter.of(b), Scatter.of(a)) == pytest.approx(found, rel=1e-9)
    assert frechet_distance(Scatter.of(a), Scatter.of(a)) == pytest.approx(0, abs=1e-9)


def test_gap_of_two_unit_balls_a_distance_apart():
    d = 16
    a, b = normal(0, 20_000, d), normal(1, 20_000, d)
    b[:, 0] += 8
    found = gap_estimate(tokens_of(a), tokens_of(b))
    assert found.value == pytest.approx(8 / 4, rel=0.02)  # root of the trace is sqrt(16)
    assert found.low < 2 < found.high
    assert found.value == pytest.approx(modality_gap(Scatter.of(a), Scatter.of(b)), rel=1e-12)


def test_no_gap_scores_chance():
    values, chances = [], []
    for seed in range(10):
        found = gap_estimate(tokens_of(normal(seed, 200, 8)), tokens_of(normal(seed + 50, 300, 8)))
        values.append(found.value)
        chances.append(found.chance)
    assert np.mean(values) == pytest.approx(chances[0], rel=0.2)


def test_no_distance_scores_chance():
    values, chances = [], []
    for seed in range(8):
        a, b = normal(seed, 300, 10), normal(seed + 50, 400, 10)
        found = integration_estimate(tokens_of(a), tokens_of(b))
        values.append(found.value)
        chances.append(found.chance)
    assert np.mean(values) == pytest.approx(np.mean(chances), rel=0.15)


def test_distance_is_in_units_of_the_text_and_without_outliers():
    a, b = two()
    plain = integration_estimate(tokens_of(a), tokens_of(b))
    scaled = integration_estimate(tokens_of(a * 50), tokens_of(b * 50))
    assert scaled.value == pytest.approx(plain.value, rel=1e-9)
    massive = torch.cat([a, 1e4 * normal(3, 1, 6)])
    found = integration_estimate(tokens_of(massive), tokens_of(b))
    # Beside a massive token, no other is three standard deviations off.
    assert found.n_tokens - len(b) <= len(a)
    assert found.value == pytest.approx(plain.value, rel=0.1)


@pytest.mark.parametrize("estimate", [gap_estimate, integration_estimate])
def test_rotation_and_translation_do_not_matter(estimate):
    a, b = two()
    turn = rotation(3, 6)
    found, expected = (
        estimate(tokens_of(a @ turn), tokens_of(b @ turn)),
        estimate(tokens_of(a), tokens_of(b)),
    )
    assert found.value == pytest.approx(expected.value, rel=1e-9)
    assert found.low == pytest.approx(expected.low, rel=1e-6)


def test_interval_of_the_gap_is_that_of_leaving_samples_out():
    a, b = clustered(0, 400, 5, 40, 0.5), clustered(9, 400, 5, 40, 0.5) + 0.8
    visual, text = tokens_of(a, 40), tokens_of(b, 40)
    refits = [
        modality_gap(Scatter.of(a[visual.sample != s]), Scatter.of(b[text.sample != s]))
        for s in range(40)
    ]
    found = gap_estimate(visual, text)
    error = np.std(refits) * 39**0.5
    assert (found.high - found.low) / 2 == pytest.approx(2.02 * error, rel=0.05)


def test_rate_is_the_logarithm_of_the_sum_over_layers():
    assert integration_rate([4.0, 6.0, 90.0]) == pytest.approx(2)


def test_degenerate_input_gives_nan_with_a_reason():
    none, same = tokens_of(torch.zeros(0, 3).double()), tokens_of(torch.ones(9, 3).double())
    zero = Tokens(same.x * 0, same.sample, same.position, same.token_id)
    for a, b in ((none, same), (same, none), (same, same), (zero, zero)):
        for estimate in (gap_estimate, integration_estimate):
            found = estimate(a, b)
            assert math.isnan(found.value) == bool(
                found.warning and "interval" not in found.warning
            )
    assert math.isnan(gap_estimate(none, same).value)
    assert math.isnan(gap_estimate(same, same).value)
    assert "zero" in integration_estimate(zero, zero).warning
