"""The verdicts of docs/descriptive_or_prescriptive.md follow from what it says beforehand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

PAGE = Path(__file__).parents[2] / "docs" / "descriptive_or_prescriptive"


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("page", PAGE.with_suffix(".py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(affine, identity, linearity=0.99, divergence=None):
    """Single blocks of two models: effects on the accuracy, each with a half width of 0.01."""
    rows = []
    for k in range(12):
        place = {"model": "ab"[k % 2], "first_layer": k // 2, "linearity": linearity - k / 1000}
        for how, effect in (("affine", affine), ("identity", identity)):
            ends = {"effect": effect, "low": effect - 0.01, "high": effect + 0.01}
            rows.append({**place, "how": how, "metric": "accuracy", **ends})
        told = k / 10 if divergence is None else divergence[k]
        rows.append({**place, "how": "affine", "metric": "kl", "value": told})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("table", "verdict"),
    [
        (blocks(0.0, -0.3, 0.999), "prescriptive"),
        (blocks(-0.1, -0.3, 0.999), "descriptive"),  # the map loses what it says it holds
        (blocks(0.0, 0.0, 0.999), "descriptive"),  # and so does doing nothing
        (blocks(0.0, -0.3, 0.999, [0, 1] * 6), "undecided"),  # more linear is not less apart
        (blocks(-0.02, -0.3, 0.999), "undecided"),
        (blocks(0.0, -0.3, 0.9), "undecided"),  # no block is that linear
    ],
)
def test_verdicts_on_linearity(page, table, verdict):
    assert page.judge_linearity(table)[0] == verdict


def functional(counts, k=8.0, random=32.0, low=7.0, high=9.0):
    rows = []
    for layer, count in enumerate(counts):
        for which, size in (("principal", k if layer else 0.0), ("random", random)):
            place = {"model": "a", "layer": layer, "directions": which, "k": size}
            rows.append({**place, "low": low, "high": high, "dimension_mle": count})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("table", "verdict"),
    [
        (functional([99, 8, 5, 15, 99]), "prescriptive"),  # layer 0 is not needed
        (functional([8, 3, 20, 30, 40]), "descriptive"),
        (functional([8, 8, 8, 30, 40]), "undecided"),
        (functional([8, 8, 8, 8, 8], random=4.0), "undecided"),
    ],
)
def test_verdicts_on_dimension(page, table, verdict):
    judged, told = page.judge_dimension(table, "dimension_mle")
    assert judged == verdict
    assert told["layers"] == 4


@pytest.mark.parametrize(
    ("effect", "other", "massive", "verdicts"),
    [
        (-0.3, 0.0, 2.0, ("prescriptive", "prescriptive")),
        (0.0, 0.0, 2.0, ("descriptive", "descriptive")),
        (-0.3, -0.4, 2.0, ("undecided", "undecided")),  # at random it costs more
        (-0.3, 0.0, 0.0, ("prescriptive", "nothing to say: there are none")),
    ],
)
def test_verdicts_on_what_is_removed(page, effect, other, massive, verdicts):
    pairs = (("leading direction", "random direction"), ("massive tokens", "ordinary tokens"))
    rows = [
        {"model": "a", "first_layer": layer, "what": what, "massive": massive}
        | {"metric": "accuracy", "effect": one, "low": one - 0.01, "high": one + 0.01}
        for layer in range(5)
        for pair in pairs
        for what, one in zip(pair, (effect, other), strict=True)
    ]
    judged = [
        page.judge_removal(pd.DataFrame(rows), functional([8] * 5), *pair)[0] for pair in pairs
    ]
    assert tuple(judged) == verdicts


def test_the_interval_of_a_rank_correlation_covers(page):
    chance, hits = np.random.default_rng(0), 0
    truth = 6 / np.pi * np.arcsin(0.6 / 2)  # of a normal pair with correlation 0.6
    for _ in range(200):
        x = chance.normal(size=16)
        y = 0.6 * x + 0.8 * chance.normal(size=16)
        r, low, high = page.interval_of_rank_correlation(x, y)
        assert r == pytest.approx(stats.spearmanr(x, y).statistic)
        hits += low <= truth <= high
    assert hits >= 180
