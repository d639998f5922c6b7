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

from mm_lens.errors import InputError
from mm_lens.layout.layout import PAD, VISUAL, ImageGeometry, TokenLayout
from mm_lens_adapters.fitting import edge_sizes, image_sizes
from mm_lens_adapters.llava_style import LlavaStyleFamily

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


class OmniFusionFamily(LlavaStyleFamily):
    """The family of `OmniFusionForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("OmniFusionForConditionalGeneration",)

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        vision, images = self.config.vision_config, processor.image_processor
        window = (vision.image_size, vision.image_size)
        cut, size = edge_sizes(images.crop_size), edge_sizes(images.size)
        crop = (cut.height, cut.width)
        if crop != window or not images.do_center_crop or size.shortest_edge is None:
            raise InputError(
                f"The image processor crops to {crop} px, after resizing to {dict(size)}, but the "
                f"vision tower takes {window}. Use the processor of the same checkpoint."
            )
        self.short: int = size.shortest_edge
        self.side = vision.image_size // vision.patch_size

    def layout(self, inputs: Mapping[str, Any]) -> TokenLayout:
        """Segments of the prompt; row, column and pixel box of each image token."""
        layout = self.text_layout(inputs)
        if layout is None:
            sizes = image_sizes(inputs)
            layout = TokenLayout.build(
                inputs["input_ids"],
                self.mask(inputs),
                image_token_id=self.image_token_id,
                special_ids=self.processor.tokenizer.all_special_ids,
                images=[self.geometry((h, w)) for h, w in torch.as_tensor(sizes).tolist()],
            )
        mask = inputs.get("attention_mask")
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

    def geometry(self, size: tuple[int, int]) -> ImageGeometry:
        """Row, column and pixel box of every token of an image of (height, width) pixels.

        The image is resized to its shortest edge and cropped at the centre: what lies outside of
        the crop has no token.
        """
        k = torch.arange(self.side**2, dtype=torch.int16)
        row, col = k // self.side, k % self.side
        window, patch = self.config.vision_config.image_size, self.config.vision_config.patch_size
        edges = []
        for axis, place in ((1, col), (0, row)):
            # The long edge is cut to whole pixels, and so is the margin of the crop.
            resized = self.short * size[axis] // min(size)
            margin = (resized - window) // 2
            for end in (0, 1):
                pixel = ((place + end).double() * patch + margin) * size[axis] / resized
                edges.append(pixel.clamp(0, size[axis]))
        x0, x1, y0, y1 = edges
        return ImageGeometry(
            size=size,
            tile=torch.zeros_like(k),
            row=row,
            col=col,
            grid_row=row,
            grid_col=col,
            newline=torch.zeros(len(k), dtype=torch.bool),
            box=torch.stack([x0, y0, x1, y1], dim=-1).float(),
        )

    def image_token_counts(self, inputs: Mapping[str, Any]) -> list[int] | None:
        """The same number for every image."""
        pixels = inputs.get("pixel_values")
        return None if pixels is None else [self.side**2] * len(pixels)

    def probe_image(self) -> Image.Image:
        """Noise, wider than high, so that the crop cuts it."""
        side = self.config.vision_config.image_size
        return Image.effect_noise((side + side // 3, side), 80).convert("RGB")
