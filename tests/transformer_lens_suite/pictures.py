"""Pictures for tests that know none: below the bridge, tokens become those of an image.

The prompt keeps its length, so what the tests say of shapes holds, and the plain bridge and ours
run the same model on the same tokens and pixels. It is ours that knows, from there on, that there
is an image: its hook points per modality, layouts, caches and refusals are at work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tiny import IMAGE_TOKEN, random_image

SMALLEST = {"image_size": 4, "patch_size": 4, "grid": ((1, 2),)}
"""Tiles of one patch: a picture of few tokens, since many tests have prompts of five to ten."""

LEAST_TEXT = 2
"""Tokens of text that a prompt keeps: the one before its picture, and one after."""


def show_pictures(model: Any, processor: Any, note: Callable[[], None]) -> None:
    """Have every forward pass of `model` that can take one see a picture in each row.

    One that cannot: it starts from embeddings, goes on from a cache (which has the picture), or has
    a prompt that is too short.

    Args:
        model: a LLaVA-NeXT whose image token is the first id after the vocabulary.
        processor: its processor.
        note: called in each pass that shows one.
    """
    _open_vocabulary(model)
    picture = processor(
        images=[random_image(4, 4)],
        text=IMAGE_TOKEN,
        return_tensors="pt",
        input_data_format="channels_last",
    )
    own = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    n_tokens, marker = int((picture["input_ids"] == own).sum()), model.config.image_token_id

    def show(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tokens = args[0] if args else kwargs.get("input_ids")
        past = kwargs.get("past_key_values")
        if (
            tokens is None
            or kwargs.get("pixel_values") is not None
            or (past is not None and past.get_seq_length() > 0)
        ):
            return None
        mask = kwargs.get("attention_mask")
        real = torch.ones_like(tokens) if mask is None or mask.ndim != 2 else mask
        if real.shape != tokens.shape or int(real.sum(1).min()) < n_tokens + LEAST_TEXT:
            return None
        note()
        order = real.cumsum(1) * (real != 0)  # 1 at the first real token
        shown = tokens.masked_fill((order > 1) & (order <= 1 + n_tokens), marker)
        rows = len(tokens)
        pixels = {
            "pixel_values": picture["pixel_values"].to(module.dtype).repeat(rows, 1, 1, 1, 1),
            "image_sizes": picture["image_sizes"].repeat(rows, 1),
        }
        return (), {**kwargs, **pixels, "input_ids": shown}

    model.register_forward_pre_hook(show, with_kwargs=True)


def _open_vocabulary(model: Any) -> None:
    """Let the token table take the placeholder, whose row the picture replaces."""

    class Table(torch.nn.Embedding):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input.clamp(max=self.num_embeddings - 1))

    model.get_input_embeddings().__class__ = Table
