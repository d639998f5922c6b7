"""LLaVA's format of training and test files."""

from __future__ import annotations

import json

import pytest
from tiny import random_image

from mm_lens.data import conversations, datasets
from mm_lens.errors import DataError, MMLensWarning


def turn(who: str, said: str) -> dict[str, str]:
    return {"from": who, "value": said}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """As llava_v1_5_mix665k.json and llava_test_CQM-A.json have them."""
    monkeypatch.setattr(conversations, "_said", [])
    random_image(6, 9).save(tmp_path / "a.png")
    two = [turn("human", "What is it?\n<image>"), turn("gpt", "A cat.")]
    four = [*two, turn("human", "And now?"), turn("gpt", "Still.")]
    rows = [
        {"id": "000", "image": "a.png", "conversations": two},
        {"id": "001", "model": "", "conversations": [turn("human", "Hello!")]},
        {"id": "002", "image": "a.png", "conversations": four},
    ]
    (tmp_path / "set.json").write_text(json.dumps(rows))
    return tmp_path / "set.json"


def test_the_first_turn_is_asked_without_its_placeholder(table):
    with pytest.warns(MMLensWarning, match="only the first of each is asked"):
        samples = datasets.load(table)
    found = [(s.id, s.text, s.answer, s.image and s.image.size) for s in samples]
    assert found == [
        ("000", "What is it?", "A cat.", (9, 6)),
        ("001", "Hello!", None, None),
        ("002", "What is it?", "A cat.", (9, 6)),
    ]


@pytest.mark.parametrize(
    "turns", [[], "Hello", [turn("gpt", "Hello")], [{"from": "human"}], [["human", "Hello"]]]
)
def test_what_is_no_conversation_is_refused(turns):
    with pytest.raises(DataError, match="Item 0: 'conversations' is no list of turns"):
        datasets.load([{"conversations": turns}])
