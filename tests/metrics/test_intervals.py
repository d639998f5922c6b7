"""Standard errors and replicates against scipy and plain loops, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from made_data import plain_mixed_key
from made_tokens import normal
from scipy import stats

from mm_lens.metrics.intervals import (
    GROUPS,
    MIN_SAMPLES,
    Replicates,
    clustered_error,
    effective_freedom,
    error_of_sums,
    jackknife_error,
    left_out,
    margin,
    sample_groups,
    student_quantile,
)


def plain_groups(samples, n_groups, seed):
    """Sample ids in the order of their hash, dealt out into equal parts."""
    ids = sorted(set(samples))
    count = max(1, min(n_groups, len(ids)))
    ranked = sorted(ids, key=lambda sample: plain_mixed_key(sample, 0, seed))
    part = {sample: rank * count // len(ids) for rank, sample in enumerate(ranked)}
    return [part[sample] for sample in samples], count


@pytest.mark.parametrize(("n_samples", "n_groups", "seed"), [(50, 16, 0), (50, 16, 5), (3, 16, 0)])
def test_groups_are_equal_parts_in_the_order_of_the_hash(n_samples, n_groups, seed):
    samples = (torch.arange(4 * n_samples) * 7919) % n_samples * 31 + 5
    group, count = sample_groups(samples, n_groups, seed)
    assert (group.tolist(), count) == plain_groups(samples.tolist(), n_groups, seed)


def test_groups_of_few_or_no_samples():
    samples = torch.tensor([7, 7, 9])
    assert sample_groups(samples, 1)[0].tolist() == [0, 0, 0]
    assert sample_groups(samples, 1)[1] == 1
    group, count = sample_groups(torch.empty(0, dtype=torch.long), 16)
    assert (group.tolist(), count) == ([], 1)


def test_the_default_seed_is_zero():
    samples = torch.arange(90) % 30
    influence = normal(0, 90)
    zero, one = (sample_groups(samples, 16, seed)[0] for seed in (0, 1))
    assert torch.equal(sample_groups(samples, 16)[0], zero)
    assert not torch.equal(zero, one)
    for found, group in ((left_out(samples), zero), (left_out(samples, 1), one)):
        assert all(torch.equal(mask, group != g) for g, mask in enumerate(found))
        assert len(found) == GROUPS
    assert Replicates.of(1.0, influence, samples) == Replicates.of(1.0, influence, samples, 0)
    assert Replicates.of(1.0, influence, samples) != Replicates.of(1.0, influence, samples, 1)


@pytest.mark.parametrize("count", [MIN_SAMPLES - 1, MIN_SAMPLES])
def test_as_many_samples_as_an_interval_needs(count):
    samples, influence = torch.arange(12) % count, normal(0, 12)
    enough = count >= MIN_SAMPLES
    assert len(left_out(samples)) == count * enough
    error, freedom = clustered_error(influence, samples)
    assert math.isfinite(error) == enough
    assert freedom == (count - 1) * enough
    made = Replicates.of(2.0, influence, samples, rest=0.5)
    assert len(made.values) == count * enough
    assert made.rest == 0.5 * enough
    assert Replicates.of(2.0, influence, samples).rest == 0.0


def test_error_of_a_mean_over_samples_is_the_textbooks():
    """Influence of a mean of equal samples: deviations over n. The error is scipy's sem."""
    x = normal(0, 24).view(3, 8)  # three tokens of each of eight samples
    influence = ((x - x.mean()) / x.numel()).flatten()
    error, freedom = clustered_error(influence, torch.arange(8).repeat(3))
    assert error == pytest.approx(stats.sem(x.mean(0).numpy()), rel=1e-12)
    assert freedom == 7


def test_jackknife_error_of_a_mean_is_the_textbooks():
    x = normal(0, 10).numpy()
    refits = [float(np.delete(x, i).mean()) for i in range(len(x))]
    error, freedom = jackknife_error(refits)
    assert error == pytest.approx(stats.sem(x), rel=1e-12)
    assert freedom == 9
    error, freedom = jackknife_error([])
    assert math.isnan(error)
    assert freedom == 0


def test_replicates_of_a_mean_are_the_means_without_each_group():
    """Exactly so where the groups are of equal size."""
    samples = torch.arange(64).repeat(2)
    x = normal(0, 128)
    mean = float(x.mean())
    made = Replicates.of(mean, (x - mean) / len(x), samples, seed=3)
    group, count = sample_groups(samples, GROUPS, 3)
    assert count == GROUPS
    truth = [float(x[group != g].mean()) for g in range(count)]
    assert made.values == pytest.approx(truth, rel=1e-12)


def test_one_group_may_make_half_of_the_variance():
    def made(first, count=GROUPS):
        return Replicates((first, *(1.0 if i % 2 else -1.0 for i in range(count - 1))))

    # One of 16 deviates by d (of 15 others ±1, whose squares sum to 15): half from about 4 on.
    assert not made(3.0).hang_on_one
    assert made(5.0).hang_on_one
    assert made(-5.0).hang_on_one
    assert not made(50.0, GROUPS - 1).hang_on_one
    assert not Replicates().hang_on_one
    # Exactly half: two groups that mirror each other hold all of it, half each.
    assert not Replicates((1.0, -1.0, *[0.0] * (GROUPS - 2))).hang_on_one
    # Variance is about the mean, not about zero.
    assert not Replicates(tuple(x + 100 for x in made(3.0).values)).hang_on_one
    assert Replicates(tuple(x + 100 for x in made(5.0).values)).hang_on_one


@pytest.mark.parametrize("freedom", [1, 1.5, 4, 10, 15, 60, 1e4])
def test_quantiles_are_students(freedom):
    exact = stats.t.ppf(0.975, freedom)
    assert student_quantile(freedom) == pytest.approx(exact, rel=1e-12)
    assert margin(2.0, freedom) == pytest.approx(2 * exact, rel=1e-12)


def test_no_freedom_no_margin():
    assert math.isnan(margin(1.0, 0))
    assert margin(3.0, 1) == 3.0 * student_quantile(1)


def test_a_mean_of_the_sums_is_no_spread():
    """Sums that are all 5 larger, as influence of a shifted statistic: the same error."""
    sums, sizes = torch.tensor([1.0, 2.0, 4.0, 9.0]).double(), torch.full((4,), 5)
    pulled = [4 / 3 * s for s in (1, 2, 4, 9)]  # each is a quarter of the tokens
    for moved in (sums, sums + 5):
        error, freedom = error_of_sums(moved, sizes)
        assert error == pytest.approx(math.sqrt(np.var(pulled) * 4 * 3 / 4), rel=1e-12)
        assert freedom == pytest.approx(3)


def test_one_sample_with_nearly_all_tokens_leaves_one_degree_of_freedom():
    assert effective_freedom(torch.tensor([1000, 1, 1, 1])) == 1
    assert effective_freedom(torch.tensor([7, 7, 7])) == pytest.approx(2)


def test_replicates_lie_around_the_value():
    samples = torch.arange(64) % 32
    found = Replicates.of(3.0, 5 + normal(0, 64).double(), samples, rest=0.25)
    assert math.fsum(found.values) / GROUPS == pytest.approx(3, abs=1e-12)
    assert np.std(found.values) > 0.01
    assert found.freedom == pytest.approx(GROUPS - 1)
    assert found.rest == 0.25
