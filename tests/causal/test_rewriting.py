"""Edits while the model writes, against the native model: greedy without a cache, masks and hooks
of its own."""

from __future__ import annotations

import pytest
import torch
from native_writing import block_edited, edges_cut, native_greedy
from opened_families import make_inputs, open_family

import mm_lens
from mm_lens import InputError
from mm_lens.causal.ablation import ablation_hooks
from mm_lens.causal.knockout import knockout
from mm_lens.causal.rewriting import write_without
from mm_lens.causal.steering import steering_hooks

STEPS = 3
OPTIONS = {"max_new_tokens": STEPS, "do_sample": False, "stop_at_eos": False, "verbose": False}
FAMILIES = ("llava-next-mistral", "qwen2.5-vl", "gemma3")


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    """Bridge and native model in float32, and two rows padded on the left, both with an image."""
    bridge, native = open_family(request.param)
    native.set_attn_implementation("eager")
    inputs = make_inputs(bridge, rows=(True, True), side="left")
    assert not inputs.attention_mask.all()
    OPTIONS["suppress_tokens"] = [*range(90, bridge.cfg.d_vocab)]
    return bridge, native, inputs


def grown(mask, total, value):
    return torch.nn.functional.pad(mask, (0, total - mask.shape[1]), value=value)


def edges_of(inputs, query, key, total, keep_self):
    """The definition: who is who in a text of `total` positions."""
    layout = inputs.layout
    last = torch.zeros_like(layout.mask("all"))
    last[:, -1] = True  # padded on the left
    none = torch.zeros_like(last)
    queries = {
        "all": grown(layout.mask("all"), total, True),
        "text": grown(layout.mask("text"), total, True),
        "last": grown(last, total, True),
        "written": grown(none, total, True),
    }[query]
    keys = grown(layout.mask("visual") if isinstance(key, str) else key, total, False)
    edges = queries[:, :, None] & keys[:, None, :]
    return edges & ~torch.eye(total, dtype=torch.bool) if keep_self else edges


def native_without(native, inputs, query, key, keep_self=False, layers=(0, 1, 2), heads=None):
    def under(total):
        edges = edges_of(inputs, query, key, total, keep_self)
        return edges_cut(native, edges, layers, heads)

    return native_greedy(native, inputs, STEPS, under)


def same(found, want):
    tokens, logits = want
    got = torch.stack(found.logits, 1)
    assert (got - logits).abs().max() < 2e-4 * logits.std()
    assert torch.equal(found.sequences[:, -STEPS:], tokens)


@pytest.mark.parametrize("cache", [True, False])
def test_a_knock_out_holds_while_it_writes(pair, cache):
    """Queries of the prompt, of what is written, of both; some blocks or all."""
    bridge, native, inputs = pair
    _, plain = native_greedy(native, inputs, STEPS)
    visual = inputs.layout.mask("visual")
    half = visual & (visual.cumsum(1) % 2 == 1)
    for query, key, keep, layers, heads in (
        ("all", half, True, [0, 1, 2], None),
        ("text", "visual", False, [1], [0, 3]),
        ("last", "visual", False, [0, 1, 2], None),
        ("written", half, False, [0, 2], [1, 2, 3]),
    ):
        want = native_without(native, inputs, query, key, keep, layers, heads)
        options = {"query": query, "key": key, "keep_self": keep, "layers": layers, "heads": heads}
        with knockout(bridge, inputs, **options):
            found = bridge.generate(inputs, output_logits=True, use_past_kv_cache=cache, **OPTIONS)
        same(found, want)
        assert (want[1] - plain).abs().max() > 1e-2 * plain.std()
        if query == "written":
            assert (want[1] - plain)[:, 0].abs().max() < 1e-4  # the first comes of the prompt


@pytest.mark.parametrize("pair", FAMILIES[:2], indirect=True)
def test_edits_of_image_and_text_hold_while_it_writes(pair):
    """Zeros, means and steering; the image's rows in the prompt, the text's in each step too."""
    bridge, native, inputs = pair
    d, layer = bridge.cfg.d_model, 1
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(d, generator=generator)
    unit = vector / vector.norm()
    changes = {
        "zero": lambda x: x * 0,
        "mean": lambda x: x * 0 + vector,
        "add": lambda x: x + 2.0 * vector,
        "project_out": lambda x: x - (x @ unit)[..., None] * unit,
        "clamp": lambda x: x + (2.0 - x @ unit)[..., None] * unit,
        "modality hook": lambda x: x.flip(-1),
    }
    for number, (how, change) in enumerate(changes.items()):
        group = ("visual", "text")[number % 2]
        mask = inputs.layout.mask(group)

        def edit(states, mask=mask, change=change, group=group):
            here = grown(mask, states.shape[1], group == "text")[..., None]
            return torch.where(here, change(states), states)

        want = native_greedy(
            native, inputs, STEPS, lambda total, edit=edit: block_edited(native, layer, edit)
        )
        if how in ("zero", "mean"):
            means = {layer: vector} if how == "mean" else None
            hooks = ablation_hooks(bridge, inputs, group, layers=[layer], how=how, means=means)
        elif how == "modality hook":
            hooks = [(f"blocks.{layer}.{group}.hook_resid_post", lambda x, hook: x.flip(-1))]
        else:
            options = {"layers": [layer], "how": how, "strength": 2.0}
            hooks = steering_hooks(bridge, inputs, vector, group, **options)
        for cache in (True, False) if how in ("zero", "add") else (True,):
            with bridge.hooks(fwd_hooks=hooks):
                found = bridge.generate(
                    inputs, output_logits=True, use_past_kv_cache=cache, **OPTIONS
                )
            same(found, want)


