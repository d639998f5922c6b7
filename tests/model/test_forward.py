"""Which forward an input is taken from: placeholders, embeddings, blocks alone."""

from __future__ import annotations

import pytest
import torch
from keyword_inputs import keywords, n_image

import mm_lens
from mm_lens import HookError, InputError

pytestmark = pytest.mark.every_family


def test_placeholder_count_must_match(model, one):
    n, first = n_image(one), int(one.layout.positions("visual")[0, 0])
    cut = torch.cat([one.input_ids[:, :first], one.input_ids[:, first + 3 :]], dim=1)
    with pytest.raises(InputError, match=rf"{n - 3} image placeholders.*make {n} tokens"):
        model(cut, pixel_values=one.pixel_values, image_sizes=one.image_sizes)
    words = model.prepare("Only words.")
    with pytest.raises(InputError, match=rf"0 image placeholders.*make {n} tokens"):
        model(words.input_ids, pixel_values=one.pixel_values, image_sizes=one.image_sizes)


def test_mappings_are_taken(model, one):
    want = model(one)
    assert torch.equal(model(**one), want)
    assert torch.equal(model(one.tensors), want)
    assert torch.equal(model(one.input_ids, **keywords(one)), want)
    _, cache = model.run_with_cache(one.tensors, names_filter=mm_lens.names("q", "visual"))
    assert cache["q", 0, "visual"].shape[1] == n_image(one)


def test_embeddings_need_a_layout(model, one):
    _, cache = model.run_with_cache(one, names_filter="blocks.1.hook_in")
    residual = cache["blocks.1.hook_in"]
    name = "blocks.2.visual.hook_resid_post"
    hooks = [(name, lambda x, hook: x * 0)]
    with pytest.raises(HookError, match="starts from embeddings"):
        model.run_with_hooks(residual, fwd_hooks=hooks, start_at_layer=1)
    with model.bound(one):
        got = model.run_with_hooks(residual, fwd_hooks=hooks, start_at_layer=1)
        assert torch.allclose(model(residual, start_at_layer=1), model(one), atol=1e-5)
        _, resumed = model.run_with_cache(residual, names_filter=name, start_at_layer=1)
    assert torch.allclose(got, model.run_with_hooks(one, fwd_hooks=hooks), atol=1e-5)
    assert resumed.layout is one.layout


def test_embeddings_of_another_shape_or_padded(model, one, batch):
    name = "blocks.1.hook_in"
    residual = model.run_with_cache(one, names_filter=name)[1][name]
    zero = [("blocks.2.visual.hook_resid_post", lambda x, hook: x * 0)]
    with model.bound(one):
        three = model.run_with_hooks(residual.repeat(3, 1, 1), fwd_hooks=zero, start_at_layer=1)
        alone = model.run_with_hooks(residual, fwd_hooks=zero, start_at_layer=1)
        assert torch.allclose(three, alone.expand_as(three), atol=1e-5)
        with pytest.raises(HookError, match=r"\(1, 50\)"):
            model.run_with_hooks(residual[:, :50], fwd_hooks=zero, start_at_layer=1)
    residual = model.run_with_cache(batch, names_filter=name)[1][name]
    valid = batch.attention_mask.bool()
    assert not valid.all()
    with model.bound(batch):
        resumed = model(residual, start_at_layer=1)
    assert torch.allclose(resumed[valid], model(batch)[valid], atol=1e-5)


def test_one_dimensional_tokens(model, one):
    rest = keywords(one)
    assert torch.equal(model(one.input_ids[0], **rest), model(one))
    loss = model(one.input_ids[0], return_type="loss", **rest)
    assert torch.equal(loss, model(one, return_type="loss"))
    _, cache = model.run_with_cache("abc", names_filter="blocks.0.text.hook_q")
    assert cache.layout.counts("text").tolist() == [cache["q", 0, "text"].shape[1]]


def test_a_block_alone_has_no_layout(model, one):
    _, cache = model.run_with_cache(one, names_filter="blocks.0.hook_in")
    with (
        model.hooks(fwd_hooks=[("blocks.0.visual.hook_resid_pre", lambda x, hook: x)]),
        pytest.raises(HookError, match="outside of a forward pass"),
    ):
        model.blocks[0](cache["blocks.0.hook_in"])
