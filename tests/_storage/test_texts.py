"""JSON within bounds, and names that can be written."""

from __future__ import annotations

import json
import os

import pytest

from mm_lens._storage import texts
from mm_lens._storage.texts import make_encodable, parse_json, read_json


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deep"),
        ('{"a":' * 200 + "1" + "}" * 200, "nested too deep"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the entry 'c' is there twice"),
        ('{"a": ', "Expecting value"),
    ],
)
def test_what_is_refused(text, told):
    with pytest.raises(ValueError, match=told):
        parse_json(text)


def test_the_rest_is_read_as_ever():
    text = json.dumps({"a": [[[{}]]] * 3, "b": "\u2028", "c": {"a": None}})
    assert parse_json(text) == json.loads(text)
    assert parse_json("[" * 100 + "]" * 100) == json.loads("[" * 100 + "]" * 100)


def test_files(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("[1]")
    assert read_json(path) == [1]
    monkeypatch.setattr(texts, "MAX_JSON", 2)
    with pytest.raises(ValueError, match="3 bytes, more than the 2"):
        read_json(path)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match="not a file"):
        read_json(tmp_path / "pipe.json")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


def test_names():
    assert make_encodable("späße/\u2028.png") == "späße/\u2028.png"
    assert make_encodable(os.fsdecode(b"\xff.png")) == "\\udcff.png"
