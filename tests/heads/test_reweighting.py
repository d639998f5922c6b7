"""Reweighted attention against the native model, with a bias in its masks and another scale."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from attribution_cases import Case
from native_writing import native_greedy

from mm_lens import InputError
from mm_lens.heads import reweighting_hooks
from mm_lens.heads.reweighting import reweight


@pytest.fixture(scope="module")
def case():
    return Case("llava-next")


@contextlib.contextmanager
def biased(case, bias, layers, temperature=1.0):
    """The native model with a bias [batch, query, key] of its scores, and these divided."""
    attentions = [case.layers[k].self_attn for k in layers]

    def edit(module, args, kwargs):
        return args, {**kwargs, "attention_mask": kwargs["attention_mask"] + bias[:, None]}

    handles = [x.register_forward_pre_hook(edit, with_kwargs=True) for x in attentions]
    for attention in attentions:
        attention.scaling /= temperature
    yield
    for attention, handle in zip(attentions, handles, strict=True):
        attention.scaling *= temperature
        handle.remove()


@torch.no_grad()
def test_a_factor_is_a_bias_and_a_temperature_a_scale(case):
    layout = case.inputs.layout
    edges = layout.mask("text")[:, :, None] & layout.mask("visual")[:, None]
    with biased(case, math.log(2.5) * edges.double(), [0, 2]):
        want = case.run(case.inputs)[1].logits
    hooks = reweighting_hooks(
        case.model, case.inputs, "visual", factor=2.5, query="text", layers=[0, 2]
    )
    got = case.model.run_with_hooks(case.inputs, fwd_hooks=hooks)
    valid = case.inputs.attention_mask.bool()
    assert (got - want)[valid].abs().max() < 1e-6
    assert (got - case.model(case.inputs))[valid].abs().max() > 1e-3
    edges = layout.mask("all")[:, :, None] & layout.mask("visual")[:, None]
    with biased(case, math.log(0.5) * edges.double(), [1], temperature=1.7):
        want = case.run(case.inputs)[1].logits
    hooks = reweighting_hooks(
        case.model, case.inputs, factor=0.5, temperature=1.7, query="all", layers=[1]
    )
    got = case.model.run_with_hooks(case.inputs, fwd_hooks=hooks)
    assert (got - want)[valid].abs().max() < 1e-6


def test_it_holds_in_what_is_written(case):
    layout, model = case.inputs.layout, case.model

    def under(total):
        more = total - layout.shape[1]
        keys = torch.nn.functional.pad(layout.mask("visual"), (0, more))
        looks = torch.arange(total) >= layout.shape[1] - 1
        return biased(case, math.log(8.0) * (looks[None, :, None] & keys[:, None]).double(), [0, 1])

    _, want = native_greedy(case.native, case.inputs, 2, under)
    with model.hooks(fwd_hooks=reweighting_hooks(model, case.inputs, factor=8.0, layers=[0, 1])):
        found = model.generate(
            case.inputs,
            max_new_tokens=2,
            do_sample=False,
            stop_at_eos=False,
            verbose=False,
            output_logits=True,
            suppress_tokens=[*range(90, model.cfg.d_vocab)],
        )
    assert (torch.stack(found.logits, 1) - want)[..., :90].abs().max() < 1e-5


def test_other_heads_and_empty_rows_stay(case):
    hooks = reweighting_hooks(case.model, case.inputs, factor=3.0, heads=[1], layers=[1])
    seen = []
    hooks.append(("blocks.1.attn.hook_pattern", lambda x, hook: seen.append(x)))
    with torch.no_grad():
        _, cache = case.model.run_with_cache(case.inputs, names_filter="blocks.1.attn.hook_pattern")
        case.model.run_with_hooks(case.inputs, fwd_hooks=hooks)
    before, after = cache["blocks.1.attn.hook_pattern"], seen[0]
    assert torch.equal(before[:, 0], after[:, 0])
    assert torch.equal(before[:, 1, :-1], after[:, 1, :-1])  # the last position alone looks
    assert not torch.equal(before[:, 1, -1], after[:, 1, -1])
    keys = torch.ones(1, 1, 1, 3, dtype=torch.bool)
    assert torch.equal(reweight(torch.zeros(1, 1, 2, 3), keys, 2.0, 0.5), torch.zeros(1, 1, 2, 3))


def test_refusals(case):
    with pytest.raises(InputError, match=r"factor is a number from 0\.001"):
        reweighting_hooks(case.model, case.inputs, factor=0)
    with pytest.raises(InputError, match=r"temperature is a number"):
        reweighting_hooks(case.model, case.inputs, temperature=0)
    with pytest.raises(InputError, match="no position of key='image 3'"):
        reweighting_hooks(case.model, case.inputs, "image 3")
