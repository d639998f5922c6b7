"""Rollout and relevance by plain loops over the native model's attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution_cases import metric
from conftest import load_tiny

from mm_lens import InputError
from mm_lens.attribution.flow import attention_attribution, attention_rollout, relevance

pytestmark = pytest.mark.every_family


def test_rollout(case):
    inputs = case.inputs
    with torch.no_grad():
        _, out = case.run(inputs, output_attentions=True)
    size = inputs.layout.shape[1]
    mask = inputs.layout.mask("visual")
    got = attention_rollout(case.model, inputs)
    for row in range(2):
        total = torch.eye(size).double()
        for attention in out.attentions:
            step = 0.5 * attention[row].mean(0) + 0.5 * torch.eye(size)
            total = (step / step.sum(1, keepdim=True)) @ total
        here = mask[row]
        assert (got.values[row][here] - total[-1][here]).abs().max() < 1e-6
        assert got.values[row][~here].isnan().all()
    mine = attention_rollout(case.model, inputs, "all", query="text").values
    assert (mine.nansum(1) - 1).abs().max() < 1e-5


def test_relevance(case):
    inputs = case.inputs
    _, out = case.run(inputs, output_attentions=True)
    gradients = torch.autograd.grad(metric(out.logits).sum(), out.attentions)
    mask = inputs.layout.mask("visual")
    got = relevance(case.model, inputs, metric)
    for row in range(2):
        total = torch.eye(inputs.layout.shape[1]).double()
        for attention, gradient in zip(out.attentions, gradients, strict=True):
            total = total + (gradient[row] * attention[row]).clamp(min=0).mean(0) @ total
        want = total[-1][mask[row]].detach()
        assert (got.values[row][mask[row]] - want).abs().max() < 1e-5 * want.max()
    assert torch.allclose(got.metric, metric(out.logits).float())


def test_attention_of_a_block_adds_up_to_what_it_brings(case):
    """Without a pattern heads write nothing: the native attention then gives its bias alone."""
    got = attention_attribution(case.model, case.inputs, metric, "all", layer=1, steps=8)

    def nothing(module, args):
        return (torch.zeros_like(args[0]),)

    with torch.no_grad():
        whole = metric(case.run(case.inputs)[1].logits)
        handle = case.layers[1].self_attn.o_proj.register_forward_pre_hook(nothing)
        without = metric(case.run(case.inputs)[1].logits)
        handle.remove()
    assert torch.allclose(got.metric, whole.float())
    found = got.values.double().nansum(1)
    assert (found - (whole - without)).abs().max() < 1e-4 * (whole - without).abs().max()
    parts = [
        attention_attribution(case.model, case.inputs, metric, "all", layer=1, steps=8, query=group)
        for group in ("visual", "text")
    ]
    both = parts[0].values + parts[1].values
    assert torch.allclose(both, got.values, atol=1e-6, equal_nan=True)


def test_attention_of_the_last_block_is_a_derivative_of_the_native_model(case):
    """Two points on the path, by hand: the native pattern of one block is scaled with gradients."""
    n = len(case.layers) - 1
    got = attention_attribution(case.model, case.one, metric, "all", layer=n, steps=2)
    with torch.no_grad():
        pattern = case.run(case.one, output_attentions=True)[1].attentions[n][0]
    held = {}
    attention = case.layers[n].self_attn
    groups = pattern.shape[0] * attention.head_dim // attention.v_proj.out_features
    attention_v = attention.v_proj.register_forward_hook(
        lambda m, a, out: held.update(v=out.detach())
    )
    case.run(case.one)
    attention_v.remove()
    values = held["v"][0].view(-1, pattern.shape[0] // groups, attention.head_dim)
    values = values.repeat_interleave(groups, 1)  # heads that share their values
    points, weights = np.polynomial.legendre.leggauss(2)
    total = torch.zeros_like(pattern)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        leaf = (float(point) * pattern).requires_grad_(True)
        z = torch.einsum("hqk,khd->qhd", leaf, values).reshape(1, len(values), -1)
        handle = attention.o_proj.register_forward_pre_hook(lambda m, a, z=z: (z,))
        (gradient,) = torch.autograd.grad(metric(case.run(case.one)[1].logits).sum(), leaf)
        handle.remove()
        total += float(weight) * gradient
    want = (pattern * total).sum((0, 1))
    assert (got.values[0].double() - want)[case.one.layout.mask("all")[0]].abs().max() < 1e-6 * (
        want.abs().max()
    )


def test_patterns_under_sdpa_are_those_of_eager(case, family):
    sdpa = load_tiny(family, dtype=torch.float64, check=False)
    inputs = sdpa.prepare(["Eh?", "No!"], [row[0] for row in case.inputs.images])
    for method in (attention_rollout, lambda *a: relevance(*a, metric)):
        got, want = method(sdpa, inputs), method(case.model, case.inputs)
        assert torch.allclose(got.values, want.values, rtol=1e-6, atol=0, equal_nan=True)


def test_refusals(case, family):
    with pytest.raises(InputError, match="no position of query='image 3'"):
        attention_rollout(case.model, case.one, query="image 3")
    with pytest.raises(InputError, match="no position of where='image 3'"):
        relevance(case.model, case.one, metric, "image 3")
