"""GRIDE against the published density."""

from __future__ import annotations

import math

import pytest
import torch
from made_tokens import manifold, normal, tokens_of

from mm_lens.metrics import METRICS, evaluate
from mm_lens.metrics.gride import SCALES


def test_gride_finds_a_known_dimension_and_hears_no_noise_between_the_nearest():
    names = [f"dimension_gride_{n1}" for n1 in SCALES]
    for estimate in evaluate(tokens_of(manifold(3, 2000, 4)), None, names).values():
        assert estimate.value == pytest.approx(4, rel=0.08)
        assert estimate.low < estimate.value < estimate.high
    # Every point twice, 1e-3 apart in all directions: near-copies fool the nearest two only.
    x = manifold(0, 1000, 3)
    x = torch.cat([x, x]) + 1e-3 * normal(5, 2000, 30)
    found = evaluate(tokens_of(x), None, [*names, "dimension_mle"])
    assert abs(found["dimension_mle"].value - 3) > 1
    assert found["dimension_gride_8"].value == pytest.approx(3, rel=0.15)


def test_gride_needs_sixteen_neighbours():
    few = METRICS["dimension_gride_8"].compute(tokens_of(manifold(0, 16, 3)))
    assert math.isfinite(METRICS["dimension_gride_4"].compute(tokens_of(manifold(0, 16, 3))).value)
    assert math.isnan(few.value)
    assert few.warning == "16 distinct states are too few for 16 neighbours"


def test_gride_of_few_states_has_no_interval():
    """89 % of 95 % intervals contained the mean at 300 states: docs/metrics/coverage.md."""
    names = [f"dimension_gride_{n1}" for n1 in SCALES]
    found = evaluate(tokens_of(manifold(3, 300, 4)), None, names)
    assert [math.isfinite(found[name].low) for name in names] == [True, True, False]
    assert "no interval: fewer than 400 distinct states" in found[names[2]].warning
    assert not found[names[2]].replicates.values


@pytest.mark.parametrize(
    ("heavy", "given"), [(0, [1, 1, 1]), (5, [1, 0, 0]), (15, [1, 1, 0]), (25, [1, 1, 1])]
)
def test_few_massive_tokens_leave_no_interval(heavy, given):
    """Their number decides the value where they cannot be each other's neighbours."""
    x = manifold(3, 1500, 4)
    x[:heavy] *= 100
    found = evaluate(tokens_of(x), None, names := [f"dimension_gride_{n1}" for n1 in SCALES])
    assert [math.isfinite(found[name].low) for name in names] == [bool(each) for each in given]
    for n1, name, each in zip(SCALES, names, given, strict=True):
        told = f"{heavy} massive tokens are too few to be each other's {2 * n1} neighbours"
        assert (told in found[name].warning) == (not each)
