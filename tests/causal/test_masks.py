"""Knock-out under the masks that models really use: sliding windows, image tokens that see each
other. Against the native model with its own mask edited by hand, in float64."""

from __future__ import annotations

import contextlib

import pytest
import torch
from conftest import load_tiny
from tiny import random_image, tiny_llava_next

import mm_lens
from mm_lens import InputError
from mm_lens.causal.knockout import knockout, knockout_table
from mm_lens.model.running.rerun import Rerun

WINDOW = 5
SLIDING = {"language": {"sliding_window": WINDOW}}


def metric(logits):
    return logits[:, -1, 3] - logits[:, -1, 5]


def both(attention, **options):
    """A bridge and the native model of the same weights, in float64."""
    native = tiny_llava_next(**options)[0].double()
    native.set_attn_implementation("eager")
    model = load_tiny(dtype=torch.float64, attention=attention, check=False, **options)
    return model, native


def native_logits(native, inputs, edges=None, layers=(), seen=None):
    """The native eager model's, with `edges` [query, key] taken out of its mask."""
    handles = []

    def edit(module, args, kwargs):
        mask = kwargs["attention_mask"]
        if seen is not None:
            seen.append(mask > torch.finfo(mask.dtype).min / 2)
        if edges is None:
            return None
        low = torch.finfo(mask.dtype).min
        return args, {**kwargs, "attention_mask": mask.masked_fill(edges, low)}

    for layer in layers:
        attention = native.model.language_model.layers[layer].self_attn
        handles.append(attention.register_forward_pre_hook(edit, with_kwargs=True))
    with torch.no_grad():
        logits = native(**inputs).logits
    for handle in handles:
        handle.remove()
    return logits


def as_given(seen, model):
    """A mask as transformers gives it to the model's kind of attention."""
    if model.config._attn_implementation == "sdpa":
        return seen[:, None]
    low = torch.finfo(torch.float64).min
    return torch.zeros(seen[:, None].shape, dtype=torch.float64).masked_fill(~seen[:, None], low)


@contextlib.contextmanager
def image_sees_itself(native, inputs, model=None):
    """The mask of a model whose image tokens see each other, in a native model or under a bridge.

    Given by a hook on the real decoder, as Gemma 3 and PaliGemma give it: one mask for all blocks.
    """
    visual = inputs.layout.mask("visual")
    n = visual.shape[1]
    seen = torch.ones(n, n, dtype=torch.bool).tril() | (visual[:, :, None] & visual[:, None, :])
    owner = native if model is None else model.original_model

    def give(module, args, kwargs):
        copies = len(kwargs["inputs_embeds"]) // len(seen)
        return args, {**kwargs, "attention_mask": as_given(seen.repeat(copies, 1, 1), owner)}

    handle = owner.get_decoder().register_forward_pre_hook(give, with_kwargs=True)
    yield seen
    handle.remove()


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def sliding(request):
    return both(request.param, **SLIDING)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def plain(request):
    return both(request.param)


@pytest.mark.usefixtures("no_float32")
def test_a_window_is_read(sliding):
    """Edges inside of the window are cut; what it forbids already, or all it shows, is refused."""
    model, native = sliding
    inputs = model.prepare("What is it, then?", random_image(31, 57))
    masks: list[torch.Tensor] = []
    whole = native_logits(native, inputs, layers=[0], seen=masks)
    assert masks[0][0, 0].sum(-1).max() == WINDOW
    n = inputs.input_ids.shape[1]
    with torch.no_grad():
        assert (model(inputs) - whole).abs().max() < 1e-11
    near = torch.zeros(1, n, dtype=torch.bool)
    near[:, n - WINDOW : n - 2] = True
    for keys, cut in ((near, True), (inputs.layout.mask("visual"), False)):
        edges = torch.zeros(n, n, dtype=torch.bool)
        edges[-1] = keys[0]
        if not cut:
            message = r"nothing to knock out in row 0.*sliding window"
            with (
                torch.no_grad(),
                pytest.raises(InputError, match=message),
                knockout(model, inputs, query="last", key=keys),
            ):
                model(inputs)
            with pytest.raises(InputError, match=message):
                knockout_table(model, [(inputs, metric)], [(keys, "last")], progress=False)
            continue
        want = native_logits(native, inputs, edges, layers=[1, 2])
        with torch.no_grad(), knockout(model, inputs, query="last", key=keys, layers=[1, 2]):
            got = model(inputs)
        assert (got - want).abs().max() < 1e-11
        assert (want - whole)[:, -1].abs().max() > 1e-2
        table = knockout_table(
            model, [(inputs, metric)], [(keys, "last")], window=2, progress=False, n_resamples=10
        )
        assert abs(table["value"].iloc[1] - metric(want).item()) < 1e-4


