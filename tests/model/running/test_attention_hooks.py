"""Edits of scores and patterns, also where attention is left to the native model."""

from __future__ import annotations

import pytest
import torch
from opened_families import make_inputs, open_family, run_native
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import mm_lens
from mm_lens.causal.knockout import knockout
from mm_lens.looking.attention import attention_map
from mm_lens.model.running.attention_hooks import trying_hooks

NATIVE = ("qwen2.5-vl", "qwen3-vl", "glm-4v", "minimax-m3")
"""TransformerLens leaves their attention to transformers."""


FAMILIES = [*NATIVE, "gemma3"]
OPENED = [(name, attention) for attention in ("eager", "sdpa") for name in FAMILIES]


@pytest.fixture(scope="module", params=OPENED, ids="-".join)
def pair(request):
    """A bridge, eager or sdpa, and the native model, whose patterns are eager."""
    name, attention = request.param
    bridge, native = open_family(name, attention)
    native.set_attn_implementation("eager")
    return bridge, native


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


@pytest.fixture(scope="module", params=["gemma3", "minimax-m3", "qwen3.5"])
def fast(request):
    return open_family(request.param)[0]


def patterns_of(bridge, tail="pattern"):
    return [n for n in bridge.hook_dict if n.startswith("blocks") and n.endswith(f"hook_{tail}")]


def test_reading_leaves_sdpa_alone(fast):
    """Every number of the model is, to the last bit, as if nobody had asked."""
    inputs = make_inputs(fast)
    with torch.no_grad():
        plain, states = fast.run_with_cache(inputs, names_filter=mm_lens.names("resid_post"))
        logits, cache = fast.run_with_cache(inputs)
        given = [(name, lambda x, hook: x) for name in patterns_of(fast)]
        assert torch.equal(plain, fast.run_with_hooks(inputs, fwd_hooks=given))
    assert torch.equal(logits, plain)
    assert all(torch.equal(cache[name], x) for name, x in states.items())
    assert patterns_of(fast)
    assert set(patterns_of(fast)) <= cache.keys()


def mirror_in_place(x, hook):
    x.copy_(x.flip(1))


def test_an_edit_forces_one_block_to_eager(fast):
    """Returned or in place, of scores or pattern; and an edit that is none costs rounding only."""
    inputs, real = make_inputs(fast), make_inputs(fast).attention_mask.bool()
    name = patterns_of(fast)[-1]
    scores = name.replace("pattern", "attn_scores")

    def run(where, edit):
        with torch.no_grad():
            return fast.run_with_hooks(inputs, fwd_hooks=[(where, edit)])[real]

    plain = fast(inputs)[real]
    same = run(name, lambda x, hook: x.clone())
    assert (same - plain).abs().max() < 1e-4 * plain.std()
    mirrored = run(name, lambda x, hook: x.flip(1))
    assert (mirrored - plain).abs().max() > 1e-3 * plain.std()
    assert torch.equal(mirrored, run(name, mirror_in_place))
    assert torch.equal(mirrored, run(scores, lambda x, hook: x.flip(1)))
    with torch.inference_mode():
        hooks = [(name, mirror_in_place)]
        assert torch.equal(mirrored, fast.run_with_hooks(inputs, fwd_hooks=hooks)[real])


def test_patterns_of_a_decoding_step(fast):
    """Of one query: heads that share a key come to sdpa where queries else stand."""
    inputs = make_inputs(fast, rows=(True,))
    name, held = patterns_of(fast)[0], []
    options = {"max_new_tokens": 2, "do_sample": False, "stop_at_eos": False, "verbose": False}
    with fast.hooks(fwd_hooks=[(name, lambda x, hook: held.append(x))]):
        tokens = fast.generate(inputs, **options)
    with torch.no_grad(), fast.bound(inputs):
        _, cache = fast.run_with_cache(tokens[:, :-1], names_filter=name)
    assert held[1].shape[:3] == (1, fast.cfg.n_heads, 1)
    seen = cache[name][:, :, -1:, -held[1].shape[-1] :]  # a window keeps only so many keys
    assert (held[1] - seen).abs().max() < 1e-5

    def mirrored(pattern, hook):
        return pattern.flip(1) if pattern.shape[2] == 1 else None

    plain = fast.generate(inputs, output_logits=True, **options).logits[1]
    with fast.hooks(fwd_hooks=[(name, mirrored)]):
        edited = fast.generate(inputs, output_logits=True, **options).logits[1]
    with fast.hooks(fwd_hooks=[(name, lambda x, hook: x.clone())]):
        same = fast.generate(inputs, output_logits=True, **options).logits[1]
    assert (same - plain).abs().max() < 1e-4 * plain.std()
    assert (edited - plain).abs().max() > 1e-3 * plain.std()


def test_a_knock_out_shows_in_the_pattern(fast):
    inputs = make_inputs(fast, rows=(True,))
    name = patterns_of(fast)[0]
    layer = int(name.split(".")[1])
    with torch.no_grad(), knockout(fast, inputs, query="last", key="visual", layers=[layer]):
        _, cache = fast.run_with_cache(inputs, names_filter=name)
    last, visual = cache[name][0, :, -1], inputs.layout.mask("visual")[0]
    assert not last[:, visual].any()
    assert torch.allclose(last.sum(-1), torch.ones(len(last)))


def test_attention_that_shows_no_scores_raises(monkeypatch):
    """Not silently: by code of its own."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", of_its_own)
    bridge, _ = open_family("qwen2.5-vl")
    inputs, name = make_inputs(bridge), "blocks.0.attn.hook_pattern"
    bridge(inputs)
    with pytest.raises(mm_lens.HookError, match=r'shows no scores.*attention="eager"'):
        bridge.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook: None)])
    with pytest.raises(mm_lens.InputError, match=r'shows no scores.*attention="eager"'):
        attention_map(bridge, inputs)
    with trying_hooks(bridge):  # so that the check at load finds them dead
        bridge.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook: None)])


def of_its_own(module, query, key, value, attention_mask, scaling=None, **options):
    """Attention of a kernel: no softmax, no call of `scaled_dot_product_attention`."""
    n = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(n, 1) for x in (key, value))
    weight = (query @ key.transpose(-1, -2) * scaling).exp().tril()
    z = weight / weight.sum(-1, keepdim=True) @ value
    return z.transpose(1, 2).contiguous(), None


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
