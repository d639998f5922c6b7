"""Rollout and relevance by plain loops over the native model's attention."""

from __future__ import annotations

import pytest
import torch
from attribution_cases import metric
from conftest import load_tiny

from mm_lens import InputError
from mm_lens.attribution.flow import attention_rollout, relevance

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
