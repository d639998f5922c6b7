"""Where each token of one image comes from: a record that families fill."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float32, Int16
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageGeometry:
    """Where each language-model token of one image comes from, in the order of insertion.

    `tile` 0 is the overview of the whole image, 1, 2, … are the high-resolution tiles in reading
    order. `row` and `col` count patches inside the tile, `grid_row` and `grid_col` inside the grid
    that all high-resolution tiles form together (before any cropping of padding); for the overview
    they equal `row` and `col`. A newline token has only a `grid_row`: the row that it ends.
    -1 stands where an index does not apply. `box` is (x0, y0, x1, y1) in pixels of the original
    image, clipped to it; NaN where the token stands for no pixel. `size` is (height, width).
    """

    size: tuple[int, int]
    tile: Int16[Tensor, " n"]
    row: Int16[Tensor, " n"]
    col: Int16[Tensor, " n"]
    grid_row: Int16[Tensor, " n"]
    grid_col: Int16[Tensor, " n"]
    newline: Bool[Tensor, " n"]
    box: Float32[Tensor, "n 4"]

    def __len__(self) -> int:
        return len(self.tile)