def test_a_query_whose_window_is_cut_has_nothing_left(sliding):
    """It sees far fewer keys than all before it: those were once taken to be left."""
    model, _ = sliding
    inputs = model.prepare("What is it, then?", random_image(31, 57))
    n = inputs.input_ids.shape[1]
    window = torch.zeros(1, n, dtype=torch.bool)
    window[:, n - WINDOW :] = True
    with (
        torch.no_grad(),
        pytest.raises(InputError, match=rf"Position {n - 1} of row 0 would be left without"),
        knockout(model, inputs, query="last", key=window),
    ):
        model(inputs)
    with torch.no_grad(), knockout(model, inputs, query="last", key=window, keep_self=True):
        assert model(inputs).isfinite().all()


@pytest.mark.usefixtures("no_float32")
def test_image_tokens_that_see_each_other_lose_later_keys_too(plain):
    model, native = plain
    inputs = model.prepare("What is it?", random_image(31, 57))
    visual = inputs.layout.mask("visual")
    edges = visual[0][:, None] & visual[0][None, :] & ~torch.eye(visual.shape[1], dtype=torch.bool)
    with image_sees_itself(native, inputs) as seen:
        whole = native_logits(native, inputs)
        want = native_logits(native, inputs, edges, layers=[1])
    assert (seen[0] & edges).triu(1).any()
    options = {"query": "visual", "key": "visual", "layers": [1], "keep_self": True}
    with torch.no_grad(), image_sees_itself(native, inputs, model):
        assert (model(inputs) - whole).abs().max() < 1e-11
        with knockout(model, inputs, **options):
            got = model(inputs)
        if model.attention == "eager":
            with knockout(model, inputs, **options):
                _, cache = model.run_with_cache(inputs, names_filter="blocks.1.attn.hook_pattern")
            assert (cache["blocks.1.attn.hook_pattern"][:, :, edges] == 0).all()
    assert (got - want).abs().max() < 1e-11
    assert (want - whole).abs().max() > 1e-2
    first = visual & (visual.cumsum(1) == 1)
    later = visual & ~first
    with torch.no_grad(), knockout(model, inputs, query=first, key=later):
        with pytest.raises(InputError, match="nothing to knock out"):  # under a causal mask
            model(inputs)
        with image_sees_itself(native, inputs, model):
            model(inputs)


def test_reruns_keep_the_mask_of_the_whole_pass(plain):
    """A rerun has no tokens and pixels to make the mask of."""
    model, _ = plain
    owner = model.original_model
    inputs = model.prepare(["What is it?", "Why?"], [random_image(31, 57), random_image(20, 20)])
    calls = []

    def once(module, args, kwargs):
        """A mask that depends on what only the whole pass knows."""
        calls.append(1)
        return (
            None if len(calls) > 1 else (args, {**kwargs, "attention_mask": as_given(seen, owner)})
        )

    visual, real = inputs.layout.mask("visual"), inputs.layout.mask("all")[:, None]
    n = visual.shape[1]
    seen = torch.ones(n, n, dtype=torch.bool).tril() | (visual[:, :, None] & visual[:, None, :])
    seen = (seen & real) | torch.eye(n, dtype=torch.bool)
    decoder = owner.get_decoder()
    handle = decoder.register_forward_pre_hook(once, with_kwargs=True)
    try:
        rerun = Rerun(model, inputs, [1])
        assert rerun.difference(1, 3) < 1e-6
    finally:
        handle.remove()
    assert torch.equal(rerun.masks[2][:, 0], seen)


def test_corrupt_hooks_that_draw_anew_are_found_out():
    model = load_tiny(check=False)
    clean, corrupted = (model.prepare("Eh?", random_image(8, 12, seed)) for seed in (0, 1))
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names("resid_post"))
    options = {"layers": [1], "progress": False}

    def draw(rows, hook):
        return rows + torch.randn(rows.shape)

    noise = torch.randn(1, 1, 24, generator=torch.Generator().manual_seed(0))
    for name, hook, fits in (
        ("blocks.1.visual.hook_resid_pre", draw, False),
        ("blocks.1.visual.hook_resid_pre", lambda rows, hook: rows + noise, True),
        ("blocks.0.visual.hook_resid_pre", draw, True),  # drawn once: below what is run again
    ):
        found = contextlib.nullcontext() if fits else pytest.raises(InputError, match="draw anew")
        with found:
            mm_lens.patching.get_act_patch_resid_post(
                model, corrupted, cache, metric, corrupt_hooks=[(name, hook)], **options
            )
