"""A converted model answers as the published pipeline does."""

from __future__ import annotations

import pytest
import torch
from chats import QUESTION, prepare
from published_files import asked, loaded
from tiny import random_image, tiny_tokenizer
from upstream import (
    PUBLISHED,
    upstream_generate,
)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generation_is_that_of_the_published_pipeline(options, converted, parts):
    model, processor = loaded(converted)
    model.generation_config = type(model.generation_config)(eos_token_id=2, pad_token_id=2)
    options = {"do_sample": False, "max_new_tokens": 12, **options}
    for seed in range(2):
        inputs, published = asked(processor, seed=seed)
        new = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        expected = upstream_generate(parts, *published, **options, eos_token_id=2, pad_token_id=2)
        assert new.tolist() == expected


@pytest.mark.filterwarnings("ignore:Passing `no_repeat_ngram_size`")
def test_generate_without_arguments_is_the_published_call(converted, parts):
    model, processor = loaded(converted)
    plain = tiny_tokenizer(image_token=None)
    bad = [*plain(["\n", "</s>", ":"], add_special_tokens=False).input_ids, [13]]
    inputs, published = asked(processor)
    new = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    assert new.tolist() == upstream_generate(parts, *published, **PUBLISHED, bad_words_ids=bad)
    # Repetition counts within the answer alone. The question holds all characters: were it counted,
    # no token could be generated.
    letters = plain.convert_ids_to_tokens(range(6, len(plain)))
    question = "".join(c for c in letters if len(c) == 1 and c not in "<>")
    inputs, published = asked(processor, question)
    options = {"no_repeat_ngram_size": 1, "num_beams": 1, "early_stopping": False}
    new = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :].tolist()
    published_options = {**PUBLISHED, **options, "bad_words_ids": bad}
    assert new == upstream_generate(parts, *published, **published_options)
    assert set(new) & set(published[2])


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": False, "num_beams": 3, "no_repeat_ngram_size": 2, "early_stopping": True},
        {"do_sample": True, "temperature": 0.7, "top_k": 0},
        {"do_sample": False, "use_cache": False},
    ],
)
def test_generation_equals_the_published_pipeline(model, model_parts, one, published, options):
    options = {"max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 2, **options}
    torch.manual_seed(0)
    got = model.generate(**one, **options)[0, one["input_ids"].shape[1] :].tolist()
    torch.manual_seed(0)
    want = upstream_generate(model_parts, *published, **options)
    assert got == want
    assert len(got) == 8


@pytest.mark.parametrize("beams", [1, 3])
def test_batched_generation_is_that_of_each_row(model, processor, beams):
    """Beams repeat rows: with several images to a row they must go along with theirs."""
    rows = [[random_image(8, 90, 1), random_image(40, 22, 2)], [random_image(31, 57)]]
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams, "eos_token_id": None}
    batch = prepare(processor, [QUESTION, "Alike?"], rows, padding_side="left")
    together = model.generate(**batch, **options)[:, -6:]
    for i, (question, images) in enumerate(zip([QUESTION, "Alike?"], rows, strict=True)):
        alone = model.generate(**prepare(processor, [question], [images]), **options)[:, -6:]
        assert torch.equal(together[i : i + 1], alone)
