"""Caches: views out of the full stream, what is missing, slices of the batch."""

from __future__ import annotations

import pytest
import torch
from conftest import load_tiny
from tiny import random_image

import mm_lens
from mm_lens.model.hooks import PARENTS

pytestmark = pytest.mark.every_family


@pytest.mark.parametrize("short", PARENTS)
def test_the_full_stream_gives_its_views(model, batch, short):
    """Bit-equal to hooks on the views, whichever of its names the full stream was cached under."""
    views = mm_lens.names(short, ["visual", "text"])
    _, want = model.run_with_cache(batch, names_filter=views)
    point = model.hook_dict[f"blocks.1.{PARENTS[short]}"].name
    tail = PARENTS[short].rpartition(".")[2]
    filters = [
        mm_lens.names(short),
        point,
        [f"blocks.1.{PARENTS[short]}"],
        lambda name: name.endswith(tail),
    ]
    for names_filter in filters:
        _, cache = model.run_with_cache(batch, names_filter=names_filter)
        for group in ("visual", "text"):
            assert f"blocks.1.{group}.hook_{short}" not in cache.cache_dict
            assert torch.equal(cache[short, 1, group], want[short, 1, group])
            assert torch.equal(cache[f"blocks.1.{group}.hook_{short}"], want[short, 1, group])
            assert torch.equal(cache[f"{group}_{short}", 1], want[short, 1, group])


def test_views_of_gradients_and_without_batch_dimension(model):
    inputs = model.prepare("What is it?", random_image(31, 57))
    view = "blocks.1.visual.hook_resid_post_grad"
    options = {"return_type": "loss", "incl_bwd": True}
    _, want = model.run_with_cache(
        inputs, names_filter=mm_lens.names("resid_post", "visual"), **options
    )
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names("resid_post"), **options)
    assert want[view].any()
    assert torch.equal(cache[view], want[view])
    names = mm_lens.names("resid_post")
    _, cache = model.run_with_cache(inputs, names_filter=names, remove_batch_dim=True)
    assert torch.equal(cache["resid_post", 1, "visual"], want["resid_post", 1, "visual"][0])
    _, cache = model.run_with_cache(inputs, names_filter=names)
    stacked = cache.stack_activation("resid_post", sublayer_type="visual")
    assert torch.equal(stacked[1], want["resid_post", 1, "visual"])


def test_what_is_missing_is_said(model, batch):
    names = mm_lens.names("resid_post", layers=[0, 2])
    _, cache = model.run_with_cache(batch, names_filter=names)
    with pytest.raises(KeyError, match=r"holds 2 activations \(blocks.0,2.hook_resid_post\)"):
        cache["resid_post", 1]
    with pytest.raises(KeyError, match=r"Did you mean blocks.2.hook_resid_post\?"):
        cache["resid_pots", 2]
    with pytest.raises(KeyError, match=r"blocks.1.visual.hook_resid_post is not in this cache"):
        cache["resid_post", 1, "visual"]
    text = model.prepare("No picture here.")
    _, cache = model.run_with_cache(text, names_filter=mm_lens.names("resid_post"))
    with pytest.raises(KeyError, match="holds no visual token"):
        cache["resid_post", 1, "visual"]


def test_a_cache_shows_itself_shortly(model, batch):
    _, cache = model.run_with_cache(batch)
    assert len(repr(cache)) < 2000
    assert "3 row(s)" in repr(cache)
    assert "blocks.0–2.hook_resid_post" in cache._repr_html_()


@pytest.mark.parametrize("index", [slice(1, 3), [2, 0], 1, (0, 2)])
def test_a_slice_of_the_batch_keeps_its_layout(model, batch, index):
    names = mm_lens.names("resid_post", ["visual", "text"])
    _, cache = model.run_with_cache(batch, names_filter=mm_lens.names("resid_post"))
    _, views = model.run_with_cache(batch, names_filter=names)
    rows = {"slice(1, 3, None)": [1, 2], "[2, 0]": [2, 0], "1": [1], "(0, 2)": [0, 1]}[str(index)]
    sliced = cache.apply_slice_to_batch_dim(index)
    assert isinstance(sliced, mm_lens.LayoutCache)
    assert sliced.layout.shape[0] == len(rows)
    assert torch.equal(sliced.inputs["input_ids"], batch.input_ids[rows])
    for group in ("visual", "text"):
        mask = batch.layout.mask(group)[rows]
        assert torch.equal(sliced.layout.mask(group), mask)
        if not mask.any():
            continue
        got, want = sliced["resid_post", 1, group], views["resid_post", 1, group][rows]
        got = got if sliced.has_batch_dim else got[None]
        n = got.shape[1]
        assert torch.equal(got, want[:, :n])
        assert not want[:, n:].any()
    assert sliced.inputs["pixel_values"].shape[0] == sum(len(batch.images[row]) for row in rows)


def test_default_caches_hold_the_full_stream_only(model, batch):
    """Under `start_at_layer` nobody knows the views, and nobody asked for them."""
    _, cache = model.run_with_cache(batch)
    assert not any(".visual." in name or ".text." in name for name in cache)
    state = cache["resid_pre", 1]
    _, rest = model.run_with_cache(state, start_at_layer=1)
    assert "blocks.1.hook_resid_post" in rest.cache_dict
    kept, hooks, _ = model.get_caching_hooks()
    with model.hooks(fwd_hooks=hooks):
        model(batch)
    assert torch.equal(kept["blocks.1.hook_out"], cache["resid_post", 1])
    held = model.add_caching_hooks()
    model(batch)
    model.reset_hooks()
    assert held.keys() == kept.keys()


def test_a_dead_hook_that_is_named_leaves_none_attached(fresh):
    dead = "vision_projector.hook_projected"
    with pytest.raises(mm_lens.errors.HookError, match="never fires"):
        fresh.add_caching_hooks(["blocks.0.hook_in", dead])
    assert not any(point.fwd_hooks for point in fresh.hook_dict.values())


def test_residual_tools_are_refused_where_blocks_do_not_add_up(family):
    model = load_tiny(family)
    inputs = model.prepare("Eh", random_image(8, 12))
    _, cache = model.run_with_cache(inputs)
    cache.decompose_resid()
    model.report.add("error", "The model scales what blocks write.", "residual")
    for tool in ("decompose_resid", "stack_head_results", "get_full_resid_decomposition"):
        with pytest.raises(mm_lens.MMLensError, match=rf"cache.{tool}: refused.*scales"):
            getattr(cache, tool)()
    cache.accumulated_resid()
