"""What families share whose modules lie as LLaVA's do: CLIP tower, projector, Llama or Mistral."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge.generalized_components import LinearBridge
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.generalized_components.clip_vision_encoder import (
    CLIPVisionEncoderLayerBridge,
)

from mm_lens.layout.layout import TokenLayout
from mm_lens.model.families import Family, TowerGrid
from mm_lens_adapters.fitting import require_equal

USE_EAGER = 'Load the model with mm_lens.load(..., attention="eager").'


class NativeAttentionBridge(AttentionBridge):
    """Attention computed by Hugging Face's own module, with hooks on q, k, v and z.

    TransformerLens computes attention step by step to have scores and patterns, at 3.6 times the
    time and 3.5 times the memory of sdpa at 2,349 tokens. This keeps what does not need them.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Input and output hooks around the wrapped module."""
        return GeneralizedComponent.forward(self, *args, **kwargs)


class VisionLayerBridge(CLIPVisionEncoderLayerBridge):
    """A CLIP layer whose `hook_out` fires where Hugging Face still sees the edit.

    LLaVA reads the tower's hidden states, which Hugging Face records with a forward hook on the
    wrapped layer. TransformerLens fires `hook_out` after that record: the edit of the very layer
    that LLaVA reads would be lost. Here it fires in a hook on the wrapped layer, before the record.
    """

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
    """Hook points of the tower and the language model; a subclass adds the layout."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.config = model.config
        self.processor = processor
        self.image_token_id: int = self.config.image_token_id
        require_equal(
            processor,
            {
                "patch_size": (self.config.vision_config.patch_size, "vision_config.patch_size"),
                "image_token_id": (self.image_token_id, "image_token_index of config.json"),
            },
        )

    @classmethod
    def customise(cls, adapter: Any, attention: str) -> None:
        """Put in the vision layers above and, for sdpa, native attention."""
        adapter.cfg.attn_implementation = attention
        tower = adapter.component_mapping["vision_encoder"]
        layers = tower.submodules["encoder_layers"]
        if isinstance(layers, CLIPVisionEncoderLayerBridge):
            tower.submodules["encoder_layers"] = VisionLayerBridge(str(layers.name), layers.config)
        if attention == "sdpa":
            # There are no attention weights to return; asking for them makes transformers warn.
            adapter.supports_hf_output_attentions = False
            block = adapter.component_mapping["blocks"]
            block.submodules["attn"] = NativeAttentionBridge(
                name=block.submodules["attn"].name,
                config=adapter.cfg,
                submodules={x: LinearBridge(name=f"{x}_proj") for x in "qkvo"},
            )

    def inert_hooks(self) -> Mapping[str, str]:
        """The tower above the layer that LLaVA reads, and attention weights inside of it."""
        depth = self.config.vision_config.num_hidden_layers
        feature_layers = self.config.vision_feature_layer
        chosen = [feature_layers] if isinstance(feature_layers, int) else list(feature_layers)
        last = max(k % (depth + 1) for k in chosen)  # hidden state k is the output of layer k - 1
        remedy = (
            f"The model reads the tower's hidden state {feature_layers}: edit "
            f"vision_encoder.encoder_layers.{last - 1}.hook_out or vision_projector.hook_in."
        )
        above = "|".join(str(k) for k in range(last, depth)) or "none"
        return {
            rf"vision_encoder\.(hook_out|post_layernorm\..+|encoder_layers\.({above})\..+)": remedy,
            r"vision_encoder\..+\.attn\.hook_(pattern|attn_scores)": (
                "The tower's attention is computed by the native model, which reports its weights "
                "afterwards: edit attn.q, attn.k, attn.v or attn.hook_out."
            ),
            r"rotary_emb\.hook_in": (
                "Rotary embeddings take only its type and device from it: edit rotary_emb.hook_cos "
                "and .hook_sin."
            ),
        }

    def dead_hooks(self, attention: str) -> Mapping[str, str]:
        """Hook points that TransformerLens declares but nothing fires."""
        dead = {
            r"vision_encoder\.hook_(patch|pos)_embed": "Use vision_encoder.embeddings.hook_out.",
            r"vision_projector\.hook_projected": "Use vision_projector.hook_out.",
            r"rotary_emb\.hook_out|hook_pos_embed": "Use rotary_emb.hook_cos and .hook_sin.",
            r".+\.attn\.hook_hidden_states": "Use hook_attn_out.",
            r"blocks\.\d+\.attn\.hook_[qk]_normed": "This language model has no norm on q and k.",
        }
        if attention == "sdpa":
            dead[r".+\.attn\.hook_(attn_scores|pattern|rot_q|rot_k)"] = (
                f"Under sdpa attention they do not exist. {USE_EAGER}"
            )
        return dead

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

    def text_layout(self, inputs: Mapping[str, Any]) -> TokenLayout | None:
        """The layout where no image is: a decoding step, or a prompt of text.

        None if there are images. A sampled placeholder is text.
        """
        if inputs.get("pixel_values") is not None:
            return None
        return TokenLayout.build(
            inputs["input_ids"],
            self.mask(inputs),
            image_token_id=-1,
            special_ids=self.processor.tokenizer.all_special_ids,
        )

    @staticmethod
    def mask(inputs: Mapping[str, Any]) -> Tensor | None:
        """Attention mask of the tokens themselves, without what is in the key-value cache."""
        mask = inputs.get("attention_mask")
        return (
            mask[:, -inputs["input_ids"].shape[1] :]
            if mask is not None and mask.ndim == 2
            else None
        )
