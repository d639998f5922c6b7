"""Reruns and patching on models whose positions, masks and features are their own."""

from __future__ import annotations

import pytest
import torch
from plain_families import NAMES, make_inputs, open_plain, run_native

import mm_lens
from mm_lens.model.rerun import Rerun


@pytest.fixture(scope="module", params=NAMES)
def pair(request):
    return open_plain(request.param)


def layers_of(native):
    return native.model.language_model.layers


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_bridge_is_the_native_model(pair, side):
    bridge, native = pair
    inputs = make_inputs(bridge, side=side)
    real = inputs.attention_mask.bool()
    whole = run_native(native, inputs)[real]
    with torch.no_grad():
        assert (bridge(inputs)[real] - whole).abs().max() < 1e-4 * whole.std()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_rerun_from_any_block_is_the_whole_pass(pair, side):
    """Bit for bit with one copy: the same sums; with more, up to rounding."""
    bridge, _ = pair
    inputs = make_inputs(bridge, side=side)
    real = inputs.attention_mask.bool()
    with torch.no_grad():
        whole = bridge(inputs)[real]
    again = Rerun(bridge, inputs, range(bridge.cfg.n_layers))
    other = make_inputs(bridge, rows=(True, True, True), seed=5)
    with torch.no_grad():
        bridge(other)  # what models keep of a pass (rope_deltas) is that of another one now
    assert torch.equal(again.logits[real], whole)
    for layer in range(bridge.cfg.n_layers):
        (once,) = again.run(layer, 1)
        assert torch.equal(once[real], whole), layer
        for copy in again.run(layer, 3):
            assert (copy[real] - whole).abs().max() < 1e-4 * whole.std(), layer


def test_patching_has_the_native_effect_where_embeddings_alone_have_another_sign(pair):
    """From embeddings and a padding mask alone, positions, masks and features would be lost."""
    bridge, native = pair
    clean, corrupted = (make_inputs(bridge, rows=(True,), seed=seed) for seed in (0, 1))
    corrupted.tensors["input_ids"].copy_(clean.input_ids)
    _, cache = bridge.run_with_cache(clean, names_filter=mm_lens.names("resid_pre"))
    _, own = bridge.run_with_cache(corrupted, names_filter=mm_lens.names("resid_pre"))
    base, layer = run_native(native, corrupted)[0, -1], 1
    mask, state = corrupted.layout.mask("visual")[..., None], cache["resid_pre", layer]

    def edit(module, args, kwargs):
        if args:
            return (torch.where(mask, state, args[0]), *args[1:]), kwargs
        hidden = torch.where(mask, state, kwargs["hidden_states"])
        return args, {**kwargs, "hidden_states": hidden}

    handle = layers_of(native)[layer].register_forward_pre_hook(edit, with_kwargs=True)
    effect = run_native(native, corrupted)[0, -1] - base
    handle.remove()
    patched = torch.where(mask, state, own["resid_pre", layer])
    with torch.no_grad(), bridge.bound(corrupted):
        alone = bridge(patched, start_at_layer=layer)[0, -1] - base
    # The two words between which the two ways to rerun differ most.
    effects, others = (x[:, None] - x[None, :] for x in (effect, alone))
    a, b = divmod(int((effects * others).argmin()), len(base))
    if "minimax" in bridge.cfg.model_name:  # plain positions and masks: both are right
        assert torch.allclose(effect, alone, atol=1e-4)
    else:
        assert effects[a, b] * others[a, b] < 0
        assert (effects[a, b] - others[a, b]).abs() > 0.1 * base.std()
    result = mm_lens.patching.get_act_patch_resid_pre(
        bridge,
        corrupted,
        cache,
        lambda logits: logits[:, -1, a] - logits[:, -1, b],
        axis={"visual": corrupted.layout.mask("visual")},
        layers=[layer],
        progress=False,
    )
    found = result.values.flatten() - (base[a] - base[b])
    assert (found - effects[a, b]).abs().max() < 1e-4 * base.std() + 1e-4
