"""The parts both models share."""

from __future__ import annotations

from typing import Any

import easy_vqa
import pytest


def test_answers_are_single_tokens(processor: Any) -> None:
    encode = processor.tokenizer
    ends = {" circle": encode(" circle</s>", add_special_tokens=False).input_ids[-1]}
    assert ends == {" circle": encode.eos_token_id}
    first = set()
    for answer in easy_vqa.get_answers():
        (token, end) = encode(f" {answer}</s>", add_special_tokens=False).input_ids
        assert end == encode.eos_token_id
        assert encode.decode(token) == f" {answer}"
        first.add(token)
    assert len(first) == 13


@pytest.mark.parametrize("text", ["Où est l'été?", "日本語\n\ttabs", "{x} <b> 🎈", "plain words"])
def test_tokenizer_takes_any_text(processor: Any, text: str) -> None:
    ids = processor.tokenizer(text, add_special_tokens=False).input_ids
    assert processor.tokenizer.unk_token_id not in ids
    assert processor.tokenizer.decode(ids) == text
