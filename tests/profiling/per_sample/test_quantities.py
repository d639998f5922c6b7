"""Numbers of one sample against numpy and scikit-dimension, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import skdim
import torch

from mm_lens.profiling.per_sample.quantities import QUANTITIES, describe_tokens


@pytest.fixture(scope="module")
def states():
    """Sixty tokens on a curved sheet of three dimensions, one of them massive."""
    chance = np.random.default_rng(0)
    sheet = chance.normal(size=(60, 3))
    x = np.concatenate([sheet, np.sin(sheet), sheet**2 / 3], 1) + 1.0
    x[7] *= 40
    return x


def test_against_plain_formulas(states):
    chance = np.random.default_rng(1)
    before, other = states + chance.normal(size=states.shape), chance.normal(size=9)
    found = describe_tokens(*(torch.tensor(a) for a in (states, before, other)))
    norms = np.linalg.norm(states, axis=1)
    # torch's median of an even number is the lower one of the two in the middle.
    assert found["norm"] == pytest.approx(np.sort(norms)[29])
    moved = np.linalg.norm(states - before, axis=1) / np.linalg.norm(before, axis=1)
    assert found["update"] == pytest.approx(np.sort(moved)[29])
    units = states / norms[:, None]
    pairs = (units @ units.T)[np.triu_indices(60, 1)]
    assert found["mean_cosine"] == pytest.approx(pairs.mean())
    values = np.linalg.eigvalsh(np.cov(states.T))
    assert found["anisotropy"] == pytest.approx(values[-1] / values.sum())
    assert found["participation_ratio"] == pytest.approx(values.sum() ** 2 / (values**2).sum())
    assert found["massive_share"] == pytest.approx(norms[7] ** 2 / (norms**2).sum())
    mean = states.mean(0)
    expected = mean @ other / np.linalg.norm(mean) / np.linalg.norm(other)
    assert found["other_cosine"] == pytest.approx(expected)


def test_the_dimension_is_that_of_another_package(states):
    found = describe_tokens(torch.tensor(states))["dimension"]
    # Its maximum likelihood over all ratios, biased by n / (n - 1).
    distances = np.sort(np.linalg.norm(states[:, None] - states[None], axis=2), axis=1)
    ratios = np.log(distances[:, 2] / distances[:, 1])
    assert found == pytest.approx(59 / ratios.sum())
    assert found == pytest.approx(skdim.id.TwoNN().fit(states).dimension_, rel=0.25)


def test_more_directions_than_tokens(states):
    wide = np.random.default_rng(2).normal(size=(5, 40))
    found = describe_tokens(torch.tensor(wide))
    values = np.linalg.svd(wide - wide.mean(0), compute_uv=False) ** 2
    assert found["anisotropy"] == pytest.approx(values[0] / values.sum())
    assert math.isnan(found["dimension"])


@pytest.mark.parametrize("n", [0, 1, 2])
def test_what_few_tokens_do_not_tell_is_nan(n):
    found = describe_tokens(torch.randn(n, 4))
    assert set(found) == {*QUANTITIES}
    assert math.isnan(found["norm"]) == (n == 0)
    assert math.isnan(found["mean_cosine"]) == (n < 2)
    assert math.isnan(found["anisotropy"])


def test_equal_and_infinite_states():
    same = describe_tokens(torch.ones(60, 4))
    assert same["mean_cosine"] == pytest.approx(1)
    assert math.isnan(same["anisotropy"])
    assert all(map(math.isnan, describe_tokens(torch.full((60, 4), math.inf)).values()))
