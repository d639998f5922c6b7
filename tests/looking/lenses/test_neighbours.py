"""Nearest words, of the embedding and of texts."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from tiny import random_image

from mm_lens import InputError
from mm_lens.looking import TextIndex, build_text_index, embedding_neighbours, latent_lens

pytestmark = pytest.mark.every_family


@pytest.fixture(scope="module")
def inputs(model):
    return model.prepare("Eh?", random_image(12, 12, 1))


def test_a_text_token_enters_as_its_own_row(model, inputs):
    mask = inputs.layout.mask("text")
    mask[0, 0] = False
    mask &= inputs.input_ids < model.cfg.d_vocab  # OmniFusion's own markers are in no embedding
    found = embedding_neighbours(model, inputs, mask, layers=[0], top_k=2)
    near = found.entries[0, mask, 0]
    rows = model.original_model.get_input_embeddings().weight.detach()
    cosines = cosine_similarity(rows[inputs.input_ids[mask]], rows[near])
    assert cosines.diagonal().min() > 0.999
    shown = found.words()[0]
    assert [len(x) for x, here in zip(shown, mask[0], strict=True) if here] == [2] * int(mask.sum())
    assert found.best.shape == (1, *inputs.layout.shape)
    assert found.best.plot is not None


def test_words_in_texts_at_any_layer_or_its_own(model, inputs):
    index = build_text_index(model, ["abcdefgh", "the cat is red"], layers=[0, 2])
    own = latent_lens(model, inputs, index, same_layer=True, top_k=2)
    assert own.layers == (0, 2)
    mask = inputs.layout.mask("visual")
    assert own.at_layers[:, mask].unique(dim=1).tolist() == [[[0, 0]], [[2, 2]]]
    free = latent_lens(model, inputs, index, layers=[2], top_k=2)
    assert (free.cosine[0, mask, 0] >= own.cosine[1, mask, 0] - 1e-6).all()
    assert "[" in free.words()[0][int(mask[0].nonzero()[0])][0]
    (plain,) = latent_lens(model, inputs, index, "text", layers=[0], top_k=1).words()
    assert any("[E]" in text or "[h]" in text for at in plain for text in at)


def test_what_does_not_fit_is_refused(model, inputs):
    index = build_text_index(model, ["abcdefgh"], layers=[1])
    other = TextIndex((1,), torch.zeros(1, 2, 7, dtype=torch.float16), ("a", "b"))
    for call, told in (
        (lambda: latent_lens(model, inputs, other), "built with another model"),
        (lambda: latent_lens(model, inputs, index, top_k=99), "more than the"),
        (lambda: latent_lens(model, inputs, index, layers=[2], same_layer=True), "no layer 2"),
        (lambda: embedding_neighbours(model, inputs, "tile 9"), "no position of"),
    ):
        with pytest.raises(InputError, match=told):
            call()
