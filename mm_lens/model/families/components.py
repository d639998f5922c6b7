"""Parts of a bridge that differ from TransformerLens's, and hook points that never do anything."""

from __future__ import annotations

from typing import Any

from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.generalized_components.position_embeddings_attention import (
    PositionEmbeddingsAttentionBridge,
)

USE_EAGER = 'Load the model with mm_lens.load(..., attention="eager").'

INERT_HOOKS = {
    r"vision_encoder\..+\.attn\.hook_(pattern|attn_scores)": (
        "The tower's attention is computed by the native model, which reports its weights "
        "afterwards: edit attn.q, attn.k, attn.v or attn.hook_out."
    ),
    r"rotary_emb\.hook_in": (
        "Rotary embeddings take only its type and device from it: edit rotary_emb.hook_cos "
        "and .hook_sin."
    ),
}
"""Edits there cannot reach the output: regular expression and remedy."""

DEAD_HOOKS = {
    r"vision_encoder\.hook_(patch|pos)_embed": "Use vision_encoder.embeddings.hook_out.",
    r"vision_projector\.hook_projected": "Use vision_projector.hook_out.",
    r"rotary_emb\.hook_out|hook_pos_embed": "Use rotary_emb.hook_cos and .hook_sin.",
    r".+\.attn\.hook_hidden_states": "Use hook_attn_out.",
    r"blocks\.\d+\.attn\.hook_[qk]_normed": "Use attn.q_norm.hook_out or attn.k_norm.hook_out.",
}
"""Declared by TransformerLens, fired by nothing: regular expression and remedy."""

NO_WEIGHTS = {
    r".+\.attn\.hook_rot_[qk]|vision_encoder\..+\.attn\.hook_(attn_scores|pattern)": (
        f"Under sdpa attention they do not exist. {USE_EAGER}"
    )
}


class NativeAttentionBridge(AttentionBridge):
    """Attention computed by Hugging Face's own module, with hooks on q, k, v and z.

    TransformerLens computes attention step by step to have scores and patterns, at 3.6 times the
    time and 3.5 times the memory of sdpa at 2,349 tokens. This keeps what does not need them;
    `running.attention_hooks` computes scores and patterns of a block where a hook asks for them.
    """

    _only_hooks = True  # see `parts.quiet`

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Input and output hooks around the wrapped module."""
        return GeneralizedComponent.forward(self, *args, **kwargs)


def use_native_attention(adapter: Any) -> None:
    """Leave the attention of the blocks to the native model, where TransformerLens redoes it."""
    # There are no attention weights to return; asking for them makes transformers warn.
    adapter.supports_hf_output_attentions = False
    submodules = adapter.component_mapping["blocks"].submodules
    attention = submodules.get("attn")
    if isinstance(attention, PositionEmbeddingsAttentionBridge):
        submodules["attn"] = NativeAttentionBridge(
            name=attention.name,
            config=adapter.cfg,
            submodules=attention.submodules,
            optional=attention.optional,
        )
