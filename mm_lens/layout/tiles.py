"""Tiles: rectangles of tokens over rectangles of a picture. What a family says of where tokens lie.

Pictures are cut, stretched, cropped and padded in many ways; what is left for the language model is
always a few rectangles of tokens, each row by row, each over a rectangle of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from einops import rearrange, repeat

from mm_lens.layout.geometry import ImageGeometry

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of tokens, in the order in which the model inserts them: row by row.

    Attributes:
        rows, cols: of tokens.
        rect: (x0, y0, x1, y1) that they show, in pixels of the picture as given. It may reach
            beyond the picture, where a model pads.
        number: 0 for the overview of the whole picture, 1, 2, … for tiles of it.
        at: row and column of the first token in the grid that the tiles of one picture form
            together; (0, 0) for an overview.
        newline: whether each row ends with a token that stands for no pixel.
    """

    rows: int
    cols: int
    rect: tuple[float, float, float, float]
    number: int = 0
    at: tuple[int, int] = (0, 0)
    newline: bool = False

    def __len__(self) -> int:
        return self.rows * (self.cols + self.newline)


def whole(size: Size) -> tuple[float, float, float, float]:
    """The rectangle of a whole picture of (height, width)."""
    return (0.0, 0.0, float(size[1]), float(size[0]))


def cropped(size: Size, shortest: int, window: Size) -> tuple[float, float, float, float]:
    """What is left of a picture resized to its shortest edge and cropped at the centre.

    Args:
        size: (height, width) of the picture.
        shortest: edge that it is resized to; the long one is cut to whole pixels.
        window: (height, width) of the crop, whose margin is cut to whole pixels too.
    """
    edges = []
    for axis in (1, 0):
        resized = shortest * size[axis] // min(size)
        margin = (resized - window[axis]) // 2
        edges.append([x * size[axis] / resized for x in (margin, margin + window[axis])])
    (x0, x1), (y0, y1) = edges
    return x0, y0, x1, y1


def split(size: Size, rows: int, cols: int, side: Size, first: int = 1) -> list[Tile]:
    """`rows` × `cols` equal tiles of a picture, in reading order; `side` is a tile's, in tokens."""
    height, width = size[0] / rows, size[1] / cols
    return [
        Tile(
            *side,
            (j * width, i * height, (j + 1) * width, (i + 1) * height),
            first + i * cols + j,
            (i * side[0], j * side[1]),
        )
        for i in range(rows)
        for j in range(cols)
    ]


def lay(size: Size, tiles: Sequence[Tile]) -> ImageGeometry:
    """Where each token of a picture of (height, width) lies. Cached: its tensors are shared."""
    return _lay(size, tuple(tiles))


@lru_cache(maxsize=512)
def _lay(size: Size, tiles: tuple[Tile, ...]) -> ImageGeometry:
    parts = [_lay_tile(size, tile) for tile in tiles]
    fields = [torch.cat(values) for values in zip(*parts, strict=True)]
    *indices, newline, box = fields
    tile, row, col, grid_row, grid_col = (index.short() for index in indices)
    return ImageGeometry(size, tile, row, col, grid_row, grid_col, newline, box.float())


def _lay_tile(size: Size, tile: Tile) -> list[torch.Tensor]:
    """Tile, row, column, row and column of the grid, newline and box of each token."""
    width = tile.cols + tile.newline
    row = repeat(torch.arange(tile.rows), "row -> (row col)", col=width)
    col = repeat(torch.arange(width), "col -> (row col)", row=tile.rows)
    newline = col == tile.cols
    number = torch.full_like(row, tile.number).masked_fill(newline, -1)
    x0, y0, x1, y1 = tile.rect
    xs = x0 + (x1 - x0) * torch.arange(tile.cols + 2).double() / tile.cols
    ys = y0 + (y1 - y0) * torch.arange(tile.rows + 1).double() / tile.rows
    edges = torch.stack([xs[col], ys[row], xs[col + 1], ys[row + 1]], -1)
    limit = torch.tensor([size[1], size[0]] * 2).double()
    box = edges.clamp(min=0).minimum(limit)
    empty = newline | (box[:, 0] >= box[:, 2]) | (box[:, 1] >= box[:, 3])
    box = box.masked_fill(rearrange(empty, "n -> n 1"), torch.nan)
    return [
        number,
        row.masked_fill(newline, -1),
        col.masked_fill(newline, -1),
        row + tile.at[0],
        (col + tile.at[1]).masked_fill(newline, -1),
        newline,
        box,
    ]
