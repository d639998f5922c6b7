"""Distances between modalities against scipy, closed forms and planted gaps."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_tokens import clustered, normal, rotation, tokens_of
from scipy import linalg

from mm_lens.errors import InputError
from mm_lens.metrics import METRICS, Tokens, evaluate
from mm_lens.metrics.gap import (
    frechet_distance,
    gap_estimate,
    integration_estimate,
    integration_rate,
    modality_gap,
)
from mm_lens.metrics.intervals import sample_groups
from mm_lens.metrics.numerics.moments import Scatter
from mm_lens.metrics.tokens import join_modalities


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


@pytest.mark.parametrize("estimate", [gap_estimate, integration_estimate])
def test_rows_that_are_not_finite_are_dropped_and_counted(estimate):
    a, b = two()
    expected = estimate(tokens_of(a[1:]), tokens_of(b))
    a[0, 1] = torch.nan
    found = estimate(tokens_of(a), tokens_of(b))
    assert found.value == pytest.approx(expected.value, rel=1e-12)
    assert found.warning == "1 of 700 tokens not finite, dropped"


def test_one_cloud_on_both_sides_has_no_gap():
    a = tokens_of(normal(0, 60, 4), 20)
    found = gap_estimate(a, a)
    assert found.value == found.low == 0
    assert found.high < 1e-12  # the same samples on both sides: no error either
    assert found.warning == ""
    other = gap_estimate(a, replace(a, sample=a.sample + 20))
    assert other.value == other.low == 0
    # Independent samples: centroids differ by about sqrt(2 / 60), in units of the spread.
    assert other.high == pytest.approx(2.02 * (2 / 60) ** 0.5, rel=0.3)


def test_constant_clouds_have_a_distance_and_no_gap_in_units_of_their_spread():
    a, b = (tokens_of(torch.full((50, 3), v, dtype=torch.float64), 10) for v in (0.1, 0.7))
    found = gap_estimate(a, b)
    assert math.isnan(found.value)
    assert found.warning == "all tokens have the same state within each modality"
    far = integration_estimate(a, b)
    assert far.value == pytest.approx((0.6 / 0.7) ** 2, rel=1e-9)
    assert far.low == pytest.approx(far.high, rel=1e-9)
    assert math.isfinite(gap_estimate(a, tokens_of(normal(0, 50, 3), 10)).value)


@pytest.mark.parametrize("estimate", [gap_estimate, integration_estimate])
@pytest.mark.parametrize("holders", [1, 3])
def test_a_modality_in_few_samples_has_a_value_and_no_interval(estimate, holders):
    text, visual = tokens_of(normal(0, 400, 4), 20), tokens_of(normal(1, 60, 4) + 1, holders)
    found = estimate(visual, text)
    assert math.isfinite(found.value)
    assert math.isnan(found.low)
    assert found.warning == "no interval: too few samples"
    assert found.replicates.values == ()


def test_a_modality_in_one_group_of_samples_has_no_interval():
    """Five samples hold visual tokens, all of them in the group that is left out together."""
    sample = torch.arange(400) % 200
    group, _ = sample_groups(sample, 16, 0)
    text = Tokens(normal(0, 400, 4), sample, sample, sample)
    visual = text.take(group == 3)
    assert len(visual.sample.unique()) >= 5
    found = integration_estimate(visual, text)
    assert math.isfinite(found.value)
    assert math.isnan(found.low)
    assert found.warning == "no interval: too few samples"


def test_rate_is_the_logarithm_of_the_sum_over_layers():
    assert integration_rate([4.0, 6.0, 90.0]) == pytest.approx(2)
    assert integration_rate([0.0]) == -math.inf
    for wrong in ([], [1.0, -2.0], [math.nan]):
        with pytest.raises(InputError, match="distance of one layer or more"):
            integration_rate(wrong)


def test_degenerate_input_gives_nan_with_a_reason():
    none, same = tokens_of(torch.zeros(0, 3).double()), tokens_of(torch.ones(9, 3).double())
    zero = Tokens(same.x * 0, same.sample, same.position, same.token_id)
    for a, b in ((none, same), (same, none), (same, same), (zero, zero)):
        for estimate in (gap_estimate, integration_estimate):
            found = estimate(a, b)
            told = [w for w in found.warning.split("; ") if w and "interval" not in w]
            assert math.isnan(found.value) == bool([w for w in told if "may be bias" not in w])
    assert math.isnan(gap_estimate(none, same).value)
    assert math.isnan(gap_estimate(same, same).value)
    assert "zero" in integration_estimate(zero, zero).warning


def test_metrics_of_a_profile_are_these_functions():
    """Two clouds a known distance apart, as one set of tokens that says whose each is."""
    d = 4
    a, b = normal(0, 4000, d), normal(1, 3000, d)
    b[:, 0] += 6
    visual, text = tokens_of(a, 40), tokens_of(b, 40)
    both = join_modalities(visual, text)
    names = ["modality_gap", "integration_distance"]
    found = evaluate(both, None, names, seed=2, given="modalities")
    assert found["modality_gap"].value == pytest.approx(6 / 2, rel=0.03)
    assert found["modality_gap"] == gap_estimate(visual, text, 2)
    assert found["integration_distance"] == integration_estimate(visual, text, 2)
    shuffled = both.take(torch.randperm(len(both.x), generator=torch.Generator().manual_seed(0)))
    again = METRICS["modality_gap"].compute(shuffled, seed=2)
    assert again.value == pytest.approx(found["modality_gap"].value, rel=1e-12)


def test_a_massive_token_is_left_out_of_the_twin():
    a, b = two()
    heavy = torch.cat([a, 1e3 * torch.ones(1, 6)])
    both = join_modalities(tokens_of(heavy, 20), tokens_of(b, 20))
    names = ["modality_gap", "modality_gap_without_massive"]
    found = evaluate(both, None, names, given="modalities")
    expected = gap_estimate(tokens_of(a, 20), tokens_of(b, 20)).value
    assert found["modality_gap_without_massive"].value == pytest.approx(expected, rel=1e-9)
    assert "1 of 701 tokens are massive" in found["modality_gap"].warning


def test_tokens_must_say_whose_they_are():
    with pytest.raises(InputError, match="needs tokens of both"):
        METRICS["modality_gap"].compute(tokens_of(two()[0]))
    one = join_modalities(tokens_of(two()[0]), tokens_of(torch.zeros(0, 6).double()))
    assert "fewer than 3 tokens (0)" in METRICS["modality_gap"].compute(one).warning
