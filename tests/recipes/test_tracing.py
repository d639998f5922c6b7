"""What is put back into spoilt runs, by plain hooks on the native model."""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import FAMILIES
from native_runs import layers_of, native_states, run_native
from scipy.stats import rankdata
from transformer_lens.utilities.statistics import derive_generator

from mm_lens.recipes.pairs import find_pairs
from mm_lens.recipes.tracing import compare_heads, trace


@pytest.fixture(scope="module")
def plain():
    return FAMILIES["llava-next"]()[0]


def first(out):
    return out[0] if isinstance(out, tuple) else out


@contextmanager
def replaced(module, mask, value, before=False):
    """Input or output of a module with `value` at the positions of `mask`."""

    def edit(x):
        return torch.where(mask[..., None], value, x)

    if before:

        def hook(module, args, kwargs):
            if args:
                return (edit(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    else:

        def hook(module, args, out):
            return (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out)

        handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def outputs(native, inputs, find):
    held = []
    handles = [
        find(layer).register_forward_hook(lambda m, a, out: held.append(first(out)))
        for layer in layers_of(native)
    ]
    run_native(native, inputs)
    for handle in handles:
        handle.remove()
    return held


def probability(question, logits):
    return float(question.answers.probability(logits)[0])


def test_windows_put_back_are_those_of_native_hooks(model, asked, plain):
    few = asked[:2]
    found = trace(model, few, 0)
    generator = derive_generator(0, "noise")
    pair = find_pairs(model, few, 0)[0]
    visual, inputs = pair.clean.visual, pair.clean.inputs.native
    states, _ = native_states(plain, inputs, 0)
    drawn = torch.randn(int(visual.sum()), states.shape[-1], generator=generator)
    noisy = states.clone()
    noisy[visual] += 3 * states[visual].std() * drawn
    layers = layers_of(plain)
    clean = {
        name: outputs(plain, inputs, lambda layer, name=name: getattr(layer, name))
        for name in ("self_attn", "mlp")
    }
    start = 1  # of windows of one block
    for name, question in (("noise", pair.clean), ("pair", pair.other)):
        with ExitStack() as stack:
            if name == "noise":
                stack.enter_context(replaced(layers[0], visual, noisy, before=True))
            low = probability(question, run_native(plain, question.inputs.native))
            for part, values in clean.items():
                module = getattr(layers[start], part)
                stack.enter_context(replaced(module, visual, values[start]))
            after = probability(question, run_native(plain, question.inputs.native))
        rows = found.table[(found.table["question"] == 0) & (found.table["spoilt_by"] == name)]
        row = rows[rows["first_block"] == start]
        assert row["spoilt"].item() == pytest.approx(low, abs=1e-5)
        assert row["rise"].item() == pytest.approx(after - low, abs=1e-5)
        assert abs(after - low) > 1e-5
    rise = found.table[found.table["spoilt_by"] == "noise"].set_index(["question", "first_block"])
    want = [rise.loc[(q, 0), "rise"] - rise.loc[(q, 1), "rise"] for q in (0, 1)]
    assert found.value == pytest.approx(np.mean(want))
    assert found.note.startswith("by pairs: ")


def test_effects_of_heads_are_those_of_native_hooks(model, samples, asked, plain):
    found = compare_heads(model, asked[:2], 0)
    assert math.isnan(found.value)
    assert "column kind" in found.note
    pair = find_pairs(model, asked[:2], 0)[0]
    layer, head, d = 1, 2, model.cfg.d_head
    held = []
    out = layers_of(plain)[layer].self_attn.o_proj
    handle = out.register_forward_pre_hook(lambda m, args: held.append(args[0]))
    run_native(plain, pair.clean.inputs.native)
    handle.remove()

    def put(module, args):
        x = args[0].clone()
        x[..., head * d : (head + 1) * d] = held[0][..., head * d : (head + 1) * d]
        return (x,)

    metric = pair.other.answers.logit_diff
    before = float(metric(run_native(plain, pair.other.inputs.native))[0])
    handle = out.register_forward_pre_hook(put)
    after = float(metric(run_native(plain, pair.other.inputs.native))[0])
    handle.remove()
    table = found.table
    row = table[(table["id"] == "q0") & (table["layer"] == layer) & (table["head"] == head)]
    assert row["effect"].item() == pytest.approx(after - before, abs=1e-5)


def test_heads_are_compared_between_kinds(model, asked):
    kinds = [
        replace(q, sample=replace(q.sample, about={"kind": "ab"[k // 2]}))
        for k, q in enumerate(asked[:4])
    ]
    found = compare_heads(model, kinds, 0)
    means = found.table.groupby(["kind", "layer", "head"])["effect"].mean()
    a, b = (rankdata(means.loc[kind]) for kind in "ab")
    assert found.value == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert found.low <= found.high
