"""Sinks, and attention taken from them, against native attention and plain loops."""

from __future__ import annotations

import pytest
import torch
from conftest import load_tiny
from native_runs import native_states
from tiny import random_image

from mm_lens import HookError, InputError
from mm_lens.heads import find_sinks, redistribution_hooks
from mm_lens.heads.sinks import redistribute

pytestmark = pytest.mark.every_family


@pytest.fixture(scope="module")
def inputs(model):
    return model.prepare(["Eh?", "No!"], [random_image(12, 12, 1), random_image(12, 12, 2)])


def some(inputs, n=3):
    mask = inputs.layout.mask("visual")
    return mask & (mask.cumsum(1) <= n)


def test_sinks_are_tokens_with_high_sink_dimensions(model, native, inputs):
    states, _ = native_states(native, inputs.native, 1)
    height = states.abs() / states.square().mean(-1, keepdim=True).sqrt()
    found = find_sinks(model, inputs, layers=[1], dims=[2, 5], threshold=1.5)
    want = height[..., [2, 5]].amax(-1)
    torch.testing.assert_close(found.height[0], want, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.mask[0], (want >= 1.5) & inputs.layout.mask("visual"))
    assert found.mask.any()
    level = float(height[:, 0].max()) * 0.999
    own = find_sinks(model, inputs, layers=[1], threshold=level)
    assert own.dims == tuple(sorted({int(height[:, 0].max(0).values.argmax())}))
    assert find_sinks(model, inputs, layers=[1], threshold=99).mask.sum() == 0


def test_a_pattern_is_moved_by_the_loop(model, inputs):
    generator = torch.Generator().manual_seed(0)
    pattern = torch.rand(2, 3, 4, 9, generator=generator).double().softmax(-1)
    sinks = torch.zeros(2, 1, 1, 9, dtype=torch.bool)
    sinks[..., 2:4] = True
    others = torch.zeros_like(sinks)
    others[..., 4:7] = True
    got = redistribute(pattern, sinks, others, 0.5, 0.6)
    for b in range(2):
        for h in range(3):
            for q in range(4):
                row = pattern[b, h, q].clone()
                mass, rest = row[2:4].sum(), row[4:7].sum()
                if rest >= 0.6 * (mass + rest):
                    row[4:7] += 0.5 * mass * row[4:7] / rest
                    row[2:4] *= 0.5
                torch.testing.assert_close(got[b, h, q], row)
    assert torch.allclose(got.sum(-1), torch.ones(2, 3, 4).double())
    assert not torch.equal(got, pattern)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_in_a_pass_and_in_what_is_written(family, attention, inputs):
    """Eager and sdpa, with and without a cache: the same words, and not those of before."""
    model = load_tiny(family, attention=attention, check=False)
    sinks = some(inputs)
    hooks = redistribution_hooks(model, inputs, sinks, layers=[1], heads=[0, 2], share=1.0)
    with torch.no_grad():
        _, plain = model.run_with_cache(inputs, names_filter=["blocks.1.attn.hook_pattern"])
        with model.hooks(fwd_hooks=hooks):
            after, edited = model.run_with_cache(
                inputs, names_filter=["blocks.1.attn.hook_pattern"]
            )
        before = model(inputs)
    old, new = (x["blocks.1.attn.hook_pattern"] for x in (plain, edited))
    assert torch.equal(new[:, [1, 3]], old[:, [1, 3]])
    assert torch.equal(new[:, :, :-1], old[:, :, :-1])
    assert new[0, 0, -1, sinks[0]].sum() == 0
    torch.testing.assert_close(new.sum(-1), old.sum(-1))
    assert (after[:, -1] - before[:, -1]).abs().max() > 1e-4
    torch.testing.assert_close(after[:, :-1], before[:, :-1])
    options = {"max_new_tokens": 3, "do_sample": False, "verbose": False, "stop_at_eos": False}
    never = [*range(90, model.cfg.d_vocab)]
    with model.hooks(fwd_hooks=hooks):
        texts = [
            model.generate(
                inputs,
                return_type="tokens",
                use_past_kv_cache=cache,
                suppress_tokens=never,
                **options,
            )
            for cache in (True, False)
        ]
    assert torch.equal(*texts)


def test_what_cannot_be_moved_is_refused(model, inputs):
    none = torch.zeros_like(inputs.layout.newline)
    calls = (
        (none, {}, "No image token is a sink"),
        (inputs.layout.mask("visual"), {}, "All image tokens of a row"),
        (some(inputs), {"heads": [9]}, "no head 9"),
        (some(inputs), {"share": 2}, "share is a number"),
    )
    for sinks, options, told in calls:
        with pytest.raises(InputError, match=told):
            redistribution_hooks(model, inputs, sinks, layers=[1], **options)
    ((name, hook),) = redistribution_hooks(model, inputs, some(inputs), layers=[1])

    def forgets(pattern, hook=None):
        return inner(pattern[..., 1:], hook=hook)

    inner = hook
    with pytest.raises(HookError, match="has forgotten"):
        model.run_with_hooks(inputs, fwd_hooks=[(name, forgets)])
