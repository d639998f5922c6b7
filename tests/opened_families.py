"""Bridge and native model of the same weights, of families that differ in what the core does.

Positions of several axes (Qwen, GLM), features between blocks (Qwen3-VL), blocks without attention
(Qwen3.5), masks of image tokens and windows (Gemma 3), attention to chosen blocks (MiniMax M3).
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tiny import random_image
from tiny_families import build

import mm_lens

NAMES = ("qwen2.5-vl", "qwen3-vl", "qwen3.5", "glm-4v", "gemma3", "minimax-m3")


@cache
def share_family(name, attention="sdpa"):
    """As `open_family`, for tests that leave both as they were: one pair for all of them."""
    return open_family(name, attention)


def build_native(name, attention="sdpa"):
    """The native model alone, and its processor."""
    native, processor = build(name)
    native.set_attn_implementation(attention)
    native.generation_config.pad_token_id = 3
    return native, processor


def open_family(name, attention="sdpa", **options):
    """A bridge, and the native model of the same weights."""
    (native, _), (model, processor) = build_native(name, attention), build_native(name, attention)
    bridge = mm_lens.load(
        hf_model=model, processor=processor, attention=attention, check=False, **options
    )
    bridge.cfg.model_name = name
    return bridge, native


def make_inputs(bridge, rows=(True, False), side=None, seed=0, before=3, after=(6, 4)):
    """Prompts of unequal length, with an image or without: ragged, padded on `side`.

    The words are the same for every seed, the images are not.
    """
    if side == "left" and "minimax" in bridge.cfg.model_name:
        pytest.skip("prepare refuses it: a row padded there is another than alone")
    words = "What is it that we see here, and what is it not? " * 5
    token = getattr(bridge.processor, "image_token", None)
    token = getattr(bridge.processor, "boi_token", None) or token
    prompts = [
        words[:before] + (token if has_image else "") + words[-after[i % len(after)] :]
        for i, has_image in enumerate(rows)
    ]
    images = [
        random_image(16 + 8 * (i % 2), 24, 7 * seed + i) if has_image else None
        for i, has_image in enumerate(rows)
    ]
    return bridge.prepare(prompts, images, chat_template=False, padding_side=side)


def run_native(native, inputs, **options):
    """Logits of the native model, whose positions TransformerLens derives from the mask."""
    positions = {}
    if not hasattr(native.model, "rope_deltas"):
        mask = inputs["attention_mask"]
        positions = {"position_ids": (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)}
    with torch.no_grad():
        return native(**inputs.native, **positions, **options).logits
