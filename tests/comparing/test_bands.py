"""Bands over layers: closed forms where there are any, and their promise under an exact null."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mm_lens.comparing.bands import Interval, band, highest, lowest, simultaneous_quantile
from mm_lens.comparing.paired import Quantity

GROUPS = 16


def quantities(deviations: np.ndarray, values: np.ndarray | None = None, rest: float = 0.0):
    """One for each row of deviations."""
    values = np.zeros(len(deviations)) if values is None else values
    return [
        Quantity(float(v), math.hypot(np.linalg.norm(d), rest), GROUPS - 1.0, (d,), rest)
        for v, d in zip(values, deviations, strict=True)
    ]


def centred(layers: int, seed: int = 0) -> np.ndarray:
    """Orthogonal rows that sum to zero: errors of layers that are independent."""
    rows = np.random.default_rng(seed).normal(size=(GROUPS, layers))
    rows -= rows.mean(0)
    return np.linalg.qr(rows)[0].T


def test_layers_that_err_alike_need_no_more_than_one_layer():
    alike = np.outer([1.0, 0.5, 2.0], centred(1)[0])
    assert simultaneous_quantile(quantities(alike)) == pytest.approx(
        stats.t.ppf(0.975, 15), rel=0.04
    )


@pytest.mark.parametrize("layers", [2, 5, 12])
def test_independent_layers_need_sidaks_quantile(layers):
    expected = stats.t.ppf((1 + 0.95 ** (1 / layers)) / 2, 15)
    found = simultaneous_quantile(quantities(centred(layers)))
    assert found == pytest.approx(expected, rel=0.04)


def test_few_degrees_of_freedom_widen_the_band():
    few = [Quantity(q.value, q.error, 5.0, q.deviations) for q in quantities(centred(1))]
    assert simultaneous_quantile(few) == pytest.approx(stats.t.ppf(0.975, 5), rel=0.05)


def test_what_the_groups_do_not_show_is_independent_between_layers():
    apart = quantities(1e-6 * centred(6), rest=1.0)
    expected = stats.norm.ppf((1 + 0.95 ** (1 / 6)) / 2)
    assert simultaneous_quantile(apart) == pytest.approx(expected, rel=0.04)


def test_without_replicates_layers_are_taken_for_independent():
    bare = [Quantity(0.0, 1.0, 15.0, (np.zeros(0),), 1.0) for _ in range(7)]
    assert simultaneous_quantile(bare) == pytest.approx(stats.t.ppf(1 - 0.025 / 7, 15), rel=1e-12)


def test_unknown_layers_have_no_band_and_widen_nothing():
    values = quantities(centred(3))
    hole = [*values[:1], Quantity(math.nan, math.nan, 15.0), *values[1:]]
    found, expected = band(hole), band(values)
    assert not found[1].known
    assert [f for i, f in enumerate(found) if i != 1] == expected
    assert not any(b.known for b in band([Quantity(1.0, math.nan, 15.0)]))
    assert lowest(band([Quantity(1.0, math.nan, 15.0)]))[1].known is False


def test_exact_values_have_bands_of_no_width():
    exact = quantities(np.zeros((3, GROUPS)), np.array([1.0, 2, 3]))
    assert [(b.low, b.high) for b in band(exact)] == [(1, 1), (2, 2), (3, 3)]


def test_lowest_and_highest_by_hand():
    bands = [Interval(3, 2, 4), Interval(1, -2, 4), Interval(1.5, 0.5, 2.5)]
    assert lowest(bands) == (1, Interval(1, -2, 2.5))
    assert highest(bands) == (0, Interval(3, 2, 4))


def null_curves(rng: np.random.Generator, layers: int, shared: float) -> list[Quantity]:
    """Means over 96 documents that are truly zero at every layer."""
    common = rng.normal(size=(96, 1))
    data = shared**0.5 * common + (1 - shared) ** 0.5 * rng.normal(size=(96, layers))
    means = data.reshape(GROUPS, -1, layers).mean(1)
    deviations = (means - means.mean(0)).T / math.sqrt(GROUPS * (GROUPS - 1))
    return quantities(deviations, data.mean(0))


def shares(repetitions: int, layers: int, shared: float) -> tuple[float, float, float]:
    """How often a lowest layer's own interval, and the band, lie below zero; or the band misses."""
    rng, count = np.random.default_rng(layers), np.zeros(3)
    for _ in range(repetitions):
        values = null_curves(rng, layers, shared)
        bands = band(values)
        own = min(values, key=lambda q: q.value)
        count += (
            own.high < 0,
            lowest(bands)[1].high < 0 or min(bands, key=lambda b: b.value).high < 0,
            any(not b.low <= 0 <= b.high for b in bands),
        )
    own_, low, any_ = count / repetitions
    return own_, low, any_


def test_the_lowest_layer_is_below_zero_no_oftener_than_it_should():
    own, low, missed = shares(200, 12, 0.5)
    assert own > 0.06  # what a chosen layer's own interval does: nominal is 2.5 %
    # Of 200 repetitions of 2.5 % more than 12 once in 1,000; of 5 %, more than 20.
    assert low <= 12 / 200
    assert missed <= 20 / 200


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "shared"), [(8, 0.0), (30, 0.0), (30, 0.5), (30, 0.9)])
def test_bands_hold_for_all_layers_at_once(layers, shared):
    _, low, missed = shares(1000, layers, shared)
    assert low <= 0.040  # 2.5 % and three standard errors
    assert missed <= 0.071  # 5 %
