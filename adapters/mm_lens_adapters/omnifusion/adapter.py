"""OmniFusion for TransformerLens and for mm_lens: components, layout and guards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Int, Int16
from PIL import Image
from torch import Tensor
from transformer_lens.model_bridge.generalized_components import LinearBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.llava import LlavaArchitectureAdapter

from mm_lens.layout.layout import PAD, VISUAL, TokenLayout
from mm_lens.model.families.declaration import make_noise
from mm_lens_adapters.llava_style import CroppedFamily

from .configuration import MARKERS

SEGMENTS = (
    "pad",
    "special",
    "prompt",
    "SOI",
    "image",
    "EOI",
    "USER",
    "question",
    "BOT",
    "answer",
)
_AFTER = {"SOI": "prompt", "EOI": "prompt", "USER": "question", "BOT": "answer"}
"""What the text behind each marker is."""


class OmniFusionArchitectureAdapter(LlavaArchitectureAdapter):
    """TransformerLens's adapter: LLaVA's, with hook points inside of the projector."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.default_prepend_bos = False  # the published pipeline has none
        assert self.component_mapping is not None, "set by the constructor above"
        projector = self.component_mapping["vision_projector"]
        projector.submodules = {
            "transformer_layer": GeneralizedComponent(name="transformer_layer"),
            "linear": LinearBridge(name="linear"),
        }


class OmniFusionFamily(CroppedFamily):
    """The family of `OmniFusionForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("OmniFusionForConditionalGeneration",)

    sizes: ClassVar[str] = "image_sizes"

    def layout(self, inputs: Mapping[str, Any]) -> TokenLayout:
        """Segments of the prompt; row, column and pixel box of each image token."""
        layout, mask = super().layout(inputs), inputs.get("attention_mask")
        decoding = mask is not None and mask.shape[-1] > layout.shape[1]
        segment = self._segments(inputs["input_ids"], layout, "answer" if decoding else "prompt")
        return replace(layout, segment=segment, segment_names=SEGMENTS)

    def _segments(
        self, tokens: Int[Tensor, "batch pos"], layout: TokenLayout, first: str
    ) -> Int16[Tensor, "batch pos"]:
        """Index into `SEGMENTS`; text before any marker is `first`."""
        # Which marker came last, by its position: markers further on win.
        place = torch.arange(tokens.shape[1], device=tokens.device)
        marker = torch.full_like(tokens, -1)
        segment = torch.full_like(tokens, SEGMENTS.index(first))
        for name in MARKERS:
            marker[tokens == self.config.marker_id(name)] = MARKERS.index(name)
        last = torch.where(marker >= 0, place, -1).cummax(dim=1).values
        since = torch.where(last >= 0, marker.gather(1, last.clamp(min=0)), -1)
        for k, name in enumerate(marker_name.strip("<>") for marker_name in MARKERS):
            segment[since == k] = SEGMENTS.index(_AFTER[name])
            segment[marker == k] = SEGMENTS.index(name)
        others = set(self.processor.tokenizer.all_special_ids) - {
            *map(self.config.marker_id, MARKERS),
            self.image_token_id,
        }
        special = torch.isin(tokens, torch.tensor(sorted(others), device=tokens.device))
        segment[special] = SEGMENTS.index("special")
        segment[layout.modality == PAD] = SEGMENTS.index("pad")
        segment[layout.modality == VISUAL] = SEGMENTS.index("image")
        return segment.short()

    def probe_image(self) -> Image.Image:
        """Noise, wider than high, so that the crop cuts it."""
        side = self.config.vision_config.image_size
        return make_noise((side, side + side // 3))
