"""Models of many families with nothing declared but their image token: inputs made by hand.

What the core does must not depend on a declaration: reruns, knock-out, patterns and generation are
tested with these. `tests/families` tests the declarations.
"""

from __future__ import annotations

import torch
from tiny_families import build
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    BlockBridge,
    EmbeddingBridge,
    LinearBridge,
    RMSNormalizationBridge,
    UnembeddingBridge,
    VisionProjectionBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from mm_lens.layout.layout import ImageGeometry, TokenLayout
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.families import Family
from mm_lens.model.inputs import Inputs

NAMES = ("qwen2.5-vl", "qwen3-vl", "qwen3.5", "glm-4v", "gemma3", "minimax-m3")
PATCH = 4


class PlainFamily(Family):
    """Knows which token stands for an image, and nothing else."""

    architectures = ()

    def __init__(self, model, processor=None):
        self.image_token_id = model.config.image_token_id

    @classmethod
    def customise(cls, adapter, attention):
        adapter.cfg.attn_implementation = attention

    def inert_hooks(self):
        return {}

    def dead_hooks(self, attention):
        return {}

    def layout(self, inputs):
        tokens, mask = inputs["input_ids"], inputs.get("attention_mask")
        counts = (tokens == self.image_token_id).sum(1).tolist()
        return TokenLayout.build(
            tokens,
            None if mask is None or mask.ndim != 2 else mask[:, -tokens.shape[1] :],
            image_token_id=self.image_token_id,
            images=[geometry(n) for n in counts if n],
        )

    def image_token_counts(self, inputs):
        if inputs.get("pixel_values") is None:
            return None
        return [int((inputs["input_ids"] == self.image_token_id).sum())]

    def probe_image(self):
        raise NotImplementedError


def geometry(n):
    k = torch.arange(n, dtype=torch.int16)
    zero = torch.zeros_like(k)
    box = torch.stack([k, zero, k + 1, zero + 1], -1).float()
    return ImageGeometry((1, n), zero, zero, k, zero, k, zero.bool(), box)


class MiniMaxM3Adapter(ArchitectureAdapter):
    """Enough of the model to hook its blocks."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.cfg.is_multimodal = True
        self._set_rms_rotary_defaults()
        self.cfg.default_prepend_bos = False
        self.cfg.rmsnorm_uses_offset = True
        lm = "model.language_model"

        def norm(name):
            return RMSNormalizationBridge(name=name, config=self.cfg)

        projections = {x: LinearBridge(name=f"{x}_proj") for x in "qkvo"}
        attention = AttentionBridge(
            name="self_attn",
            config=self.cfg,
            submodules=projections,
            maintain_native_attention=True,
            requires_attention_mask=True,
        )
        self.component_mapping = {
            "vision_encoder": GeneralizedComponent(name="model.vision_tower"),
            "vision_projector": VisionProjectionBridge(name="model.multi_modal_projector"),
            "embed": EmbeddingBridge(name=f"{lm}.embed_tokens"),
            "blocks": BlockBridge(
                name=f"{lm}.layers",
                submodules={
                    "ln1": norm("input_layernorm"),
                    "ln2": norm("post_attention_layernorm"),
                    "attn": attention,
                    "mlp": GeneralizedComponent(name="mlp"),
                },
            ),
            "ln_final": norm(f"{lm}.norm"),
            "unembed": UnembeddingBridge(name="lm_head", config=self.cfg),
        }


ArchitectureAdapterFactory.register_adapter(
    "MiniMaxM3SparseForConditionalGeneration", MiniMaxM3Adapter
)


def open_plain(name, attention="sdpa", dtype=torch.float32, **changes):
    """A bridge, and the native model of the same weights."""
    native, processor = build(name)
    model, _ = build(name)
    for one in (native, model):
        one.to(dtype)
        one.set_attn_implementation(attention)
        one.generation_config.pad_token_id = 3
    family = PlainFamily(model)
    bridge = build_bridge_from_module(
        model,
        type(model).__name__,
        hf_config=model.config,
        tokenizer=processor.tokenizer,
        model_name=name,
        post_adapter_hook=lambda adapter: family.customise(adapter, attention),
    )
    bridge = VisionLanguageBridge.install(bridge, family, attention)
    bridge.processor = processor
    return bridge, native


def make_inputs(bridge, rows=(True, False), side=None, seed=0, before=3, after=(6, 4)):
    """Prompts of unequal length, with an image or without: ragged, padded on `side`.

    By default on the left, but for MiniMax M3, where a row padded there is another than alone.
    """
    side = side or ("right" if "minimax" in bridge.cfg.model_name else "left")
    generator = torch.Generator().manual_seed(seed)
    config = bridge.original_model.config
    dtype = next(bridge.original_model.parameters()).dtype
    is_gemma = "mm_tokens_per_image" in config.to_dict()
    image = config.image_token_id
    grids, pixels, prompts = [], [], []
    for i, has_image in enumerate(rows):
        grid = (1, 4, 6 + 4 * (i % 2))
        n = 9 if is_gemma else grid[1] * grid[2] // 4
        words = torch.randint(6, 90, (before + after[i % len(after)],), generator=generator)
        words[0] = 1
        tokens = words.tolist()
        if has_image:
            tokens[before:before] = [image] * n
            grids.append(grid)
            shape = (1, 3, 24, 24) if is_gemma else (grid[1] * grid[2], 3 * 2 * PATCH * PATCH)
            pixels.append(torch.randn(shape, generator=generator))
        prompts.append(tokens)
    longest = max(map(len, prompts))
    ids, mask = torch.full((len(rows), longest), 3), torch.zeros(len(rows), longest).long()
    for i, tokens in enumerate(prompts):
        at = slice(longest - len(tokens), None) if side == "left" else slice(0, len(tokens))
        ids[i, at], mask[i, at] = torch.tensor(tokens), 1
    tensors = {"input_ids": ids, "attention_mask": mask}
    if is_gemma:
        tensors["token_type_ids"] = (ids == image).long()
    elif hasattr(bridge.original_model.model, "rope_deltas"):
        tensors["mm_token_type_ids"] = (ids == image).long()
    if pixels:
        tensors["pixel_values"] = torch.cat(pixels).to(dtype)
        if not is_gemma:
            tensors["image_grid_thw"] = torch.tensor(grids)
    return Inputs(tensors, ("",) * len(rows), ((),) * len(rows), bridge.family, text_only=True)


def run_native(native, inputs, **options):
    """Logits of the native model, whose positions TransformerLens derives from the mask."""
    positions = {}
    if not hasattr(native.model, "rope_deltas"):
        mask = inputs["attention_mask"]
        positions = {"position_ids": (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)}
    with torch.no_grad():
        return native(**inputs, **positions, **options).logits
