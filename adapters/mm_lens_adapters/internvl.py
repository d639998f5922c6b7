"""InternVL: tiles of the picture, then a thumbnail where there are several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.llava import LlavaArchitectureAdapter
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from mm_lens.layout.tiles import Size, Tile, split
from mm_lens_adapters.fitting import edge_sizes
from mm_lens_adapters.square_style import SquareFamily


class InternVLFamily(SquareFamily):
    """The family of `InternVLForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("InternVLForConditionalGeneration",)
    rows_of: ClassVar = {"pixel_values": "tile"}
    markers: ClassVar[str] = r"</?img>"
    probe_size: ClassVar[Size] = (40, 40)  # one tile

    def tiles(self, size: Size, inputs: Mapping[str, Any], k: int) -> list[Tile]:
        """Tiles in reading order, then the whole picture; a single tile is the whole picture."""
        images, side = self.processor.image_processor, self.side
        edge = edge_sizes(images.size)
        cut = self.processor.images_kwargs.get("crop_to_patches", images.crop_to_patches)
        cols, rows = (
            get_optimal_tiled_canvas(
                size, (edge.height, edge.width), images.min_patches, images.max_patches
            )
            if cut and images.max_patches > 1
            else (1, 1)
        )
        tiles = split(size, rows, cols, (side, side)) if rows * cols > 1 else []
        return [*tiles, *super().tiles(size, inputs, k)]


class InternVLArchitectureAdapter(LlavaArchitectureAdapter):
    """TransformerLens's for LLaVA, with a tower of another kind."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        assert self.component_mapping is not None, "set by the constructor above"
        self.component_mapping["vision_encoder"] = GeneralizedComponent(name="model.vision_tower")
