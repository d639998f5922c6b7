"""Tiles, and where on the picture they come from."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from demo_training.fusions import FUSIONS
from demo_training.scenes import pictures
from demo_training.scenes.reading import tokenizer
from demo_training.scenes.train import SIZE
from mm_lens.data.sets.scenes.drawing import make_scene


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_tiles_show_what_their_windows_hold(name: str) -> None:
    """Of a ramp of brightness, in x and in y, and of what the processor counts as image tokens."""
    fusion = FUSIONS[name](tokenizer(), SIZE)
    for seed in (0, 1, 4):
        scene = make_scene(random.Random(seed))
        shown = pictures.show(fusion, scene)
        assert shown.tiles.shape[1:] == (3, SIZE.tile, SIZE.tile)
        assert shown.said().shape[:2] == (len(shown.tiles), (SIZE.tile // 8) ** 2)
        placeholder = fusion.processor.tokenizer.vocab["<image>"]
        assert shown.prefix.count(placeholder) >= (SIZE.tile // 8) ** 2
        down, across = np.mgrid[: scene.height, : scene.width] + 0.5
        ramp = np.stack([across, down, 0 * down + 255], -1) / [scene.width, scene.height, 1] * 250
        ramp[..., 2] = 255
        tiles = fusion.tiles(Image.fromarray(ramp.round().astype(np.uint8)))
        for tile, window in zip(tiles.float(), shown.windows, strict=True):
            ruler = (torch.arange(SIZE.tile) + 0.5) / SIZE.tile
            inside = tile[2] == 255  # padding is black
            wanted = (window.left + window.width * ruler) / scene.width * 250
            away = (tile[0] - wanted[None])[inside]
            assert away.abs().median() < 2
            wanted = (window.top + window.height * ruler) / scene.height * 250
            assert (tile[1] - wanted[:, None])[inside].abs().median() < 2
