"""How a family joins a vision tower and a language model, at the size of the demo models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from demo_training.parts import DEMO, FEATURE_LAYER, Parts, Size


class Fusion(ABC):
    """One demo model before and during its training.

    Attributes:
        processor: with the family's own way of cutting an image up and of writing a prompt.
        model: random, until it adopts the parts.
    """

    processor: Any
    model: Any

    @abstractmethod
    def __init__(self, tokenizer: PreTrainedTokenizerFast, size: Size = DEMO) -> None:
        """Build processor and model; `tokenizer` is the language model's, yours to change."""

    @abstractmethod
    def connectors(self) -> list[nn.Parameter]:
        """What is new between tower and language model, and trained first."""

    @abstractmethod
    def native(self, pixels: Float[Tensor, "image tile 3 height width"]) -> Tensor:
        """Tiles as the model takes them for `pixel_values`."""

    def sees(self, size: tuple[int, int], box: tuple[int, int, int, int]) -> bool:
        """Whether the part `box` (x0, y0, x1, y1) of an image of (height, width) is looked at."""
        return True

    def tiles(self, image: Image.Image) -> UInt8[Tensor, "tile 3 height width"]:
        """What the tower gets to see of an image, before normalisation."""
        out = self.processor.image_processor(
            image, do_normalize=False, do_rescale=False, return_tensors="pt"
        )
        pixels: Tensor = out["pixel_values"][0]
        pixels = rearrange(pixels, "... rgb height width -> (...) rgb height width")
        return pixels.round().to(torch.uint8)

    @torch.no_grad()
    def adopt(self, parts: Parts) -> None:
        """Take over the weights of tower and language model."""
        assert self.model.config.vision_feature_layer == FEATURE_LAYER
        self.model.model.vision_tower.load_state_dict(parts.tower.state_dict())
        mine = dict(self.model.named_parameters())
        for name, weight in parts.language.named_parameters():
            name = name.replace("model.", "model.language_model.", 1)
            mine[name][: len(weight)] = weight  # a family may have added tokens
