"""Cohere2 Vision (Command A Vision): tiles of the picture, then the whole of it behind several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from transformer_lens.model_bridge.generalized_components import (
    SiglipVisionEncoderBridge,
    VisionProjectionBridge,
)
from transformer_lens.model_bridge.supported_architectures.cohere import Cohere2ArchitectureAdapter

from mm_lens.layout.tiles import Size, Tile, split, whole
from mm_lens.model.families import Family
from mm_lens_adapters.fitting import edge_sizes


class Cohere2VisionFamily(Family):
    """The family of `Cohere2VisionForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("Cohere2VisionForConditionalGeneration",)
    rows_of: ClassVar = {"pixel_values": "tile"}
    markers: ClassVar[str] = r"<\|(START_OF_IMG|END_OF_IMG|IMG_LINE_BREAK)\|>"
    probe_size: ClassVar[Size] = (40, 40)  # one tile

    def tiles(self, size: Size, inputs: Mapping[str, Any], k: int) -> list[Tile]:
        """Tiles in reading order, then the whole picture; a single tile is the whole picture."""
        # Its module needs torchvision, as the processor does.
        from transformers.models.cohere2_vision.image_processing_cohere2_vision import (
            get_optimal_tiled_canvas,
        )

        images, side = self.processor.image_processor, self.processor.patch_size
        edge = edge_sizes(images.size)
        cols, rows = 1, 1
        passed = getattr(self.processor, "images_kwargs", {})  # goes before what `images` has
        if passed.get("crop_to_patches", images.crop_to_patches):
            cols, rows = get_optimal_tiled_canvas(
                size, (edge.height, edge.width), images.min_patches, images.max_patches
            )
        tiles = split(size, rows, cols, (side, side)) if rows * cols > 1 else []
        return [*tiles, Tile(side, side, whole(size))]


class Cohere2VisionArchitectureAdapter(Cohere2ArchitectureAdapter):
    """TransformerLens's for Cohere2's text, a SigLIP tower before it."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.is_multimodal = True
        self.cfg.logit_scale = 1.0  # its own head, unlike that of Cohere2, scales nothing
        self._extract_vision_dims(cfg)
        for name in ("embed", "rotary_emb", "blocks", "ln_final"):
            part = self.components[name]
            part.name = str(part.name).replace("model.", "model.language_model.", 1)
        self.components["vision_encoder"] = SiglipVisionEncoderBridge(
            name="model.vision_tower", config=self.cfg
        )
        self.components["vision_projector"] = VisionProjectionBridge(
            name="model.multi_modal_projector"
        )
