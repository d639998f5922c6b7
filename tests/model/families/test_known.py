"""What is remembered of tensors is what would be found out again, and is forgotten with them."""

from __future__ import annotations

import gc

import pytest
import torch
from conftest import load_tiny
from tiny import random_image

from mm_lens import InputError
from mm_lens.model.families import known

pytestmark = pytest.mark.every_family
PICTURE = (20, 30)


@pytest.fixture
def counted(model, monkeypatch):
    """How often a layout was worked out."""
    calls, kind = [], type(model.family)
    whole = kind.layout

    def layout(family, inputs):
        calls.append(1)
        return whole(family, inputs)

    monkeypatch.setattr(kind, "layout", layout)
    return calls


def ask(model, seed=0, size=PICTURE):
    return model.prepare("What is it?", random_image(*size, seed))


def run(model, inputs):
    """Positions of the visual tokens in a forward pass, as its hooks see them."""
    seen = []
    model.run_with_hooks(
        inputs,
        fwd_hooks=[
            ("blocks.0.hook_resid_post", lambda x, hook: seen.append(model.context.frame)),
            ("blocks.0.visual.hook_resid_post", lambda x, hook: None),
        ],
    )
    (frame,) = seen
    return frame.selection("visual").positions, frame.layout


def test_a_layout_is_worked_out_once_for_the_same_tensors(model, counted):
    inputs = ask(model)
    first, layout = run(model, inputs)
    second, again = run(model, inputs)
    assert len(counted) == 1
    assert torch.equal(first, second)
    assert torch.equal(inputs.layout.modality, layout.modality)
    assert torch.equal(again.modality, layout.modality)
    assert len(counted) == 1
    host, tokens = inputs.on_cpu
    assert torch.equal(host.mask("visual").cpu(), layout.mask("visual").cpu())
    assert torch.equal(tokens, inputs.input_ids.cpu())


def test_other_tensors_are_looked_at_anew(model, counted):
    one, other = ask(model), ask(model, size=(40, 12))
    for inputs in (one, other, one, other):
        positions, _ = run(model, inputs)
        assert torch.equal(positions, inputs.layout.positions("visual"))
    assert len(counted) == 2
    run(model, {**one, "input_ids": one.input_ids.clone()})
    assert len(counted) == 3


def test_a_change_in_place_is_seen(model, counted):
    inputs = ask(model)
    run(model, inputs)
    token = int(inputs.input_ids[0, -1])
    inputs.input_ids[0, -1] = model.family.image_token_id
    with pytest.raises(InputError, match="image placeholders"):
        run(model, inputs)
    inputs.input_ids[0, -1] = token
    positions, _ = run(model, inputs)
    assert torch.equal(
        positions[0], (inputs.input_ids[0] == model.family.image_token_id).nonzero()[:, 0]
    )
    mask = inputs["attention_mask"]
    mask[0, 0] = 0
    assert run(model, inputs)[1].modality[0, 0] == -1


def test_nothing_is_known_of_a_decoding_step_or_of_inference_tensors(model):
    class Filled:
        def get_seq_length(self):
            return 3

    inputs = dict(ask(model))
    first = known.recall(model.family, inputs)
    assert known.recall(model.family, inputs) is first
    assert known.recall(model.family, {**inputs, "use_cache": True}) is first
    assert known.recall(model.family, {**inputs, "past_key_values": Filled()}) is not first
    assert known.recall(model.family, {**inputs, "extra": object()}) is not first
    assert known.recall(load_tiny(check=False).family, inputs) is not first
    with torch.inference_mode():
        unseen = {k: v.clone() for k, v in inputs.items() if isinstance(v, torch.Tensor)}
    assert known.recall(model.family, unseen) is not known.recall(model.family, unseen)


def forget(model):
    """The passes that a model keeps, of which the last is the cache's."""
    model.context._passes.finished = None
    model.context._passes.prompts.clear()
    gc.collect()


def test_what_is_known_dies_with_the_tokens(model):
    forget(model)
    before = len(known._KNOWN)
    inputs = ask(model)
    run(model, inputs)
    assert inputs.on_cpu[1] is not None  # of a profile; on the CPU these are the tokens themselves
    assert inputs.layout is not None
    assert len(known._KNOWN) == before + 1
    del inputs
    forget(model)
    assert len(known._KNOWN) == before
