"""Layouts of processed pictures, and the native model's features."""

from __future__ import annotations

import math
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
)
from transformers.image_processing_utils import select_best_resolution

from mm_lens.layout.layout import VISUAL, TokenLayout

# (height, width): square, both orientations, odd, smaller than a tile, thinner than a patch.
SIZES = [
    (64, 64),
    (37, 91),
    (91, 37),
    (29, 31),
    (200, 100),
    (100, 250),
    (13, 400),
    (400, 13),
    (1, 40),
    (40, 1),
    (7, 2000),
    (2000, 7),
    (3, 4000),
    (5, 5),
    (1, 1),
]


Inputs = dict[str, Any]


def processed(
    processor: LlavaNextProcessor, text: str | list[str], images: list[Image.Image], **kwargs: Any
) -> Inputs:
    kwargs = {"return_tensors": "pt", "padding": True, **kwargs}
    return dict(processor(text=text, images=images or None, **kwargs))


def native(model: LlavaNextForConditionalGeneration, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """(projected features [tiles of all images, patches, d], merged sequence [batch, pos, d])."""
    seen: dict[str, Tensor] = {}
    inner = model.model
    handles = [
        inner.multi_modal_projector.register_forward_hook(
            lambda module, args, out: seen.update(projected=out)
        ),
        inner.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.update(merged=kwargs["inputs_embeds"]),
            with_kwargs=True,
        ),
    ]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return seen.get("projected", torch.empty(0)), seen["merged"]


def check_features(
    model: LlavaNextForConditionalGeneration, inputs: Inputs, tokens: TokenLayout
) -> None:
    """Each position of the native merged sequence is what the layout says it is."""
    projected, merged = native(model, inputs)
    vision: Any = model.config.vision_config
    side = vision.image_size // vision.patch_size
    embedded = model.get_input_embeddings()(inputs["input_ids"])
    tile_of_image = 0  # the tiles of all images stand in one list
    for i in range(tokens.shape[0]):
        for k in range(len(tokens.image_sizes[i])):
            here = (tokens.image[i] == k).nonzero().squeeze(1)
            for p in here.tolist():
                if tokens.newline[i, p]:
                    expected = model.model.image_newline
                else:
                    patch = tokens.row[i, p] * side + tokens.col[i, p]
                    expected = projected[tile_of_image + tokens.tile[i, p], patch]
                torch.testing.assert_close(merged[i, p], expected, rtol=0, atol=0)
            tile_of_image += n_tiles(model.config, tokens.image_sizes[i][k])
        not_visual = tokens.modality[i] != VISUAL
        torch.testing.assert_close(merged[i][not_visual], embedded[i][not_visual], rtol=0, atol=0)
    assert tile_of_image == len(projected)


def n_tiles(config: Any, size: tuple[int, int]) -> int:
    best = select_best_resolution(size, config.image_grid_pinpoints)
    return 1 + int(math.prod(best)) // int(config.vision_config.image_size) ** 2
