"""Families that show a picture, or each tile of it, as one square of tokens."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from math import isqrt
from typing import Any

from mm_lens.layout.tiles import Size, Tile, whole
from mm_lens.model.families import Family


class SquareFamily(Family, ABC):
    """The picture is stretched to one square; a subclass may add tiles."""

    @property
    def side(self) -> int:
        """Tokens along each side, from the number that the processor writes."""
        processor = self.processor
        names = ("image_seq_length", "image_seq_len")
        count = next(n for name in names if (n := getattr(processor, name, None)) is not None)
        return isqrt(count)

    def tiles(self, size: Size, inputs: Mapping[str, Any], k: int) -> list[Tile]:
        """One square over the whole picture."""
        return [Tile(self.side, self.side, whole(size))]
