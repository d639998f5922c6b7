"""Which token of the language model each patch of the vision tower becomes.

The tower sees tiles, each a grid of patches (and a class token, which is left out). Most patches
become one visual token of the language model: such a patch is the same token, under the same key.
Those that are cut away with the padding of a tile are tokens of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from mm_lens.layout.layout import TokenLayout
from mm_lens.model.families import Family


@dataclass(frozen=True)
class Patches:
    """Every patch that the tower sees in a forward pass, tile by tile.

    Attributes:
        tile: row of the tower's tensors.
        patch: index within the tile.
        row: row of the batch.
        position: of the token it becomes, from the first attended one; beyond the last one for a
            patch that becomes none.
        per_tile: patches in a tile.
    """

    tile: Int64[Tensor, " n"]
    patch: Int64[Tensor, " n"]
    row: Int64[Tensor, " n"]
    position: Int64[Tensor, " n"]
    per_tile: int


def find_patches(family: Family, layout: TokenLayout, inputs: Mapping[str, Any]) -> Patches | None:
    """The patches of a forward pass; None if the tower does not run, or its tiles are unknown."""
    grid = family.tower_grid(inputs)
    if grid is None or not grid.tiles:
        return None
    layout, per_tile = layout.to("cpu"), grid.rows * grid.cols
    tiles, n_images = torch.tensor(grid.tiles), torch.tensor([*map(len, layout.image_sizes)])
    first_tile, first_image = tiles.cumsum(0) - tiles, n_images.cumsum(0) - n_images
    image_row = torch.arange(len(n_images)).repeat_interleave(n_images)
    tile_row = image_row.repeat_interleave(tiles)

    attended = layout.mask("all")
    # Of patches without a token: counted on behind the tokens of their row, whatever the batch.
    place = torch.arange(len(tile_row) * per_tile)
    before = first_tile[first_image.clamp(max=len(tiles) - 1)][tile_row] * per_tile
    position = attended.sum(1)[tile_row].repeat_interleave(per_tile)
    position = position + place - before.repeat_interleave(per_tile)
    row, column = ((layout.row >= 0) & (layout.tile >= 0)).nonzero(as_tuple=True)
    at = row, column
    tile = first_tile[first_image[row] + layout.image[at].long()] + layout.tile[at].long()
    patch = layout.row[at].long() * grid.cols + layout.col[at].long()
    position[tile * per_tile + patch] = (attended.cumsum(1) - 1)[at]

    return Patches(
        tile=place // per_tile,
        patch=place % per_tile,
        row=tile_row.repeat_interleave(per_tile),
        position=position,
        per_tile=per_tile,
    )
