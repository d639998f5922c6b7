"""Which questions are asked, and where the thing lies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mm_lens import InputError
from mm_lens.layout import regions
from mm_lens.recipes.questions import ask, draw, find_thing, read, with_thing


def test_questions_with_options_and_pictures(model, samples, asked):
    assert [q.sample.id for q in asked] == [f"q{k}" for k in range(6)]
    assert [q.picture for q in asked] == [0, 1, 2, 3, 0, 1]
    assert asked[0].answers.options == ("a", "b", "c")
    assert len(ask(model, samples, 2)) == 2
    few = [samples[0], samples[3]]
    with pytest.raises(InputError, match="three options or more"):
        ask(model, few)
    mine = [replace(s, options=("a", "b", "d")) for s in few]
    assert ask(model, mine)[0].answers.options == ("a", "b", "d")


def test_groups_of_a_question(model, asked):
    question = asked[0]
    layout = question.inputs.layout
    assert not (question.visual & layout.mask("newline")).any()
    last = layout.shape[1] - 1
    assert not question.question[0, last]
    assert question.question[0, last - 1]
    assert not (question.question & layout.mask("visual")).any()
    assert not question.question[0, : int(layout.mask("visual")[0].nonzero()[-1])].any()


def test_the_thing_is_what_differs_from_the_ground_or_a_box(model, samples, asked):
    mask = find_thing(samples[1].image)
    assert mask.sum() == 36
    assert mask[8:14, :6].all()
    thing = asked[1].thing
    want = regions.group_mask(asked[1].inputs.layout, regions.Box(0, 8, 6, 14)) & asked[1].visual
    assert torch.equal(thing, want)
    boxed = [replace(s, about={"kind": "colour", "box": "0, 8, 6, 14"}) for s in samples]
    assert torch.equal(ask(model, boxed)[1].thing, want)
    with pytest.raises(InputError, match="box is four numbers"):
        _ = ask(model, [replace(s, about={"box": "1 2"}) for s in samples])[0].thing
    flat = [replace(s, image=s.image.resize((1, 1)).resize((16, 16))) for s in samples]
    with pytest.raises(InputError, match="not to be told in any picture"):
        with_thing(ask(model, flat))


@torch.no_grad()
def test_the_probability_is_that_of_the_answers(model, asked):
    question = asked[2]
    logits = model(question.inputs)
    want = float(question.answers.probability(logits)[0])
    assert read(model, question) == pytest.approx(want, rel=1e-5)
    chosen = draw(question.visual, 3, torch.Generator().manual_seed(0))
    assert int(chosen.sum()) == 3
    assert not (chosen & ~question.visual).any()
    assert np.isfinite(want)
