"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL (dense and with experts) and Qwen3.5."""

from __future__ import annotations

from typing import Any, ClassVar

from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.qwen2_5_vl import (
    Qwen2_5_VLArchitectureAdapter,
)

from mm_lens_adapters.grid_style import GridFamily


class QwenVLFamily(GridFamily):
    """All of Qwen's vision-language models since the second."""

    architectures: ClassVar[tuple[str, ...]] = (
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
    )
    markers: ClassVar[str] = r"<\|vision_(start|end)\|>"


class Qwen2VLArchitectureAdapter(Qwen2_5_VLArchitectureAdapter):
    """TransformerLens's for Qwen2.5-VL, whose tower is another one."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        assert self.component_mapping is not None, "set by the constructor above"
        self.component_mapping["vision_encoder"] = GeneralizedComponent(name="model.visual")
