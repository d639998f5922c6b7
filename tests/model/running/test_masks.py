"""Which keys queries see: read and hidden where attention is computed, on many families."""

from __future__ import annotations

import contextlib

import pytest
import torch
from opened_families import NAMES, build_native, make_inputs, run_native, share_family

from mm_lens import InputError, MMLensWarning
from mm_lens.causal.knockout import knockout, knockout_table
from mm_lens.layout.groups import group_mask
from mm_lens.model.running.masks import read_masks

WITH_ATTENTION = tuple(name for name in NAMES if name != "qwen3.5")


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def attention(request):
    return request.param


@pytest.fixture(scope="module", params=NAMES)
def pair(request, attention):
    return share_family(request.param, attention)


def layers_of(native):
    return native.model.language_model.layers


def native_patterns(name, inputs):
    """Attention weights of every block of the native eager model; None without attention."""
    native, _ = build_native(name, "eager")
    held = {}
    for i, layer in enumerate(layers_of(native)):
        if hasattr(layer, "self_attn"):
            layer.self_attn.register_forward_hook(
                lambda m, a, out, i=i: held.__setitem__(i, out[1])
            )
    run_native(native, inputs)
    return held


@pytest.mark.parametrize("side", ["left", "right"])
def test_masks_are_where_native_weights_are(pair, side):
    """Sliding windows, image tokens that see each other, blocks of keys that were chosen."""
    bridge, _ = pair
    inputs = make_inputs(bridge, side=side)
    with torch.no_grad(), read_masks(bridge) as masks:
        bridge(inputs)
    patterns = native_patterns(bridge.cfg.model_name, inputs)
    assert masks.keys() == patterns.keys()
    real = inputs.attention_mask.bool()
    for layer, pattern in patterns.items():
        seen = masks[layer].expand(pattern.shape)
        queries = real[:, None].expand(pattern.shape[:3])
        assert torch.equal(seen[queries], (pattern > 0)[queries]), layer
    first = next(iter(masks.values()))
    alike = all(torch.equal(mask.any(1), first.any(1)) for mask in masks.values())
    assert alike != (bridge.cfg.model_name in ("gemma3", "minimax-m3"))


@contextlib.contextmanager
def native_without(native, edges, layers):
    """The native eager model with edges [batch, query, key] taken out of its masks."""

    def edit(module, args, kwargs):
        mask = kwargs["attention_mask"]
        low = torch.finfo(mask.dtype).min
        return args, {**kwargs, "attention_mask": mask.masked_fill(edges[:, None], low)}

    handles = [
        layers_of(native)[k].self_attn.register_forward_pre_hook(edit, with_kwargs=True)
        for k in layers
    ]
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", [n for n in WITH_ATTENTION if n != "minimax-m3"])
def test_knockout_is_a_native_model_with_that_mask(name, attention, side):
    bridge, _ = share_family(name, attention)
    native, _ = build_native(name, "eager")
    inputs = make_inputs(bridge, rows=(True, True), side=side)
    real = inputs.attention_mask.bool()
    whole = run_native(native, inputs)[real]
    for query, key, layers, keep in (
        ("text after", "visual", [0, 1, 2], False),
        ("last", "visual", [1], False),
        ("visual", "visual", [0, 2], True),
    ):
        edges = query_by_key(inputs.layout, query, key, keep)
        with native_without(native, edges, layers):
            want = run_native(native, inputs)[real]
        options = {"query": query, "key": key, "layers": layers, "keep_self": keep}
        with torch.no_grad(), knockout(bridge, inputs, **options):
            got = bridge(inputs)[real]
        assert (got - want).abs().max() < 1e-4 * whole.std()
        assert (want - whole).abs().max() > 1e-2 * whole.std()