def test_beams_and_samples_of_a_row_are_of_that_row(pair):
    """Rows of unequal padding: what is made of one lies side by side, not one copy after the
    other."""
    bridge, _native, inputs = pair
    visual = inputs.layout.mask("visual")
    half = visual & (visual.cumsum(1) % 2 == 1)
    _, donor = bridge.run_with_cache(
        make_inputs(bridge, rows=(True, True), side="left", seed=5),
        names_filter=mm_lens.names("resid_post"),
    )
    hooks = ablation_hooks(bridge, inputs, "visual", layers=[1], how="resample", donor=donor)

    def run(rows, **options):
        given = rows if rows is inputs else inputs
        torch.manual_seed(0)
        options = {**OPTIONS, "output_logits": True, **options}
        with knockout(bridge, given, query="text", key=half), bridge.hooks(fwd_hooks=hooks):
            return bridge.generate(given, **options)

    greedy = run(inputs)
    # With one beam's worth of choice each row is its own greedy text, whatever stands beside it.
    sampled = run(inputs, do_sample=True, top_k=1, num_return_sequences=3)
    rows = torch.arange(2).repeat_interleave(3)
    assert torch.equal(sampled.sequences, greedy.sequences[rows])
    first = torch.stack(greedy.logits, 1)
    assert (torch.stack(sampled.logits, 1) - first[rows]).abs().max() < 1e-4 * first.std()
    beams = run(inputs, num_beams=3)
    without_cache = run(inputs, num_beams=3, use_past_kv_cache=False)
    assert torch.equal(beams.sequences, without_cache.sequences)
    # The first step of each beam is the row's own.
    assert (beams.logits[0] - first[rows, 0]).abs().max() < 1e-4 * first.std()


def test_what_it_would_write_without(pair):
    bridge, native, inputs = pair
    found = write_without(bridge, inputs, "visual", **OPTIONS)
    plain, _ = native_greedy(native, inputs, STEPS)
    without, _ = native_without(native, inputs, "all", "visual", True)
    assert torch.equal(found.plain_tokens, plain)
    assert torch.equal(found.tokens, without)
    assert found.without[0] == bridge.tokenizer.decode(without[0], skip_special_tokens=True)
    differs = (plain != without).any(1).tolist()
    table = found.table
    assert table["changed"].tolist() == differs
    for row, first in enumerate(table["first_difference"]):
        steps = (plain[row] != without[row]).nonzero()
        assert first == (int(steps[0]) if len(steps) else -1)
    one, two = (
        write_without(bridge, inputs, "visual", seed=k, do_sample=True, max_new_tokens=6)
        for k in (1, 1)
    )
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.plain_tokens, two.plain_tokens)
    with pytest.raises(InputError, match="leave out output_logits="):
        write_without(bridge, inputs, output_logits=True)


def test_refusals_while_it_writes(pair):
    """Nothing cut, other inputs, and a step whose prompt nobody saw."""
    bridge, _, inputs = pair
    other = make_inputs(bridge, rows=(True, True), side="left", after=(9, 2))
    hooks = ablation_hooks(bridge, inputs, "text", layers=[1])
    with bridge.hooks(fwd_hooks=hooks), pytest.raises(InputError, match="made for other inputs"):
        bridge.generate(other, **OPTIONS)
    with (
        pytest.raises(InputError, match="nothing to knock out"),
        knockout(bridge, inputs, query="visual", key="written"),
    ):
        bridge.generate(inputs, **OPTIONS)
    with torch.no_grad():
        _, cache = bridge(inputs, return_type="logits_and_cache", use_cache=True)
        step = inputs.input_ids[:, :1]
        bridge.context._passes.prompts.clear()
        with (
            bridge.hooks(fwd_hooks=hooks),
            pytest.raises(mm_lens.HookError, match="which prompt this decoding step goes on from"),
        ):
            bridge(step, past_key_values=cache)
