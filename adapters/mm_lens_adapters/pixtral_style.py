"""Pixtral's tower: a picture as one grid, a break token behind each row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mm_lens.layout.tiles import Size, Tile, whole
from mm_lens.model.families import Family, Row

ROWS: Mapping[str, Row] = {"pixel_values": "image", "image_sizes": "image"}


def pixtral_tile(processor: Any, size: Size, inputs: Mapping[str, Any], k: int) -> Tile:
    """The grid of the k-th image, stretched to whole patches: `image_sizes` is that of the grid."""
    rows, cols = (
        int(edge) // (processor.patch_size * processor.spatial_merge_size)
        for edge in inputs["image_sizes"][k]
    )
    return Tile(rows, cols, whole(size))


class Mistral3Family(Family):
    """The family of `Mistral3ForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("Mistral3ForConditionalGeneration",)
    rows_of: ClassVar = ROWS
    markers: ClassVar[str] = r"\[IMG_(BREAK|END)\]"

    def tiles(self, size: Size, inputs: Mapping[str, Any], k: int) -> list[Tile]:
        """One grid; breaks are text."""
        return [pixtral_tile(self.processor, size, inputs, k)]

    def shown_sizes(self, inputs: Mapping[str, Any]) -> Any:
        """The pictures as resized."""
        return inputs["image_sizes"].tolist()
