"""LLaVA-NeXT (1.6): CLIP tower, two-layer projector, anyres tiles, Llama or Mistral."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from PIL import Image

from mm_lens.layout.layout import TokenLayout
from mm_lens_adapters import llava_next_layout as geometry
from mm_lens_adapters.llava_style import LlavaStyleFamily


class LlavaNextFamily(LlavaStyleFamily):
    """The family of `LlavaNextForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("LlavaNextForConditionalGeneration",)

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self._counts: dict[tuple[int, int], int] = {}

    def layout(self, inputs: Mapping[str, Any]) -> TokenLayout:
        """What every position is; see `llava_next_layout`."""
        if (text := self.text_layout(inputs)) is not None:
            return text
        inputs = {**inputs, "attention_mask": self.mask(inputs)}
        return geometry.layout(inputs, self.config, self.processor)

    def image_token_counts(self, inputs: Mapping[str, Any]) -> list[int] | None:
        """How many tokens each image makes, newlines included."""
        if inputs.get("pixel_values") is None:
            return None
        return [self._tokens_of(height, width) for height, width in inputs["image_sizes"].tolist()]

    def _tokens_of(self, height: int, width: int) -> int:
        # Asked for in every forward pass: a look into a dict, not a key made of the configuration.
        if (height, width) not in self._counts:
            found = geometry.image_geometry(self.config, self.processor, (height, width))
            self._counts[height, width] = len(found)
        return self._counts[height, width]

    def probe_image(self) -> Image.Image:
        """Noise of an extreme aspect ratio: most of its tiles is padding, which makes no tokens."""
        side = self.config.vision_config.image_size
        size = (2 * side, side // 5)
        noise = torch.rand(size[1], size[0], 3, generator=torch.Generator().manual_seed(0))
        return Image.fromarray((noise * 255).byte().numpy())
