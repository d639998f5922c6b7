"""The core on models whose positions, masks, features and blocks are their own."""

from __future__ import annotations

import pytest
import torch
from made_data import make_data, quick
from opened_families import NAMES, make_inputs, open_family, run_native
from tiny_families import build

import mm_lens
from mm_lens.causal.ablation import ablation_hooks, ablation_table
from mm_lens.layout.groups import Box, group_mask
from mm_lens.looking.attention import attention_map
from mm_lens.model import loading
from mm_lens.model.families import finding
from mm_lens.model.running.rerun import Rerun
from mm_lens.model.streams import main_stream_hooks


@pytest.fixture(scope="module", params=NAMES)
def pair(request):
    return open_family(request.param)


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


# ---- blocks without attention ----


@pytest.fixture(scope="module")
def hybrid():
    return open_family("qwen3.5", "eager")


def metric(logits):
    return logits[:, -1, 20] - logits[:, -1, 31]


@torch.no_grad()
def test_the_main_stream_of_a_block_without_attention(hybrid):
    """What mixes positions in it counts as attention: a plain loop over native modules."""
    bridge, native = hybrid
    inputs = make_inputs(bridge, rows=(True,))
    names = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post"]
    held = {}
    keep = [(name, lambda x, hook: held.__setitem__(hook.name, x.clone())) for name in names]
    bridge.run_with_hooks(inputs, fwd_hooks=[*main_stream_hooks(bridge), *keep])
    layer = layers_of(native)[0]
    state = held[bridge.get_hook_point(names[0]).name]
    mixed = layer.linear_attn(layer.input_layernorm(state))
    want = layer.mlp(layer.post_attention_layernorm(mixed))
    assert (held[bridge.get_hook_point(names[1]).name] - want).abs().max() < 1e-4 * want.std()


def test_profiles_have_the_blocks_that_have_the_hook(hybrid):
    bridge, _ = hybrid
    for hooks, layers in ((["z"], [2, 4]), (["mlp_out"], [1, 2, 3, 4]), (["states"], range(5))):
        table = quick(bridge, make_data(4, ()), hooks=hooks, streams=["residual"]).table
        assert sorted(table["layer"].unique()) == [*layers]


def test_ablation_and_patching_take_blocks_that_have_the_hook(hybrid):
    bridge, native = hybrid
    inputs = make_inputs(bridge, rows=(True,))
    options = {"progress": False, "n_resamples": 10}
    table = ablation_table(bridge, [(inputs, metric)], ["visual"], hook="z", **options)
    assert table["first_layer"].tolist() == [1, 3]
    visual = inputs.layout.mask("visual")[..., None]
    output = layers_of(native)[3].self_attn.o_proj
    handle = output.register_forward_pre_hook(lambda m, args: (args[0].masked_fill(visual, 0),))
    want = metric(run_native(native, inputs)).item()
    handle.remove()
    assert abs(table["value"].iloc[1] - want) < 1e-4
    with pytest.raises(mm_lens.HookError, match="No 2 blocks in a row have the hook point 'z'"):
        ablation_table(bridge, [(inputs, metric)], ["visual"], hook="z", window=2, **options)
    with pytest.raises(mm_lens.HookError, match=r"Block 0 has no hook point 'z'.*have it: 1, 3"):
        ablation_hooks(bridge, inputs, "visual", layers=[0], hook="z")
    _, cache = bridge.run_with_cache(inputs, names_filter=mm_lens.names("z"))
    result = mm_lens.patching.get_act_patch_attn_head_out_by_pos(
        bridge, inputs, cache, metric, axis="modality", progress=False
    )
    assert sorted(result.index_df["layer"].unique()) == [1, 3]


def test_attention_maps_take_blocks_that_have_attention(hybrid):
    bridge, _ = hybrid
    inputs = make_inputs(bridge, rows=(True,))
    maps = attention_map(bridge, inputs)
    assert torch.equal(maps.nan_to_num(), attention_map(bridge, inputs, layers=[1, 3]).nan_to_num())
    with pytest.raises(mm_lens.InputError, match="Block 2 has no attention"):
        attention_map(bridge, inputs, layers=[2])


# ---- what is refused ----


