"""Windows and pruning: what is cut is what the recipe says, by the native model's own mask."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from conftest import FAMILIES
from native_runs import run_native
from native_writing import edges_cut
from scipy.stats import binomtest

from mm_lens.recipes.flow import cut_windows, prune
from mm_lens.recipes.recipe import summarise_changes


def probability(question, logits):
    return float(question.answers.probability(logits)[0])


def test_windows_are_those_of_the_native_mask(model, asked):
    native = FAMILIES["llava-next"]()[0]
    native.set_attn_implementation("eager")
    found = cut_windows(model, asked[:2], 0)
    question = asked[1]
    plain = probability(question, run_native(native, question.inputs.native))
    rows = found.table[found.table["id"] == "q1"]
    for name, query in (("question", question.question), ("last", None)):
        if query is None:
            query = torch.zeros_like(question.question)
            query[0, -1] = True
        edges = query[:, :, None] & question.visual[:, None]
        for start in range(3):
            with edges_cut(native, edges, [start]):
                after = probability(question, run_native(native, question.inputs.native))
            row = rows[(rows["cut"] == f"image from {name}") & (rows["first_block"] == start)]
            want = (plain - after) / plain
            assert row["relative_fall"].item() == pytest.approx(want, abs=1e-4)


def test_pruning_hides_the_least_attended_half(model, asked):
    found = prune(model, asked[:3], 0)
    assert set(found.table.columns) == {"id", "full", "pruned", "at random"}
    assert found.table[["full", "pruned"]].isin([0.0, 1.0]).all().all()
    change = found.table["pruned"] - found.table["full"]
    assert found.value == pytest.approx(change.mean())
    if not change.any():  # 0 of 3: Clopper and Pearson
        assert (found.low, found.high) == pytest.approx((-0.7076, 0.7076), abs=1e-4)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_changes_that_are_all_alike_have_an_exact_bound(asked, value):
    """Clopper and Pearson, of 0 among 4 pictures; as far away as can be."""
    exact = binomtest(0, 4).proportion_ci().high
    found = summarise_changes([value] * 6, asked, pd.DataFrame(), 0)
    assert found.low == pytest.approx(value - exact * (value + 1))
    assert found.high == pytest.approx(value + exact * (1 - value))
    mixed = summarise_changes([0.0, 1.0, 0.0, 1.0, 0.0, 1.0], asked, pd.DataFrame(), 0)
    assert mixed.value == 0.5
