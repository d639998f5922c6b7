"""Directions and counts of dimensions, against numpy on states of the native model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from native_runs import native_states

from mm_lens import InputError
from mm_lens.replacing import fit_subspaces
from mm_lens.replacing.subspaces import find_massive


def test_directions_and_counts_equal_numpy(model, native, others):
    found = fit_subspaces(model, others, layers=[1]).layers[1]
    masks = [inputs.layout.mask("visual") for inputs in others]
    states = [native_states(native, x, 1)[0][mask] for x, mask in zip(others, masks, strict=True)]
    x = torch.cat(states).double().numpy()
    assert found.n == len(x)
    assert np.abs(found.mean.numpy() - x.mean(0)).max() < 1e-5
    _, values, rows = np.linalg.svd(x - x.mean(0), full_matrices=False)
    along = np.abs((found.directions.numpy() * rows).sum(1))
    assert along[:3] == pytest.approx(1, abs=1e-3)
    shares = values**2 / (values**2).sum()
    assert found.counts["participation_ratio"] == pytest.approx(1 / (shares**2).sum(), rel=1e-3)
    singular = values / values.sum()
    rank = np.exp(-(singular * np.log(singular)).sum())
    assert found.counts["effective_rank"] == pytest.approx(rank, rel=1e-3)
    assert found.counts["dimension_mle"] > 0


def test_massive_tokens_are_found_row_by_row():
    rows = torch.ones(3, 9, 4)
    rows[0, 5] = 100
    rows[1] = 100  # all of a size: none stands out
    rows[2, 4:] = 0  # padding
    rows[2, 1] = 9
    assert find_massive(rows).nonzero().tolist() == [[0, 5], [2, 1]]


def test_what_has_no_directions_is_refused(model, others):
    with pytest.raises(InputError, match="no visual tokens"):
        fit_subspaces(model, [model.prepare("None.", None)])
    found = fit_subspaces(model, others[:2], "text")
    assert "participation_ratio" in repr(found)
    assert len(found.table) == 3
