"""LLaVA-1.5: one square of the picture's centre; or a Pixtral tower in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from mm_lens.layout.tiles import Size, Tile
from mm_lens.model.families import TowerGrid
from mm_lens_adapters.llava_style import CroppedFamily
from mm_lens_adapters.pixtral_style import ROWS, pixtral_tile


class LlavaFamily(CroppedFamily):
    """The family of `LlavaForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("LlavaForConditionalGeneration",)
    rows_of: ClassVar = ROWS
    markers: ClassVar[str] = r"\[IMG_(BREAK|END)\]"

    @property
    def is_pixtral(self) -> bool:
        """Whether the tower takes pictures of any shape."""
        return bool(self.config.vision_config.model_type == "pixtral")

    def require_fit(self) -> None:
        """The processor makes as many tokens as the model."""
        if not self.is_pixtral:
            super().require_fit()
            self.require_select()

    def require_size(self, size: Size) -> None:
        """A Pixtral tower bounds the longest edge."""
        if not self.is_pixtral:
            super().require_size(size)

    @classmethod
    def customise(cls, adapter: Any, attention: str) -> None:
        """TransformerLens takes every tower for CLIP or SigLIP."""
        if adapter.cfg.vision_config.model_type == "pixtral":
            tower = GeneralizedComponent(name="model.vision_tower")
            adapter.component_mapping["vision_encoder"] = tower
        super().customise(adapter, attention)

    def tiles(self, size: Size, inputs: Mapping[str, Any], k: int) -> list[Tile]:
        """One square of the centre, or one grid of the whole picture."""
        if self.is_pixtral:
            return [pixtral_tile(self.processor, size, inputs, k)]
        return super().tiles(size, inputs, k)

    def shown_sizes(self, inputs: Mapping[str, Any]) -> Any:
        """The pictures as resized."""
        if self.is_pixtral:
            return inputs["image_sizes"].tolist()
        return [tuple(inputs["pixel_values"].shape[-2:])] * len(inputs["pixel_values"])

    def tower_grid(self, inputs: Mapping[str, Any]) -> TowerGrid | None:
        """A Pixtral tower sees grids of many shapes."""
        return None if self.is_pixtral else super().tower_grid(inputs)
