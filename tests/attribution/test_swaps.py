"""Estimates of patching against the slope of the native model, and beside true patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution_cases import metric
from tiny import random_image

import mm_lens
from mm_lens import InputError, patching
from mm_lens.attribution.swaps import attribution_patch
from mm_lens.errors import HookError
from mm_lens.layout.matching import match_positions

pytestmark = pytest.mark.every_family


@pytest.fixture(scope="module")
def pair(case):
    clean = case.model.prepare(["Eh?", "No!"], [random_image(20, 12, k) for k in (5, 6)])
    _, cache = case.model.run_with_cache(clean, names_filter=mm_lens.names(["resid_pre", "z"]))
    return case, clean, cache


def native_change(case, clean, corrupted, layer, mask):
    """Clean minus corrupted states where the region is, across layouts."""
    with torch.no_grad():
        own, _ = case.run(corrupted, layer)
        there, _ = case.run(clean, layer)
    match = match_positions(corrupted.layout, clean.layout)
    change = torch.zeros_like(own)
    for row, position in mask.nonzero().tolist():
        change[row, position] = there[row, match[row, position]] - own[row, position]
    return own, change


def test_the_first_order_is_the_slope_of_the_native_model(pair):
    case, clean, cache = pair
    corrupted, step = case.inputs, 1e-3
    assert (
        clean.layout.shape != corrupted.layout.shape or "omni" in type(case.native).__name__.lower()
    )
    got = attribution_patch(case.model, corrupted, cache, metric, axis="modality", layers=[1, 2])
    assert got.layers == (1, 2)
    for k, layer in enumerate(got.layers):
        for r, region in enumerate(got.regions):
            mask = corrupted.layout.mask(region)
            _, change = native_change(case, clean, corrupted, layer, mask)
            with torch.no_grad():
                up, down = (
                    metric(case.run(corrupted, layer, lambda x, c=s * change: x + c)[1].logits)
                    for s in (step, -step)
                )
            slope = (up - down) / (2 * step)
            assert (got.effect[k, r, 0] - slope).abs().max() < 1e-2 * slope.abs().max()


def test_heads_and_the_comparison_with_true_patches(pair):
    case, _, cache = pair
    options = {"axis": ["visual", "text"], "layers": [0, 2], "heads": True}
    got = attribution_patch(case.model, case.inputs, cache, metric, "z", **options)
    true = patching.generic_activation_patch(
        case.model, case.inputs, cache, metric, "z", progress=False, **options
    )
    x, y = got.effect.numpy(), true.effect().numpy()
    assert x.shape == y.shape
    table = got.compare(true).set_index("layer")
    assert table.loc[-1, "n"] == x.size
    assert table.loc[2, "correlation"] == pytest.approx(
        np.corrcoef(x[1].ravel(), y[1].ravel())[0, 1]
    )
    assert table.loc[-1, "worst_error"] == pytest.approx(np.abs(x - y).max())
    assert table.loc[0, "largest_effect"] == pytest.approx(np.abs(y[0]).max())
    assert len(got.table) == x.size
    with pytest.raises(InputError, match="another sweep"):
        attribution_patch(
            case.model, case.inputs, cache, metric, "z", **{**options, "layers": [0]}
        ).compare(true)


def test_integrated_estimates_are_nearer_where_the_line_is_long(pair):
    """All positions patched at the embeddings: integrated, the estimate tends to the effect."""
    case, _, _ = pair
    one, other = (case.model.prepare("Eh?", random_image(12, 12, k)) for k in (7, 8))
    _, cache = case.model.run_with_cache(other, names_filter=mm_lens.names("resid_pre"))
    options = {"axis": ["all"], "layers": [0]}
    true = patching.get_act_patch_resid_pre(
        case.model, one, cache, metric, progress=False, **options
    ).effect()
    first, many = (
        attribution_patch(case.model, one, cache, metric, steps=n, **options).effect[..., 0, :]
        for n in (1, 64)
    )
    assert (many - true).abs().max() < 0.1 * (first - true).abs().max()


def test_refusals(pair):
    case, _, cache = pair
    with pytest.raises(HookError, match="MLP alone"):
        attribution_patch(case.model, case.inputs, cache, metric, "resid_mid")
    with pytest.raises(HookError, match="does not hold"):
        attribution_patch(case.model, case.inputs, cache, metric, "mlp_out")
    with pytest.raises(InputError, match="no gradient"):
        attribution_patch(case.model, case.inputs, cache, lambda x: metric(x).detach())
