"""Which pass is running, and what it is told: placeholders, embeddings, threads, beams, None."""

from __future__ import annotations

import copy
import pickle
import threading
import time

import pytest
import torch
from keyword_inputs import keywords, n_image
from tiny import random_image

import mm_lens
from mm_lens import HookError, InputError
from mm_lens.model.running.frames import Selection

pytestmark = pytest.mark.every_family


@pytest.mark.parametrize("positions", [[[2, 3, 4]] * 2, [[2, 3, 4], [1, 2, 3]], [[0, 2, 3]] * 2])
def test_rows_are_copies_whether_they_lie_in_one_piece_or_not(positions):
    x = torch.randn(2, 6, 3, 2)
    selection = Selection(torch.tensor(positions), torch.ones(2, 3, dtype=torch.bool))
    expected = torch.stack([x[row, positions[row]] for row in range(2)])
    for given in (x, x.transpose(2, 3).contiguous().transpose(2, 3)):
        rows = selection.gather(given)
        assert torch.equal(rows, expected)
        rows.zero_()
        assert torch.equal(given, x)
        assert bool(x.any())
    with pytest.raises(IndexError):
        selection.gather(x[:1])


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


def test_threads_keep_their_passes_apart(fresh):
    """A pass that is called for inside of another thread's waits for its end, and is its own."""
    short = fresh.prepare("Eh", random_image(8, 12))
    long = fresh.prepare("What is it, in so many words?", [random_image(31, 57)])
    want = {id(x): x.layout.positions("visual") for x in (short, long)}
    seen, order, begun = {}, [], threading.Event()

    def look(rows, hook):
        seen[threading.get_ident()] = rows.shape[1]

    def begin(tensor, hook):
        order.append(threading.get_ident())
        begun.set()
        time.sleep(0.2)  # time for the other one to come between, if it can

    def end(tensor, hook):
        order.append(threading.get_ident())

    main = threading.get_ident()
    fresh.add_hook("blocks.0.hook_in", begin)
    fresh.add_hook("blocks.1.visual.hook_resid_post", look)
    fresh.add_hook("blocks.2.hook_out", end)

    def run():
        with torch.no_grad(), fresh.bound(short):
            _, cache = fresh.run_with_cache(short.input_ids, names_filter="blocks.2.hook_out")
            caches.append(cache)

    caches = []
    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(60)
    with torch.no_grad():
        _, cache = fresh.run_with_cache(long, names_filter="blocks.2.hook_out")
    thread.join(60)
    assert order == [thread.ident, thread.ident, main, main]
    assert fresh.context.bound is None
    assert seen == {
        main: want[id(long)].shape[1],
        thread.ident: want[id(short)].shape[1],
    }
    assert cache.layout.shape == long.layout.shape
    assert caches[0].layout.shape == short.layout.shape


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 2, "seed": 0}])
def test_beams_and_returned_sequences(model, options):
    """Rows repeat side by side, and a hook sees the tokens of its own row in each."""
    inputs = model.prepare(
        ["What is it?", "Why?"], [random_image(31, 57), random_image(8, 12)], padding_side="left"
    )
    options = dict(options)
    if options.pop("seed", None) is not None:
        options["do_sample"] = True
    copies = options.get("num_beams", options.get("num_return_sequences"))
    names = ["blocks.0.visual.hook_resid_pre", "blocks.0.hook_resid_pre"]
    held: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def keep(tensor, hook):
        held[hook.name if "visual" in hook.name else names[1]].append(tensor.clone())

    with model.hooks(fwd_hooks=[(name, keep) for name in names]):
        model.hf_generate(inputs, max_new_tokens=2, **options)
    _, cache = model.run_with_cache(inputs, names_filter=names)
    assert len(held[names[0]]) == 1  # decoding steps hold no image
    want = cache[names[0]].repeat_interleave(copies, 0)
    assert held[names[0]][0].shape == want.shape
    assert torch.equal(held[names[1]][0], cache[names[1]].repeat_interleave(copies, 0))
    assert torch.equal(held[names[0]][0], want)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_inputs_can_be_copied_and_sent(model, how):
    inputs = model.prepare("What is it?", random_image(31, 57))
    other = how(inputs)
    assert torch.equal(other.input_ids, inputs.input_ids)
    assert torch.equal(other.layout.mask("visual"), inputs.layout.mask("visual"))
    with torch.no_grad():
        assert torch.equal(model(other), model(inputs))
    with model.bound(other), torch.no_grad():  # its tokens are known as its own
        assert torch.equal(model(other.input_ids), model(inputs))
    assert mm_lens.model.inputs.is_prepared(other.input_ids)


def test_an_explicit_none_reaches_the_model(model):
    inputs = model.prepare("What is it?", random_image(31, 57))
    assert model(inputs, return_type=None) is None
    with pytest.raises(mm_lens.InputError, match="pixel_values is missing"):
        model(inputs, pixel_values=None)
    with model.bound(inputs):
        assert model(inputs.input_ids, return_type=None) is None


def test_a_copy_after_a_pass_from_a_block_on_with_gradients(fresh):
    inputs = fresh.prepare("What is it?", random_image(31, 57))
    _, cache = fresh.run_with_cache(inputs, names_filter="blocks.1.hook_in")
    state = cache["blocks.1.hook_in"].clone().requires_grad_() * 1.0
    with fresh.bound(inputs):
        fresh.run_with_hooks(
            state,
            fwd_hooks=[("blocks.1.visual.hook_resid_post", lambda x, hook: None)],
            start_at_layer=1,
        ).sum().backward()
    twin = copy.deepcopy(fresh)
    with torch.no_grad():
        assert torch.equal(twin(inputs), fresh(inputs))
    assert twin.context.finished is not fresh.context.finished
