"""The tiny OmniFusion, and the arguments of the published pipeline for one question."""

from __future__ import annotations

import pytest
from chats import QUESTION, prepare
from tiny import random_image, tiny_tokenizer
from tiny_omnifusion import SIDE, tiny_omnifusion
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from upstream import PROMPT, parts_of


@pytest.fixture(scope="module")
def pair():
    return tiny_omnifusion()


@pytest.fixture(scope="module")
def model(pair):
    return pair[0]


@pytest.fixture(scope="module")
def processor(pair):
    return pair[1]


@pytest.fixture(scope="module")
def model_parts(model):
    return parts_of(model)


@pytest.fixture(scope="module")
def one(processor):
    return prepare(processor, [QUESTION], [[random_image(31, 57)]])


@pytest.fixture(scope="module")
def published(one):
    """The arguments of the published pipeline for the same question."""
    tokenizer = tiny_tokenizer(image_token=None)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    return (
        images(random_image(31, 57), return_tensors="pt")["pixel_values"],
        tokenizer.encode(PROMPT, add_special_tokens=False),
        tokenizer.encode(QUESTION, add_special_tokens=False),
    )


@pytest.fixture(scope="module")
def family(pair):
    from mm_lens_adapters.omnifusion import OmniFusionFamily

    return OmniFusionFamily(*pair)