def query_by_key(layout, query, key, keep_self):

    queries, keys = group_mask(layout, query), group_mask(layout, key)
    edges = queries[:, :, None] & keys[:, None, :]
    return edges & ~torch.eye(layout.shape[1], dtype=torch.bool) if keep_self else edges


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_text_that_sees_no_image_does_not_know_it(name, attention):
    """Nothing of an image passes to text that is cut off from it, whatever it shows.

    Where blocks of keys are chosen first, the image must not move the choice either. Bit for bit,
    but for experts, whose sums depend on which other tokens they are given.
    """
    bridge, _ = share_family(name, attention)
    inputs, other = (make_inputs(bridge, rows=(True, True), seed=seed) for seed in (0, 1))
    text = inputs.layout.mask("text")
    with torch.no_grad():
        assert not torch.equal(bridge(inputs)[text], bridge(other)[text])
        with knockout(bridge, inputs, query="text", key="visual"):
            one, two = bridge(inputs)[text], bridge(other)[text]
    assert (one - two).abs().max() <= (1e-5 * one.std() if "minimax" in name else 0)
    with torch.no_grad(), knockout(bridge, inputs, query="text", key="visual", layers=[0, 1]):
        assert not torch.equal(bridge(inputs)[text], bridge(other)[text])


def test_a_choice_of_keys_is_made_without_those_that_are_hidden():
    """What a query no longer sees leaves its place to other keys."""
    bridge, _ = share_family("minimax-m3")
    inputs = make_inputs(bridge, rows=(True,), before=30, after=(30,))
    last = inputs.layout.shape[1] - 1
    with torch.no_grad(), read_masks(bridge) as masks:
        bridge(inputs)
    seen = masks[1][0, :, last]
    assert seen.sum(-1).max() < last  # sparse indeed
    chosen = seen[0].nonzero().flatten()
    hidden = torch.zeros(1, last + 1, dtype=torch.bool)
    hidden[0, chosen[chosen < last // 4 * 4]] = True  # the block of its own it always keeps
    assert hidden.any()
    options = {"query": "last", "key": hidden, "layers": [1]}
    with torch.no_grad(), read_masks(bridge) as cut, knockout(bridge, inputs, **options):
        bridge(inputs)
    now = cut[1].expand(1, bridge.cfg.n_heads, -1, -1)[0, 0, last]
    assert not now[hidden[0]].any()
    assert (now & ~seen[0]).any()


def test_a_key_that_lost_the_choice_is_no_cut_in_a_table():
    """Hidden from who would not have chosen it: nothing changes, and the table says where."""
    bridge, _ = share_family("minimax-m3")
    inputs = make_inputs(bridge, rows=(True,), before=30, after=(30,))
    last = inputs.layout.shape[1] - 1
    with torch.no_grad(), read_masks(bridge) as masks:
        plain = bridge(inputs)
    lost = ~masks[1][0, :, last].any(0)[None]
    assert lost.any()
    with torch.no_grad(), knockout(bridge, inputs, query="last", key=lost, layers=[1]):
        assert torch.equal(bridge(inputs), plain)
    sample = (inputs, lambda logits: logits[:, -1, 20] - logits[:, -1, 31])
    edges = {"lost": (lost, "last")}
    with pytest.warns(MMLensWarning, match=r"cut in no row.* by the windows of layers 1[:,]"):
        table = knockout_table(bridge, [sample], edges, progress=False)
    effects = table.set_index("first_layer")["effect"]
    assert effects[1] == 0
    assert effects[0] != 0  # a dense block


def test_blocks_without_attention_are_named():
    bridge, _ = share_family("qwen3.5")
    inputs = make_inputs(bridge, rows=(True,))
    with (
        pytest.raises(InputError, match="Block 0 has no attention"),
        knockout(bridge, inputs, query="last", key="visual", layers=[0, 1]),
    ):
        pass
    sample = (inputs, lambda logits: logits[:, -1, 20] - logits[:, -1, 31])
    with pytest.warns(MMLensWarning, match="Blocks 0, 2 have no attention"):
        table = knockout_table(bridge, [sample], [("visual", "last")], progress=False)
    assert table["first_layer"].tolist() == [1, 3]
    for row in table.itertuples():
        layers = [row.first_layer]
        with torch.no_grad(), knockout(bridge, inputs, query="last", key="visual", layers=layers):
            assert abs(sample[1](bridge(inputs)).item() - row.value) < 1e-4
