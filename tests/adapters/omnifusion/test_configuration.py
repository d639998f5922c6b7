"""Configurations: the published sizes, and what is refused."""

from __future__ import annotations

import pytest
from mm_lens_adapters.omnifusion import (
    OmniFusionConfig,
)
from transformers import (
    MistralConfig,
)


def test_defaults_are_the_published_sizes():
    config = OmniFusionConfig()
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.image_size) == (1024, 24, 336)
    assert (text.model_type, text.hidden_size, text.vocab_size) == ("mistral", 4096, 32000)
    assert (config.projector_num_heads, config.projector_intermediate_size) == (4, 2048)
    assert config.image_seq_length == (vision.image_size // vision.patch_size) ** 2 == 576
    assert config.image_token_id == 32004


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"image_token_index": 7}, "leave it out"),
        ({"vision_feature_layer": [-2, -5]}, "two-encoder"),
        ({"vision_feature_select_strategy": "full"}, "class token"),
    ],
)
def test_configurations_that_are_not_omnifusion(entries, message):
    with pytest.raises(ValueError, match=message):
        OmniFusionConfig(text_config=MistralConfig(vocab_size=50), **entries)
