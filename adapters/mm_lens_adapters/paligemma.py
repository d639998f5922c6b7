"""PaliGemma: one square; the prompt sees all of itself."""

from __future__ import annotations

from typing import Any, ClassVar

from transformer_lens.model_bridge.generalized_components import SiglipVisionEncoderBridge
from transformer_lens.model_bridge.supported_architectures.llava import LlavaArchitectureAdapter

from mm_lens_adapters.square_style import SquareFamily


class PaliGemmaFamily(SquareFamily):
    """The family of `PaliGemmaForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("PaliGemmaForConditionalGeneration",)
    drop: ClassVar[frozenset[str]] = frozenset({"labels"})
    bidirectional: ClassVar[bool] = True
    behind_image: ClassVar[str] = ""  # its processor writes <bos> there, and a newline at the end
    needs_image: ClassVar[str] = "its processor writes the beginning of the prompt behind an image"
    exceptions: ClassVar = {
        "text only": needs_image,
        "row without image": needs_image,
    }


class PaliGemmaArchitectureAdapter(LlavaArchitectureAdapter):
    """TransformerLens's for LLaVA: a SigLIP tower, Gemma's norms."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.rmsnorm_uses_offset = True
        assert self.component_mapping is not None, "set by the constructor above"
        self.component_mapping["vision_encoder"] = SiglipVisionEncoderBridge(
            name="model.vision_tower", config=self.cfg
        )
