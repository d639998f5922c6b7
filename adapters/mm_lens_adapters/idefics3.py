"""Idefics3 and SmolVLM: tiles of the picture, each after its tag, then the whole picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from transformer_lens.model_bridge.supported_architectures.idefics3 import (
    Idefics3ArchitectureAdapter,
)

from mm_lens.layout.tiles import Size, Tile, split
from mm_lens_adapters.square_style import SquareFamily


class Idefics3Family(SquareFamily):
    """The family of `Idefics3ForConditionalGeneration` and `SmolVLMForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = (
        "Idefics3ForConditionalGeneration",
        "SmolVLMForConditionalGeneration",
    )
    rows_of: ClassVar = {}  # all tiles of a prompt are one row
    nested: ClassVar[bool] = True
    markers: ClassVar[str] = r"<(fake_token_around_image|global-img|row_\d+_col_\d+)>"

    def tiles(self, size: Size, inputs: Mapping[str, Any], k: int) -> list[Tile]:
        """Tiles in reading order, then the whole picture."""
        images, side = self.processor.image_processor, self.side
        _, rows, cols = images.get_number_of_image_patches(*size)
        return [*split(size, rows, cols, (side, side)), *super().tiles(size, inputs, k)]


class SmolVLMArchitectureAdapter(Idefics3ArchitectureAdapter):
    """TransformerLens's for Idefics3, whose modules it has."""
