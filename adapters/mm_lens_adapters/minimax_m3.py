"""MiniMax M3: a CLIP-like tower with 3-D rotary positions, experts, attention to chosen blocks."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    BlockBridge,
    EmbeddingBridge,
    LinearBridge,
    MoEBridge,
    RMSNormalizationBridge,
    UnembeddingBridge,
    VisionProjectionBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from mm_lens_adapters.grid_style import GridFamily


class MiniMaxM3Family(GridFamily):
    """The family of `MiniMaxM3SparseForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("MiniMaxM3SparseForConditionalGeneration",)
    markers: ClassVar[str] = r"\]<\](start|end) of image\[>\["
    padding_side: ClassVar[Literal["left", "right"] | None] = "right"
    exceptions: ClassVar = {
        "left padding": "its attention chooses blocks of keys, and counts padding on the left "
        "among them, in the native model too: rows are padded on the right",
        "knock-out": "its attention chooses blocks of keys before its mask hides any: knocked out, "
        "keys do not take part in the choice, in the native model's own mask they do",
    }


class MiniMaxM3ArchitectureAdapter(ArchitectureAdapter):
    """For TransformerLens, which does not know it. Attention is the native model's."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.is_multimodal = True
        self._set_rms_rotary_defaults()
        self.cfg.rmsnorm_uses_offset = True
        self.cfg.attn_implementation = "eager"
        self._extract_vision_dims(cfg)
        self.supports_fold_ln = False  # experts hold their weights in one tensor
        self.weight_processing_conversions = {**self._qkvo_weight_conversions()}

        def norm(name: str) -> RMSNormalizationBridge:
            return RMSNormalizationBridge(name=name, config=self.cfg)

        attention = {x: LinearBridge(name=f"{x}_proj") for x in "qkvo"}
        norms = {"q_norm": norm("q_norm"), "k_norm": norm("k_norm")}
        indexer = GeneralizedComponent(name="indexer", optional=True)
        language = "model.language_model"
        self.component_mapping = {
            "vision_encoder": GeneralizedComponent(name="model.vision_tower"),
            "vision_projector": VisionProjectionBridge(name="model.multi_modal_projector"),
            "embed": EmbeddingBridge(name=f"{language}.embed_tokens"),
            "blocks": BlockBridge(
                name=f"{language}.layers",
                submodules={
                    "ln1": norm("input_layernorm"),
                    "ln2": norm("post_attention_layernorm"),
                    "attn": AttentionBridge(
                        name="self_attn",
                        config=self.cfg,
                        submodules={**attention, **norms, "indexer": indexer},
                        maintain_native_attention=True,
                        requires_attention_mask=True,
                    ),
                    "mlp": MoEBridge(name="mlp", config=self.cfg),
                },
            ),
            "ln_final": norm(f"{language}.norm"),
            "unembed": UnembeddingBridge(name="lm_head", config=self.cfg),
        }
