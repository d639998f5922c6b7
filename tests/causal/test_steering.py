"""Steering by closed forms; in passes and in `generate` against native hooks: test_rewriting.py."""

from __future__ import annotations

import pytest
import torch
from causal_cases import BATCH
from native_runs import layers_of, run_native

from mm_lens import InputError
from mm_lens.causal.steering import steer, steering_hooks
from mm_lens.errors import HookError

pytestmark = pytest.mark.every_family


def test_states_by_hand():
    states, direction = torch.tensor([[1.0, 2.0], [-3.0, 0.5]]), torch.tensor([0.0, 2.0])
    assert steer(states, direction, "add", 0.5).tolist() == [[1, 3], [-3, 1.5]]
    assert steer(states, direction, "project_out", 0.5).tolist() == [[1, 0], [-3, 0]]
    assert steer(states, direction, "clamp", 7.0).tolist() == [[1, 7], [-3, 7]]
    half = steer(states.half(), direction, "add", 0.5)
    assert half.dtype == torch.float16


def test_a_pass_equals_a_native_hook(model, native):
    """Each layer has its own direction; at the heads' output it is of their width."""
    inputs = model.prepare(*BATCH)
    mask = inputs.layout.mask("visual")[..., None]
    generator = torch.Generator().manual_seed(0)
    vectors = {k: torch.randn(model.cfg.d_model, generator=generator) for k in (0, 2)}
    handles = [
        layers_of(native)[k].register_forward_hook(
            lambda m, a, out, k=k: (
                (torch.where(mask, out[0] - vectors[k], out[0]), *out[1:])
                if isinstance(out, tuple)
                else torch.where(mask, out - vectors[k], out)
            )
        )
        for k in vectors
    ]
    want = run_native(native, inputs)
    for handle in handles:
        handle.remove()
    hooks = steering_hooks(model, inputs, vectors, layers=[0, -1], strength=-1.0)
    valid = inputs.attention_mask.bool()
    with torch.no_grad():
        got = model.run_with_hooks(inputs, fwd_hooks=hooks)
        assert (got - want)[valid].abs().max() < 1e-4
        z = torch.randn(model.cfg.n_heads, model.cfg.d_head, generator=generator)
        hooks = steering_hooks(model, inputs, z, "last", layers=[1], hook="z", how="clamp")
        _, cache = model.run_with_cache(inputs, names_filter="blocks.1.attn.hook_z")
        seen = []
        hooks.append(("blocks.1.attn.hook_z", lambda x, hook: seen.append(x)))
        model.run_with_hooks(inputs, fwd_hooks=hooks)
    before, after = cache["blocks.1.attn.hook_z"].flatten(2), seen[0].flatten(2)
    unit = z.flatten() / z.norm()
    last = inputs.layout.mask("all") & (inputs.layout.mask("all").flip(1).cumsum(1).flip(1) == 1)
    assert (after[last] @ unit - 1).abs().max() < 1e-5
    assert torch.equal(after[~last], before[~last])


def test_length_is_kept_where_that_is_asked(model):
    inputs = model.prepare(*BATCH)
    mask = inputs.layout.mask("visual")
    vector = torch.linspace(-3, 3, model.cfg.d_model)
    options = {"layers": [1], "strength": 2.0}
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, names_filter="blocks.1.hook_resid_post")
        seen = []
        hooks = steering_hooks(model, inputs, vector, **options, keep_length=True)
        hooks.append(("blocks.1.hook_resid_post", lambda x, hook: seen.append(x)))
        model.run_with_hooks(inputs, fwd_hooks=hooks)
    before = cache["blocks.1.hook_resid_post"][mask]
    want = before + 2 * vector
    want = want / want.norm(dim=-1, keepdim=True) * before.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(seen[0][mask], want, rtol=1e-4, atol=1e-5)


def test_refusals(model):
    inputs = model.prepare(*BATCH)
    good = torch.ones(model.cfg.d_model)
    for change, error, complaint in (
        ({"direction": {1: good}}, InputError, "no direction of layer 0"),
        ({"direction": good * 0}, InputError, "zero or not finite"),
        ({"direction": good * torch.inf}, InputError, "zero or not finite"),
        ({"hook": "nothing"}, HookError, "No hook point"),
        ({"group": "image 3"}, InputError, "no position of 'image 3'"),
    ):
        options = {"direction": good, "group": "visual", "layers": [0]} | change
        with pytest.raises(error, match=complaint):
            steering_hooks(model, inputs, **options)
    hooks = steering_hooks(model, inputs, good[:-1], layers=[0])
    with pytest.raises(InputError, match="from the same hook point"):
        model.run_with_hooks(inputs, fwd_hooks=hooks)
    hooks = steering_hooks(model, inputs, good, layers=[0])
    with pytest.raises(InputError, match="The steering was made for other inputs"):
        model.run_with_hooks(model.prepare("Eh?", BATCH[1][0]), fwd_hooks=hooks)
