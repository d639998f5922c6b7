"""Tokens as texts, position by position."""

from __future__ import annotations

from tiny import random_image


def test_tokens_of_inputs_are_told_position_by_position(model):
    image = random_image(31, 57)
    inputs = model.prepare(["What is it?", "Why?"], [image, image])
    rows = model.to_str_tokens(inputs)
    expected = [[model.tokenizer.decode([i]) for i in row] for row in inputs.input_ids.tolist()]
    assert rows == expected
    assert model.to_str_tokens(model.prepare("Why?", image)) == [
        model.tokenizer.decode([i]) for i in model.prepare("Why?", image).input_ids[0].tolist()
    ]
    assert model.to_str_tokens("Why?") == model.to_str_tokens(model.to_tokens("Why?"))
