"""DeepSeek-VL: one square of tokens over the whole picture, padded to a square."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from transformer_lens.model_bridge.generalized_components import (
    SiglipVisionEncoderBridge,
    VisionProjectionBridge,
)
from transformer_lens.model_bridge.supported_architectures.llava import LlavaArchitectureAdapter

from mm_lens.errors import InputError
from mm_lens.layout.tiles import Size, Tile
from mm_lens.model.families import Family, TowerGrid
from mm_lens_adapters.fitting import edge_sizes, require_equal


class DeepseekVLFamily(Family):
    """The family of `DeepseekVLForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("DeepseekVLForConditionalGeneration",)

    @property
    def side(self) -> int:
        """Tokens along each side: the tower's patches."""
        vision = self.config.vision_config
        side: int = vision.image_size // vision.patch_size
        return side

    def require_fit(self) -> None:
        """Pictures become squares of the tower's size, one token for each of its patches."""
        require_equal(
            self.processor,
            {"num_image_tokens": (self.side**2, "patches of vision_config")},
        )
        images, wanted = self.processor.image_processor, self.config.vision_config.image_size
        size = edge_sizes(images.size)
        if (size.height, size.width) != (wanted, wanted) or not (
            images.do_resize and images.do_pad
        ):
            raise InputError(
                f"The image processor makes pictures of {dict(size)} (do_resize="
                f"{images.do_resize}, do_pad={images.do_pad}), but the vision tower takes squares "
                f"of {wanted} px. Use the processor of the same checkpoint."
            )

    def tiles(self, size: Size, inputs: Mapping[str, Any], k: int) -> list[Tile]:
        """The longest edge is resized to the square's; the other is padded on both sides."""
        images = self.processor.image_processor
        target = self.config.vision_config.image_size
        edges = []
        for edge in (size[1], size[0]):
            resized = max(round(edge * (target / max(size))), images.min_size)
            before = (target - resized) // 2
            edges.append([x * edge / resized for x in (-before, target - before)])
        (x0, x1), (y0, y1) = edges
        return [Tile(self.side, self.side, (x0, y0, x1, y1))]

    def tower_grid(self, inputs: Mapping[str, Any]) -> TowerGrid | None:
        """The tower sees each picture once."""
        pixels = inputs.get("pixel_values")
        return None if pixels is None else TowerGrid([1] * len(pixels), self.side, self.side)


class DeepseekVLArchitectureAdapter(LlavaArchitectureAdapter):
    """TransformerLens's for LLaVA: a SigLIP tower, and other names of tower and projector."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        assert self.component_mapping is not None, "set by the constructor above"
        self.component_mapping["vision_encoder"] = SiglipVisionEncoderBridge(
            name="model.vision_model", config=self.cfg
        )
        self.component_mapping["vision_projector"] = VisionProjectionBridge(name="model.aligner")
