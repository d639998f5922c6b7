"""Means of readings, with intervals over samples, against plain formulas."""

import math

import pytest
import torch
from made_tokens import normal
from scipy import stats

from mm_lens.metrics import METRICS, Tokens, evaluate

NAMES = ["lens_entropy", "lens_kl", "lens_rank"]


def readings(n=60, samples=12):
    index = torch.arange(n)
    return Tokens(normal(0, n, 3).abs(), index % samples, index // samples, index * 0)


def test_each_is_the_mean_of_its_column_with_an_interval_over_samples():
    tokens = readings()
    found = evaluate(tokens, None, NAMES, given="readings")
    for column, name in enumerate(NAMES):
        values = tokens.x[:, column]
        assert found[name].value == pytest.approx(float(values.mean()))
        # Samples of one size: Student's t of their means.
        means = torch.stack([values[tokens.sample == s].mean() for s in range(12)]).numpy()
        half = stats.sem(means) * stats.t.ppf(0.975, 11)
        assert found[name].high - found[name].value == pytest.approx(half, rel=1e-6)
        assert len(found[name].replicates.values) == 12


def test_states_are_never_taken_for_readings():
    assert evaluate(readings(), None, NAMES) == {}
    none = METRICS["lens_kl"].compute(readings(0))
    assert math.isnan(none.value)
    assert none.warning == "no tokens"
