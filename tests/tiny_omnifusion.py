"""A small random OmniFusion of the real classes and its processor, made as `tiny` makes its."""

from __future__ import annotations

import copy
from functools import cache

import torch
from mm_lens_adapters.omnifusion import (
    OmniFusionConfig,
    OmniFusionForConditionalGeneration,
    OmniFusionProcessor,
    add_markers,
)
from tiny import VOCAB_SIZE, randomise, tiny_tokenizer
from transformers import CLIPVisionConfig, MistralConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SIDE, PATCH = 20, 4  # of the tower's window, in pixels: 5×5 patches


def tiny_omnifusion(
    seed: int = 0, **overrides: object
) -> tuple[OmniFusionForConditionalGeneration, OmniFusionProcessor]:
    """A random float32 OmniFusion in eval mode and its processor; yours to change."""
    return copy.deepcopy(_build(seed, tuple(sorted(overrides.items()))))


@cache
def _build(
    seed: int, overrides: tuple[tuple[str, object], ...]
) -> tuple[OmniFusionForConditionalGeneration, OmniFusionProcessor]:
    tokenizer = tiny_tokenizer(image_token=None)
    add_markers(tokenizer, VOCAB_SIZE)
    config = OmniFusionConfig(
        **{
            "vision_config": CLIPVisionConfig(
                hidden_size=20,
                num_attention_heads=2,
                num_hidden_layers=4,
                intermediate_size=36,
                projection_dim=14,
                image_size=SIDE,
                patch_size=PATCH,
            ),
            "text_config": MistralConfig(
                vocab_size=VOCAB_SIZE,
                hidden_size=24,
                num_attention_heads=4,
                num_key_value_heads=2,
                num_hidden_layers=3,
                intermediate_size=44,
                max_position_embeddings=2048,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            ),
            "projector_num_heads": 5,
            "projector_intermediate_size": 28,
            "image_seq_length": (SIDE // PATCH) ** 2,
            "architectures": ["OmniFusionForConditionalGeneration"],
            **dict(overrides),
        }
    )
    processor = OmniFusionProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OmniFusionForConditionalGeneration(config).float().eval()
        randomise(model)
        model.get_input_embeddings().special.data.normal_()
    return model, processor
