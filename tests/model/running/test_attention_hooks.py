"""Edits of scores and patterns, also where attention is left to the native model."""

from __future__ import annotations

import pytest
import torch
from opened_families import make_inputs, open_family, run_native

import mm_lens

NATIVE = ("qwen2.5-vl", "qwen3-vl", "glm-4v", "minimax-m3")
"""TransformerLens leaves their attention to transformers."""


@pytest.fixture(scope="module", params=[*NATIVE, "gemma3"])
def pair(request):
    return open_family(request.param, attention="eager")


def attention_of(native, layer):
    return native.model.language_model.layers[layer].self_attn


def native_with_pattern(native, inputs, layer, change):
    """Logits of the native model with one block's pattern changed: the sum over values by hand."""
    attention, held = attention_of(native, layer), {}
    handles = [
        attention.register_forward_hook(lambda m, a, out: held.update(pattern=out[1])),
        attention.v_proj.register_forward_hook(lambda m, a, out: held.update(values=out)),
    ]
    run_native(native, inputs)
    for handle in handles:
        handle.remove()
    pattern = change(held["pattern"])
    heads, values = pattern.shape[1], held["values"]
    batch, n = values.shape[:2]
    values = values.view(batch, n, -1, attention.head_dim).transpose(1, 2)
    values = values.repeat_interleave(heads // values.shape[1], 1)
    z = (pattern @ values).transpose(1, 2).reshape(batch, n, -1)
    handle = attention.o_proj.register_forward_pre_hook(lambda m, args: (z,))
    logits = run_native(native, inputs)
    handle.remove()
    return held["pattern"], logits


def close(got, want, inputs):
    real = inputs.attention_mask.bool()
    assert (got - want)[real].abs().max() < 1e-4 * want[real].std()


def test_patterns_are_read_and_edited(pair):
    bridge, native = pair
    inputs = make_inputs(bridge)
    plain = run_native(native, inputs)
    for layer in range(bridge.cfg.n_layers):
        name = f"blocks.{layer}.attn.hook_pattern"
        pattern, want = native_with_pattern(native, inputs, layer, lambda x: x.flip(1))
        logits, cache = bridge.run_with_cache(inputs, names_filter=name)
        real = inputs.attention_mask.bool()[:, None].expand(pattern.shape[:3])
        assert (cache[name] - pattern)[real].abs().max() < 1e-5
        close(logits, plain, inputs)
        with torch.no_grad():
            got = bridge.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook: x.flip(1))])
        close(got, want, inputs)
        assert (got - plain)[inputs.attention_mask.bool()].abs().max() > 1e-2 * plain.std()


def test_scores_are_before_the_softmax(pair):
    """Scores give the pattern; what is added to those of a key multiplies its weight."""
    bridge, native = pair
    inputs = make_inputs(bridge)
    keys = inputs.layout.mask("visual")[:, None, None, :]

    def more(pattern):
        changed = torch.where(keys, 3 * pattern, pattern)
        return changed / changed.sum(-1, keepdim=True)

    def add(scores, hook):
        return torch.where(keys, scores + torch.tensor(3.0).log(), scores)

    layer = bridge.cfg.n_layers - 1
    names = [f"blocks.{layer}.attn.hook_{x}" for x in ("attn_scores", "pattern")]
    _, cache = bridge.run_with_cache(inputs, names_filter=names)
    scores, pattern = (cache[name] for name in names)
    assert (scores.softmax(-1) - pattern).abs().max() < 1e-6
    _, want = native_with_pattern(native, inputs, layer, more)
    with torch.no_grad():
        got = bridge.run_with_hooks(inputs, fwd_hooks=[(names[0], add)])
    close(got, want, inputs)


def test_gradients_reach_patterns(pair):
    """The gradient that a backward hook gets is the change of the output with the pattern."""
    bridge, _ = pair
    if "minimax" in bridge.cfg.model_name:
        pytest.skip("chooses keys and experts, so that the output jumps")
    inputs, held = make_inputs(bridge, rows=(True,)), []
    name = "blocks.1.attn.hook_pattern"
    bridge.reset_hooks()
    with bridge.hooks(bwd_hooks=[(name, lambda g, hook: held.append(g))]):
        bridge(inputs)[0, -1, 20].backward()
    (gradient,) = held
    assert gradient.shape[1] == bridge.cfg.n_heads
    step = 1e-3 * gradient / gradient.norm()

    def value(sign):
        with torch.no_grad():
            hooks = [(name, lambda x, hook: x + sign * step)]
            return bridge.run_with_hooks(inputs, fwd_hooks=hooks)[0, -1, 20]

    slope = (value(1) - value(-1)) / 2e-3
    assert abs(slope - gradient.norm()) < 2e-2 * gradient.norm()


def test_under_sdpa_they_raise():
    bridge, _ = open_family("qwen2.5-vl")
    inputs = make_inputs(bridge)
    for point in ("pattern", "attn_scores"):
        name = f"blocks.0.attn.hook_{point}"
        with pytest.raises(mm_lens.HookError, match='attention="eager"'):
            bridge.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook: x)])


def test_uninstalled_they_are_transformer_lens_again():
    bridge, _ = open_family("qwen2.5-vl", attention="eager")
    inputs = make_inputs(bridge)
    plain = bridge.uninstall()
    assert "forward" not in plain.blocks[0].attn.__dict__
    tensors = inputs.native
    tokens = tensors.pop("input_ids")
    name = "blocks.0.attn.hook_pattern"
    with torch.no_grad(), pytest.warns(UserWarning, match="discarded"):
        plain.run_with_hooks(tokens, fwd_hooks=[(name, lambda x, hook: x.flip(1))], **tensors)
