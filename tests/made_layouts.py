"""Layouts by hand: which position is what can be read off the call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mm_lens.layout.layout import ImageGeometry, TokenLayout

NAN = float("nan")
IMAGE, WORD, PADDING = 9, 5, 0
Place = tuple[int, int, int, int, int, tuple[float, float, float, float]]


def token(tile: int, row: int, col: int, *box: float, at: tuple[int, int] | None = None) -> Place:
    """A token of a patch; its place in the grid of all tiles is `at`, or that in its own."""
    grid_row, grid_col = at or (row, col)
    return tile, row, col, grid_row, grid_col, box or (NAN,) * 4  # type: ignore[return-value]


def newline(grid_row: int) -> Place:
    """The token that ends a row of the grid."""
    return -1, -1, -1, grid_row, -1, (NAN,) * 4


def image(height: int, width: int, *places: Place) -> ImageGeometry:
    """An image of this size in pixels, and its tokens in order."""
    fields = list(zip(*places, strict=True))
    short = [torch.tensor(values, dtype=torch.int16) for values in fields[:5]]
    return ImageGeometry(
        (height, width),
        *short,
        newline=short[0] == -1,
        box=torch.tensor(fields[5], dtype=torch.float32),
    )


def overview(height: int, width: int, rows: int, cols: int) -> list[Place]:
    """Tokens of equal boxes over a whole image, in reading order."""
    y, x = height / rows, width / cols
    return [
        token(0, r, c, c * x, r * y, (c + 1) * x, (r + 1) * y)
        for r in range(rows)
        for c in range(cols)
    ]


def laid_out(*rows: Sequence[Any]) -> TokenLayout:
    """A layout of rows that hold numbers of words (negative: of padding) and images."""
    ids = [
        [
            i
            for part in row
            for i in (
                [IMAGE] * len(part)
                if isinstance(part, ImageGeometry)
                else [WORD if part > 0 else PADDING] * abs(part)
            )
        ]
        for row in rows
    ]
    tokens = torch.tensor(ids)
    images = [part for row in rows for part in row if isinstance(part, ImageGeometry)]
    return TokenLayout.build(tokens, tokens != PADDING, image_token_id=IMAGE, images=images)


def places(mask: torch.Tensor) -> list[list[int]]:
    """Positions in each row."""
    return [row.nonzero()[:, 0].tolist() for row in mask]
