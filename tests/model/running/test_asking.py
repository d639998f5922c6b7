"""`model.ask`: the text, its probability and those of options, against the native model."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import load_tiny
from tiny import random_image

from mm_lens import InputError, MMLensWarning

pytestmark = pytest.mark.filterwarnings("ignore:The options hold")
QUESTION = "What is it?"


@pytest.fixture(scope="module")
def image():
    return random_image(31, 57)


def chance(native, inputs, tokens, row=0):
    """Log-probability of tokens behind a prompt, from one pass of the native model over both."""
    ids = torch.cat([inputs.input_ids[row : row + 1], torch.tensor([tokens])], 1)
    mask = torch.cat([inputs.attention_mask[row : row + 1], torch.ones(1, len(tokens)).long()], 1)
    first = sum(map(len, inputs.images[:row]))
    own = slice(first, first + len(inputs.images[row]))
    picture = {k: inputs[k][own] for k in ("pixel_values", "image_sizes")}
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = native(
            input_ids=ids, attention_mask=mask, position_ids=positions, **picture
        ).logits
    steps = logits[0, -len(tokens) - 1 : -1].log_softmax(-1)
    return float(steps.gather(1, torch.tensor([tokens]).T).sum())


def test_the_text_and_its_probability_are_those_of_the_native_model(model, native, image):
    inputs = model.prepare(QUESTION, image)
    want = native.generate(**inputs.native, max_new_tokens=6, do_sample=False)
    ids = want[0, inputs.input_ids.shape[1] :].tolist()
    reply = model.ask(QUESTION, image, max_new_tokens=6)
    written = [i for i in ids if i != model.tokenizer.eos_token_id]
    assert reply.text == model.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert reply.finished == (len(written) < len(ids))
    assert reply.log_prob == pytest.approx(chance(native, inputs, written), abs=1e-4)
    assert len(reply.tokens) == len(reply.log_probs) == len(written)
    assert (reply.question, str(reply)) == (QUESTION, reply.text)


def test_options_of_one_and_of_several_tokens(model, native, image):
    inputs = model.prepare(QUESTION, image)
    for options in (["a", "b", "c"], ["ab", "c", "bca"]):
        reply = model.ask(QUESTION, image, options=options)
        spelled = {o: model.tokenizer(o, add_special_tokens=False)["input_ids"] for o in options}
        want = {o: chance(native, inputs, ids) for o, ids in spelled.items()}
        assert reply.option_log_probs == pytest.approx(want, abs=1e-4)
        assert [*reply.options] == sorted(want, key=want.get, reverse=True)
        total = sum(map(math.exp, want.values()))
        assert reply.options["c"] == pytest.approx(math.exp(want["c"]) / total, abs=1e-4)
        assert reply.mass == pytest.approx(total, rel=1e-3)


def test_a_batch_answers_as_each_alone(model, image):
    other = random_image(20, 20, 1)
    replies = model.ask([QUESTION, "Why?"], [image, other], options=["a", "bc"], max_new_tokens=3)
    for reply, (question, picture) in zip(
        replies, [(QUESTION, image), ("Why?", other)], strict=True
    ):
        alone = model.ask(question, picture, options=["a", "bc"], max_new_tokens=3)
        assert reply.tokens == alone.tokens
        assert reply.log_probs == pytest.approx(alone.log_probs, abs=1e-4)
        assert reply.options == pytest.approx(alone.options, abs=1e-4)
    assert repr(replies).startswith(f"0: {replies[0].text!r}")
    assert replies._repr_html_().count("<img") == 2


def test_rows_that_cannot_be_padded_are_asked_one_by_one(fresh, image):
    want = fresh.ask([QUESTION, "Why?"], [image, None], max_new_tokens=2)
    fresh.family.padding_side = "right"
    found = fresh.ask([QUESTION, "Why?"], [image, None], max_new_tokens=2)
    assert [reply.tokens for reply in found] == [reply.tokens for reply in want]


def test_prepared_inputs_and_hooks(model, image):
    inputs = model.prepare(QUESTION, image)
    plain = model.ask(inputs, options=["a", "b"], max_new_tokens=2)
    assert plain.options == model.ask(QUESTION, image, options=["a", "b"]).options
    blind = [("blocks.0.visual.hook_resid_pre", lambda rows, hook: rows * 0)]
    with model.hooks(fwd_hooks=blind):
        edited = model.ask(inputs, options=["a", "b"], max_new_tokens=2)
        logits = model(inputs)[0, -1].detach().log_softmax(-1)
    assert edited.options != plain.options
    with model.hooks(fwd_hooks=blind):
        edited = model.ask(inputs, max_new_tokens=1)
    assert edited.log_prob == pytest.approx(float(logits.max()), abs=1e-4)


def test_it_says_what_is_not_asked_for(image):
    model = load_tiny(check=False)
    with torch.no_grad():  # one of 113 words is as good as another; an option is two of them
        model.original_model.lm_head.weight.zero_()
    with pytest.warns(
        MMLensWarning, match=r"The options hold 0\.00016 of the probability in 1 of 1"
    ):
        reply = model.ask(QUESTION, image, options=["a", "b"], max_new_tokens=1)
    assert not reply.finished
    assert "cut off" in repr(reply)
    assert "of the options: a 0.5, b 0.5" in repr(reply)
    assert reply._repr_html_().count("<img") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("red", "at least two words"),
        (["a"], "at least two words"),
        (["a", ""], "makes no token"),
        (["a", "a"], "are the same token"),
        (["ab", "ab"], "are the same tokens"),
    ],
)
def test_options_that_are_none(model, image, options, message):
    with pytest.raises(InputError, match=message):
        model.ask(QUESTION, image, options=options)


def test_names_that_are_meant_are_told(model, image):
    with pytest.raises(InputError, match="called images="):
        model.ask(QUESTION, image=image)
    with pytest.raises(InputError, match="max_new_tokens=0 is too small"):
        model.ask(QUESTION, image, max_new_tokens=0)
