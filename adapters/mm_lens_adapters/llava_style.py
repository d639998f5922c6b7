"""What families share whose modules lie as LLaVA's do: CLIP tower, projector, Llama or Mistral."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge.generalized_components.clip_vision_encoder import (
    CLIPVisionEncoderLayerBridge,
)

from mm_lens.errors import InputError
from mm_lens.layout.tiles import Size, Tile, cropped, whole
from mm_lens.model.families import Family, TowerGrid
from mm_lens_adapters.fitting import check_resized, edge_sizes, require_equal


class VisionLayerBridge(CLIPVisionEncoderLayerBridge):
    """A CLIP layer whose `hook_out` fires where Hugging Face still sees the edit.

    LLaVA reads the tower's hidden states, which Hugging Face records with a forward hook on the
    wrapped layer. TransformerLens fires `hook_out` after that record: the edit of the very layer
    that LLaVA reads would be lost. Here it fires in a hook on the wrapped layer, before the record.
    """

    _only_hooks = True  # see `mm_lens.model.parts.quiet`

    def set_original_component(self, original_component: torch.nn.Module) -> None:
        """Wrap the layer and put `hook_out` in front of every other forward hook."""
        super().set_original_component(original_component)
        original_component.register_forward_hook(self._fire_hook_out, prepend=True)

    def _fire_hook_out(self, layer: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (self.hook_out(output[0]), *output[1:])
        return self.hook_out(output)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The wrapped layer on the hooked input; `hook_out` fires inside."""
        layer = self.original_component
        assert layer is not None, "set by TransformerLens when the bridge is built"
        return layer(self.hook_in(hidden_states), *args, **kwargs)


class LlavaStyleFamily(Family, ABC):
    """Hook points of the tower; a subclass adds where its tokens lie."""

    def require_fit(self) -> None:
        """Patches and placeholder are those of the model."""
        require_equal(
            self.processor,
            {
                "patch_size": (self.config.vision_config.patch_size, "vision_config.patch_size"),
                "image_token_id": (self.image_token_id, "image_token_index of config.json"),
            },
        )

    def require_select(self) -> None:
        """The class token is counted, or left out, by both."""
        tower, chosen = "vision_config.model_type", "vision_feature_select_strategy"
        class_token = int(self.config.vision_config.model_type == "clip_vision_model")
        require_equal(
            self.processor,
            {
                "num_additional_image_tokens": (class_token, f"the class token of {tower}"),
                chosen: (getattr(self.config, chosen), f"{chosen} of config.json"),
            },
        )

    @classmethod
    def customise(cls, adapter: Any, attention: str) -> None:
        """Besides what all do, put in the vision layers above."""
        super().customise(adapter, attention)
        tower = adapter.component_mapping["vision_encoder"]
        layers = tower.submodules.get("encoder_layers")
        if isinstance(layers, CLIPVisionEncoderLayerBridge):
            tower.submodules["encoder_layers"] = VisionLayerBridge(str(layers.name), layers.config)

    def inert_hooks(self) -> Mapping[str, str]:
        """The tower above the layer that LLaVA reads."""
        depth = self.config.vision_config.num_hidden_layers
        feature_layers = self.config.vision_feature_layer
        chosen = [feature_layers] if isinstance(feature_layers, int) else list(feature_layers)
        last = max(k % (depth + 1) for k in chosen)  # hidden state k is the output of layer k - 1
        remedy = (
            f"The model reads the tower's hidden state {feature_layers}: edit "
            f"vision_encoder.encoder_layers.{last - 1}.hook_out or vision_projector.hook_in."
        )
        above = "|".join(str(k) for k in range(last, depth)) or "none"
        unread = rf"vision_encoder\.(hook_out|post_layernorm\..+|encoder_layers\.({above})\..+)"
        return {unread: remedy, **super().inert_hooks()}

    def tower_grid(self, inputs: Mapping[str, Any]) -> TowerGrid | None:
        """Square tiles; see `tiles_of`."""
        if inputs.get("pixel_values") is None:
            return None
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        return TowerGrid(self.tiles_of(inputs), side, side)

    def tiles_of(self, inputs: Mapping[str, Any]) -> list[int]:
        """How many tiles the tower sees of each image; by default one."""
        return [1] * len(inputs["pixel_values"])


class CroppedFamily(LlavaStyleFamily, ABC):
    """One square of tokens: the centre of the picture, resized to its shortest edge.

    Where the processor does not crop, it is the whole picture, squeezed into the square.
    """

    def require_fit(self) -> None:
        """Pictures are cropped to the tower's window, or squeezed into it."""
        super().require_fit()
        vision, images = self.config.vision_config, self.processor.image_processor
        window = (vision.image_size, vision.image_size)
        cut, size = edge_sizes(images.crop_size), edge_sizes(images.size)
        crop = (cut.height, cut.width)
        made = size.shortest_edge is not None
        if not images.do_center_crop:
            made = (size.height, size.width) == window
        if crop != window or not made:
            raise InputError(
                f"The image processor crops to {crop} px, after resizing to {dict(size)}, but the "
                f"vision tower takes {window}. Use the processor of the same checkpoint."
            )

    def require_size(self, size: Size) -> None:
        """Its shortest edge is resized, whatever becomes of the other; none is squeezed large."""
        if self.processor.image_processor.do_center_crop:
            check_resized(size, edge_sizes(self.processor.image_processor.size).shortest_edge)

    def tiles(self, size: Size, inputs: Mapping[str, Any], k: int) -> list[Tile]:
        """What lies outside of the crop has no token."""
        vision, short = self.config.vision_config, edge_sizes(self.processor.image_processor.size)
        side, window = vision.image_size // vision.patch_size, (vision.image_size,) * 2
        if not self.processor.image_processor.do_center_crop:
            return [Tile(side, side, whole(size))]
        return [Tile(side, side, cropped(size, short.shortest_edge, window))]
