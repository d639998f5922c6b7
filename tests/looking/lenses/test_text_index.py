"""The index of texts: which words it keeps, and its file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from mm_lens import DataError, InputError
from mm_lens.looking import TextIndex, build_text_index
from mm_lens.looking.lenses.text_index import FORMAT


def test_it_keeps_words_in_their_texts(model, tmp_path):
    index = build_text_index(model, ["a cab", "bad cat"], layers=[1, 2], most_per_word=2)
    shown = list(index.contexts)
    assert len(shown) == index.states.shape[1]
    assert sum("[a]" in text for text in shown) == 2
    assert "a c[a]b" in [text.strip() for text in shown]
    assert torch.allclose(index.states.float().norm(dim=-1), torch.ones(2, len(shown)), atol=1e-3)
    cosine, entry, at = index.nearest(index.states[1, :3].float(), 1, [2])
    assert entry[:, 0].tolist() == [0, 1, 2]
    assert (at == 2).all()
    assert cosine.min() > 0.99
    index.save(tmp_path / "index.safetensors")
    again = TextIndex.load(tmp_path / "index.safetensors")
    assert (again.layers, again.contexts) == (index.layers, index.contexts)
    assert torch.equal(again.states, index.states)


def test_what_is_no_index_is_refused(model, tmp_path):
    for texts in ("one text", []):
        with pytest.raises(InputError, match="list of sentences"):
            build_text_index(model, texts)
    index = build_text_index(model, ["ab"], layers=[1])
    with pytest.raises(InputError, match="holds no layer 2"):
        index.nearest(torch.zeros(1, 24), 1, [2])
    with pytest.raises(DataError, match="cannot be read"):
        TextIndex.load(tmp_path / "none")
    for contexts, told in ((b"[", {"layers": "[0]"}), (b"[]", {"layers": "["}), (b"[]", {})):
        stored = {"contexts": torch.tensor(list(contexts)), "states": torch.zeros(1)}
        save_file(stored, tmp_path / "bad", {"format": FORMAT, **told})
        with pytest.raises(DataError, match="cannot be read as a text index"):
            TextIndex.load(tmp_path / "bad")
