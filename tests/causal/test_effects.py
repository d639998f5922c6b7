"""Which layers a table of effects has, and its intervals."""

from __future__ import annotations

import warnings

import pytest
from causal_cases import BATCH, OTHER
from native_runs import metric

import mm_lens
from mm_lens import InputError
from mm_lens.causal import patching
from mm_lens.causal.knockout import knockout_table


@pytest.mark.every_family
def test_layers_are_checked(model):
    corrupted, clean = (model.prepare(*x) for x in (BATCH, OTHER))
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names("resid_pre"))
    for layers, complaint in (
        ([], "names no layer"),
        ([99], "no layer 99: there are 3"),
        ([-4], "no layer -4"),
        ([2, -1], r"named twice in layers=\[2, -1\] of 3"),
    ):
        with pytest.raises(InputError, match=complaint):
            patching.get_act_patch_resid_pre(model, corrupted, cache, metric, layers=layers)


def test_few_samples_give_no_interval(model):
    """Not one of zero width: three rows are too few, four are enough."""
    for rows, enough in (([0, 1, 0], False), ([0, 1, 0, 1], True)):
        inputs = model.prepare(*([part[i] for i in rows] for part in BATCH))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            table = knockout_table(
                model, [(inputs, metric)], [("visual", "last")], window=3, progress=False
            )
        found = table[["low", "high", "p_value"]].notna().all(axis=None)
        assert (found, table["n"][0]) == (enough, len(rows))
        assert table["effect"].notna().all()
        assert any("give no interval" in str(w.message) for w in caught) != enough
