"""Functional dimension: projections against native hooks, and the smallest k of made tables."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from made_questions import ask, run_replaced
from native_runs import run_native

from mm_lens import InputError
from mm_lens.replacing import dimension_table, fit_subspaces, functional_dimension
from mm_lens.replacing.dimension import project

pytestmark = pytest.mark.filterwarnings("ignore:.*sample.s. give no interval")


@pytest.mark.every_family
def test_a_projection_equals_native_hooks(model, native, samples, others):
    subspaces = fit_subspaces(model, others, layers=[1, 2])
    table = dimension_table(
        model, samples[:2], subspaces, sizes=[0, 2, 24], progress=False
    ).set_index(["directions", "first_layer", "k", "metric"])
    for which in ("principal", "random"):  # all directions are all there is
        assert table.loc[which].xs(24, level="k")["effect"].abs().max() < 1e-4
    here = subspaces.layers[1]
    mean, kept = here.mean.float(), here.directions[:2].float()

    def edit(x, y):  # what enters block 1 is what leaves block 0
        return mean + (y - mean) @ kept.T @ kept

    found = []
    for inputs, answers in samples[:2]:
        logits = run_replaced(native, inputs, {0: edit})
        found.append(float(logits[0, -1].log_softmax(-1)[answers.tokens[answers.right[0]]]))
        assert (logits - run_native(native, inputs)).abs().max() > 1e-3
    want = sum(found) / 2
    assert table.loc[("principal", 1, 2, "log_probability"), "value"] == pytest.approx(
        want, abs=1e-4
    )
    both = [table.loc[(which, 1, 0, "kl"), "value"] for which in ("principal", "random")]
    assert both[0] == pytest.approx(both[1], abs=1e-6)  # without a direction both are the mean


def test_projecting_keeps_what_lies_along():
    mean = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    rows = torch.tensor([[[2.0, 5.0, 9.0]]])
    got = project(mean, torch.eye(3, dtype=torch.float64)[:2])(rows)
    assert got.tolist() == [[[2.0, 5.0, 1.0]]]


def made_table(effects, half=0.02):
    rows = [
        {"first_layer": 0, "directions": "principal", "k": k, "metric": "accuracy"}
        | {"baseline": 0.9, "effect": effect, "low": effect - half, "high": effect + half}
        for k, effect in effects.items()
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("effects", "found"),
    [
        # 95 % of 0.9: 0.045 may be lost.
        ({0: -0.5, 1: -0.3, 2: -0.06, 4: -0.04, 8: -0.01, 16: 0.0}, (4, 2, 8)),
        ({0: 0.0, 1: 0.0}, (0, 0, 0)),
        # From where on it stays: one k that happens to do is not enough.
        ({0: -0.5, 1: 0.0, 2: -0.4, 4: 0.0}, (4, 4, 4)),
        ({1: -0.5, 2: -0.4}, (math.nan, math.nan, math.nan)),
    ],
)
def test_the_smallest_k_from_which_on_enough_is_kept(effects, found):
    (row,) = functional_dimension(made_table(effects)).itertuples()
    assert [row.k, row.low, row.high] == pytest.approx(found, nan_ok=True)


def test_what_is_no_dimension_is_refused(model, others):
    subspaces = fit_subspaces(model, others[:2], layers=[1])
    samples = ask(model, [0])
    for options, complaint in (
        ({"sizes": [25]}, "from 0 to 24"),
        ({"layers": [0]}, "no directions of layer 0"),
    ):
        with pytest.raises(InputError, match=complaint):
            dimension_table(model, samples, subspaces, progress=False, **options)
    with pytest.raises(InputError, match="no column 'k'"):
        functional_dimension(made_table({1: 0.0}).drop(columns="k"))
    table = dimension_table(model, samples, subspaces, progress=False)
    assert [*table["k"].unique()] == [0, 1, 2, 4, 8, 16, 24]
    beside = functional_dimension(table, subspaces)
    assert {"dimension_mle", "effective_rank"} <= {*beside.columns}
