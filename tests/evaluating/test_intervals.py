"""Intervals against scipy's, and against what happens in repetitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mm_lens.evaluating.intervals import accuracy_interval


@pytest.mark.parametrize(("right", "n"), [(0, 5), (5, 5), (3, 10), (70, 100), (1, 1)])
def test_questions_about_images_of_their_own_have_wilsons(right, n):
    expected = stats.binomtest(right, n).proportion_ci(0.95, "wilson")
    found = accuracy_interval([True] * right + [False] * (n - right), list(range(n)))
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_copies_add_nothing():
    """Each question four times: the interval is about that of the questions once."""
    chance = np.random.default_rng(0)
    once = chance.random(200) < 0.7
    alone = accuracy_interval(once.tolist(), list(range(200)))
    copies = accuracy_interval(np.repeat(once, 4).tolist(), np.repeat(range(200), 4).tolist())
    assert copies == pytest.approx(alone, abs=2e-3)


@pytest.mark.parametrize("same", [0.0, 0.5, 1.0])
def test_the_truth_is_inside_nineteen_times_in_twenty(same):
    """Questions about one image are right together, with any strength."""
    chance, inside = np.random.default_rng(1), 0
    images = np.repeat(np.arange(60), 5)
    for _ in range(400):
        shared, own = chance.random(60)[images], chance.random(300)
        right = np.where(chance.random(60)[images] < same, shared, own) < 0.8
        low, high = accuracy_interval(right.tolist(), images.tolist())
        inside += low <= 0.8 <= high
    # 380 expected; fewer than 365 or more than 395 of 400 about once in 500.
    assert 365 <= inside <= 396


def test_all_right_counts_images():
    few = accuracy_interval([True] * 40, np.repeat(range(8), 5).tolist())
    many = accuracy_interval([True] * 40, list(range(40)))
    assert few[0] < many[0]
    assert few[1] == many[1] == pytest.approx(1)


def test_none_where_nothing_can_be_said():
    assert all(map(math.isnan, accuracy_interval([], [])))
    assert all(map(math.isnan, accuracy_interval([True, False] * 3, [0, 1, 2] * 2)))
