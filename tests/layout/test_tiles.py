"""Tiles against a plain loop over their tokens, and against transformers' own cropping."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mm_lens.layout.tiles import Tile, cropped, lay, split, whole


def by_hand(size, tiles):
    """One row for each token: tile, row, column, their places in the grid, newline, box."""
    found = []
    for tile in tiles:
        x0, y0, x1, y1 = tile.rect
        for i in range(tile.rows):
            for j in range(tile.cols):
                width, height = (x1 - x0) / tile.cols, (y1 - y0) / tile.rows
                box = [x0 + j * width, y0 + i * height, x0 + (j + 1) * width, y0 + (i + 1) * height]
                box = [min(max(v, 0), size[1 - k % 2]) for k, v in enumerate(box)]
                if box[0] >= box[2] or box[1] >= box[3]:
                    box = [math.nan] * 4
                place = (tile.at[0] + i, tile.at[1] + j)
                found.append((tile.number, i, j, *place, False, *box))
            if tile.newline:
                found.append((-1, -1, -1, tile.at[0] + i, -1, True, *[math.nan] * 4))
    return found


@pytest.mark.parametrize(
    "tiles",
    [
        [Tile(3, 2, (0, 0, 50, 30))],
        [*split((30, 50), 2, 3, (2, 2)), Tile(2, 2, whole((30, 50)))],
        [Tile(2, 2, whole((30, 50))), Tile(3, 5, (-10, -4, 60, 33), 1, newline=True)],
        [Tile(4, 4, (60, 0, 100, 30))],  # all of it is padding
        [Tile(2, 2, whole((30, 50))), Tile(1, 0, whole((30, 50)), newline=True)],
    ],
)
def test_every_token_is_where_a_plain_loop_puts_it(tiles):
    size = (30, 50)
    geometry = lay(size, tiles)
    fields = ("tile", "row", "col", "grid_row", "grid_col", "newline")
    wanted = by_hand(size, tiles)
    assert len(geometry) == len(wanted) == sum(map(len, tiles))
    for k, row in enumerate(wanted):
        assert tuple(getattr(geometry, name)[k].item() for name in fields) == row[:6]
        torch.testing.assert_close(geometry.box[k], torch.tensor(row[6:]), equal_nan=True)


def test_tiles_are_numbered_in_reading_order_and_cover_the_picture():
    tiles = split((20, 60), 2, 3, (4, 5))
    assert [tile.number for tile in tiles] == [1, 2, 3, 4, 5, 6]
    assert [tile.at for tile in tiles] == [(i, j) for i in (0, 4) for j in (0, 5, 10)]
    assert sum((t.rect[2] - t.rect[0]) * (t.rect[3] - t.rect[1]) for t in tiles) == 20 * 60


@pytest.mark.parametrize("size", [(40, 64), (64, 40), (33, 33), (31, 90)])
@pytest.mark.parametrize(("shortest", "window"), [(20, (20, 20)), (24, (20, 20)), (20, (16, 12))])
def test_a_crop_is_that_of_transformers(size, shortest, window):
    """Ramps of rows and columns are cropped: at the edges stands what the rectangle says."""
    height, width = size
    rows, cols = np.mgrid[0:height, 0:width].astype(np.float32)
    ramps = np.stack([rows + 0.5, cols + 0.5, rows * 0], -1)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": shortest},
        crop_size={"height": window[0], "width": window[1]},
        do_rescale=False, do_normalize=False, do_convert_rgb=False,
    )  # fmt: skip
    picture = Image.fromarray((ramps * 2).astype(np.uint8))
    seen = processor(picture, return_tensors="pt")["pixel_values"][0].float() / 2
    x0, y0, x1, y1 = cropped(size, shortest, window)
    inner = seen[:, 3:-3, 3:-3]  # filters reach over the edge
    for channel, (low, high), n in ((0, (y0, y1), window[0]), (1, (x0, x1), window[1])):
        centres = low + (high - low) * (torch.arange(n) + 0.5) / n
        along = inner[channel].mean(1 if channel == 0 else 0)
        assert (along - centres[3:-3]).abs().max() < 0.75
