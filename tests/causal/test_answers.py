"""Options of an answer, read at the last attended position."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from causal_cases import BATCH

from mm_lens import InputError
from mm_lens.causal.answers import Answers, option_tokens

pytestmark = pytest.mark.every_family


def test_answers_are_read_at_the_last_attended_position(model):
    inputs = model.prepare(*BATCH, padding_side="right")
    assert not inputs.attention_mask.all()
    ids, options = [61, 62, 63], ["a", "b", "c"]
    answers = Answers(model, inputs, options, right=["a", "b"], wrong="c", tokens=ids)
    logits = model(inputs).detach()
    at = torch.stack([logits[i, n - 1] for i, n in enumerate(inputs.attention_mask.sum(1))])
    a, b, c = (at[:, i] for i in ids)
    assert torch.equal(answers.logit_diff(logits), torch.stack([a[0] - c[0], b[1] - c[1]]))
    three = torch.stack([a, b, c], -1).double().softmax(-1)
    want = torch.stack([three[0, 0], three[1, 1]]).float()
    assert torch.allclose(answers.probability(logits), want)
    assert answers.accuracy(logits).tolist() == (three.argmax(-1) == torch.tensor([0, 1])).tolist()
    mean = Answers(model, inputs, options, right="a", tokens=ids).logit_diff(logits)
    assert torch.allclose(mean, a - (b + c) / 2)
    assert torch.allclose(answers.mass(logits), at.softmax(-1)[:, ids].sum(-1))
    for change, complaint in (
        ({"right": "d"}, "not among"),
        ({"right": ["a"]}, "1 answers"),
        ({"right": "c"}, "same option"),
        ({"tokens": [61, 61, 62]}, "same token"),
        ({"tokens": [61, 62]}, "2 tokens"),
    ):
        with pytest.raises(InputError, match=complaint):
            Answers(
                model,
                inputs,
                **{"options": options, "right": "a", "wrong": "c"} | {"tokens": ids} | change,
            )


class Words:
    """A tokenizer of a few words."""

    known: ClassVar = {
        "red": [1],
        " red": [2],
        "blue": [3, 4],
        " blue": [5],
        "big": [2],
        " big": [2],
    }

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": self.known.get(text, [8, 9])}

    def convert_ids_to_tokens(self, ids):
        return [str(i) for i in ids]


def test_options_are_single_tokens_and_different():
    assert option_tokens(Words(), ["red", "big"]).tolist() == [1, 2]
    assert option_tokens(Words(), ["red", "blue"]).tolist() == [2, 5]  # both with a space
    for options, complaint in (
        (["red", "green"], "'green' is not one token"),
        ([" red", "big"], "same token"),
        (["red"], "at least two"),
    ):
        with pytest.raises(InputError, match=complaint):
            option_tokens(Words(), options)
