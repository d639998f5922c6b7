"""LLaVA-NeXT (1.6): CLIP tower, two-layer projector, anyres tiles, Llama or Mistral."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from PIL import Image
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from mm_lens.errors import InputError
from mm_lens.layout.layout import TokenLayout
from mm_lens_adapters import llava_next_layout as geometry
from mm_lens_adapters.fitting import image_sizes, require_equal
from mm_lens_adapters.llava_style import LlavaStyleFamily


class LlavaNextFamily(LlavaStyleFamily):
    """The family of `LlavaNextForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("LlavaNextForConditionalGeneration",)

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        tower, chosen = "vision_config.model_type", "vision_feature_select_strategy"
        class_token = int(self.config.vision_config.model_type == "clip_vision_model")
        require_equal(
            processor,
            {
                "num_additional_image_tokens": (class_token, f"the class token of {tower}"),
                chosen: (getattr(self.config, chosen), f"{chosen} of config.json"),
            },
        )
        grids = [
            [list(map(int, pair)) for pair in owner.image_grid_pinpoints]
            for owner in (processor.image_processor, self.config)
        ]
        if grids[0] != grids[1]:
            raise InputError(
                f"The image processor has image_grid_pinpoints={grids[0]}, but config.json has "
                f"{grids[1]}: they cut pictures in two ways. Use the processor of the same "
                "checkpoint, or mend image_grid_pinpoints in its preprocessor_config.json."
            )
        side = self.config.vision_config.image_size
        geometry.image_geometry(self.config, processor, (side, side))  # refuses other tiles
        self._counts: dict[tuple[int, int], int] = {}

    def layout(self, inputs: Mapping[str, Any]) -> TokenLayout:
        """What every position is; see `llava_next_layout`."""
        if (text := self.text_layout(inputs)) is not None:
            return text
        inputs = {
            **inputs,
            "attention_mask": self.mask(inputs),
            "image_sizes": image_sizes(inputs),
        }
        return geometry.layout(inputs, self.config, self.processor)

    def image_token_counts(self, inputs: Mapping[str, Any]) -> list[int] | None:
        """How many tokens each image makes, newlines included."""
        if inputs.get("pixel_values") is None:
            return None
        return [self._tokens_of(height, width) for height, width in image_sizes(inputs).tolist()]

    def tiles_of(self, inputs: Mapping[str, Any]) -> list[int]:
        """The overview and the high-resolution tiles of each image, by transformers' own count."""
        window, grid = self.config.vision_config.image_size, self.config.image_grid_pinpoints
        sizes = inputs["image_sizes"].tolist()
        return [image_size_to_num_patches(tuple(size), grid, window) for size in sizes]

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
