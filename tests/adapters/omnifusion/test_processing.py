"""Prompts, markers and texts between them."""

from __future__ import annotations

import pytest
from chats import chat
from mm_lens_adapters.omnifusion import (
    MARKERS,
    add_markers,
)
from tiny import VOCAB_SIZE, random_image, tiny_tokenizer
from upstream import PROMPT

from mm_lens import InputError


def test_prompts(processor):
    def render(*messages, **options):
        return processor.apply_chat_template([*messages], **options)

    user = chat("why?", 2)[0]
    reply = {"role": "assistant", "content": [{"type": "text", "text": "so"}]}
    system = {"role": "system", "content": "Be brief. "}
    image = "<SOI><image><EOI>"
    assert render(user) == f"{PROMPT}{image}{image}<USER>why?"
    assert render(chat("why?", 0)[0], add_generation_prompt=True) == f"{PROMPT}<USER>why?<BOT>"
    assert render(user, reply, {"role": "user", "content": "and?"}, add_generation_prompt=True) == (
        f"{PROMPT}{image}{image}<USER>why?<BOT>so</s><USER>and?<BOT>"
    )
    assert render(system, chat("why?", 0)[0]) == "Be brief. <USER>why?"
    with pytest.raises(Exception, match="Only user, system and assistant"):
        render({"role": "judge", "content": "why?"})


def test_texts_between_markers_are_tokenised_one_by_one(processor):
    ids = processor(text=["a b<USER>a b<BOT>"]).input_ids[0]
    tokenizer = tiny_tokenizer(image_token=None)
    piece = tokenizer.encode("a b", add_special_tokens=False)
    marks = [VOCAB_SIZE + MARKERS.index(m) for m in ("<USER>", "<BOT>")]
    assert ids == [*piece, marks[0], *piece, marks[1]]
    assert processor.tokenizer.decode(ids).replace(" ", "") == "ab<USER>ab<BOT>"


def test_bad_calls_of_the_processor(processor):
    with pytest.raises(ValueError, match="total number of <image>"):
        processor(text=["<image>"], images=[random_image(9, 9), random_image(9, 9)])
    with pytest.raises(ValueError, match="no images were passed"):
        processor(text=["<image>"])
    with pytest.raises(ValueError, match="Truncation"):
        processor(text=["long"], truncation=True, max_length=2)


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1)], ids=str)
def test_a_picture_that_would_be_made_enormous_is_refused(processor, size):
    assert processor(text=["<image>"], images=[random_image(1, 400)]).image_sizes == [(1, 400)]
    with pytest.raises(InputError, match=r"would be resized to .* Crop the part that you mean"):
        processor(text=["<image>"], images=[random_image(*size)])


def test_markers_follow_the_vocabulary_of_the_model():
    tokenizer = tiny_tokenizer(image_token=None)
    assert len(tokenizer) < VOCAB_SIZE  # the gap is filled
    add_markers(tokenizer, VOCAB_SIZE)
    assert tokenizer.convert_tokens_to_ids([*MARKERS, "<image>"]) == list(
        range(VOCAB_SIZE, VOCAB_SIZE + 5)
    )
    with pytest.raises(ValueError, match="do not belong together"):
        add_markers(tiny_tokenizer(image_token=None), 20)
    with pytest.raises(ValueError, match="already"):
        add_markers(tiny_tokenizer(), VOCAB_SIZE)