def test_videos_are_refused():
    bridge, _ = open_family("qwen2.5-vl")
    inputs = make_inputs(bridge, rows=(True,))
    tokens = inputs.input_ids.clone()
    tokens[0, -1] = bridge.original_model.config.video_token_id
    rest = {k: v for k, v in inputs.items() if k != "input_ids"}
    for given in ({**rest, "input_ids": tokens}, {**inputs, "pixel_values_videos": tokens}):
        with pytest.raises(mm_lens.InputError, match="prompt holds a video"):
            bridge(given)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Eh?"}]}]
    with pytest.raises(mm_lens.InputError, match="A part of a message is"):
        bridge.prepare(messages)


def test_a_model_that_nobody_declared_opens_without_places():
    """Hook points, profile and patching by modality; a warning says what is missing."""
    model, processor = build("qwen2.5-vl")
    with pytest.warns(mm_lens.MMLensWarning, match="opened from its image token alone"):
        bridge = mm_lens.load(hf_model=model, processor=processor, geometry=False)
    assert not [f for f in bridge.report.findings if f.level == "error"]
    declared, native = open_family("qwen2.5-vl")
    inputs = make_inputs(bridge)
    want = make_inputs(declared)
    for group in ("visual", "text", "text after"):
        assert torch.equal(inputs.layout.mask(group), want.layout.mask(group))
    real = inputs.attention_mask.bool()
    with torch.no_grad():
        assert torch.equal(bridge(inputs)[real], run_native(native, inputs)[real])
    name = "blocks.1.visual.hook_resid_post"
    _, cache = bridge.run_with_cache(inputs, names_filter=name)
    _, same = declared.run_with_cache(want, names_filter=name)
    assert torch.equal(cache[name], same[name])
    tables = [quick(b, make_data(4, ()), batch_size=1).table for b in (bridge, declared)]
    assert tables[0]["value"].tolist() == tables[1]["value"].tolist()
    effects = []
    for b in (bridge, declared):
        one, other = (make_inputs(b, rows=(True,), seed=seed) for seed in (0, 1))
        _, clean = b.run_with_cache(one, names_filter=mm_lens.names("resid_pre"))
        effects += [
            mm_lens.patching.get_act_patch_resid_pre(
                b, other, clean, metric, axis=axis, progress=False
            ).values
            for axis in ("modality", ["text before", "image 0"])
        ]
    assert torch.equal(effects[0], effects[2])
    assert torch.equal(effects[1], effects[3])


def test_what_needs_places_raises_where_there_are_none():
    model, processor = build("qwen2.5-vl")
    with pytest.warns(mm_lens.MMLensWarning, match="geometry=False"):
        bridge = mm_lens.load(hf_model=model, processor=processor, geometry=False, check=False)
    inputs = make_inputs(bridge, rows=(True,))
    layout = inputs.layout
    pixels = torch.ones(layout.image_sizes[0][0], dtype=torch.bool)
    for ask in (
        lambda: group_mask(layout, Box(0, 0, 4, 4)),
        lambda: group_mask(layout, pixels),
        lambda: group_mask(layout, "base"),
        lambda: group_mask(layout, "tile 1"),
        lambda: layout.tokens_at(0, 1, 1),
        *(
            lambda axis=axis: mm_lens.patching.find_regions(layout, axis)
            for axis in ("tile", "patch", "cell", "row band", mm_lens.patching.Grid(2, 2))
        ),
    ):
        with pytest.raises(mm_lens.InputError, match="needs to know where image tokens lie"):
            ask()
    assert group_mask(layout, "image 0").sum() == group_mask(layout, "visual").sum() == 6


def test_a_family_is_named_with_the_way_out(monkeypatch):
    model, processor = build("qwen2.5-vl")
    monkeypatch.setattr(loading, "families", dict)
    monkeypatch.setattr(finding, "families", dict)
    with pytest.raises(mm_lens.MMLensError, match=r"geometry=False"):
        mm_lens.load(hf_model=model, processor=processor)
    monkeypatch.setattr(loading.ArchitectureAdapterFactory, "_adapters", {})
    with pytest.raises(mm_lens.MMLensError, match="TransformerLens has no adapter for Qwen2_5"):
        mm_lens.load(hf_model=model, processor=processor, geometry=False)
