"""Hook points of scores and pattern in attention that is left to the native model.

TransformerLens computes attention itself for many families, step by step. Where positions are more
than one number for each token (M-RoPE) it calls the native module instead, and fires
`hook_attn_scores` and `hook_pattern` after the fact, both on the pattern: edits would do nothing.
Here they fire inside, between the native module's own scores, softmax and sum over values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

from mm_lens.model.running.attention_calls import AttentionCalls

POINTS = ("hook_attn_scores", "hook_pattern")


class _Hooked(AttentionCalls):
    """Fires the hook points of scores and pattern where these are computed."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention

    def softmax(self, scores: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        pattern = run(self.attention.hook_attn_scores(scores))
        if not self.attention.hook_pattern.has_hooks("both"):
            return pattern
        # In the dtype of the model, as where TransformerLens computes attention itself.
        hooked: Tensor = self.attention.hook_pattern(pattern.to(scores.dtype))
        return hooked


def hook_native_attention(bridge: Any) -> None:
    """Have scores and patterns be edited where blocks leave attention to the native model.

    Under sdpa there are none, and asking for them raises.
    """
    for i, block in enumerate(bridge.blocks):
        attention = getattr(block, "attn", None)
        if getattr(type(attention), "forward", None) is not AttentionBridge.forward:
            continue  # there is none, or TransformerLens computes it
        # Past `__setattr__`, which TransformerLens sends on to what is wrapped.
        attention.__dict__["forward"] = partial(_forward, attention)
        attention.__dict__["_fire_post_hoc_hook"] = _leave
        if bridge.attention == "sdpa":
            bridge._declare_dead(
                [f"blocks.{i}.attn.{point}" for point in POINTS],
                "Under sdpa attention they do not exist. Load the model with "
                'mm_lens.load(..., attention="eager").',
            )


def unhook_native_attention(bridge: Any) -> None:
    """Undo `hook_native_attention`."""
    for block in bridge.blocks:
        for name in ("forward", "_fire_post_hoc_hook"):
            getattr(getattr(block, "attn", None), "__dict__", {}).pop(name, None)


def _forward(attention: Any, *args: Any, **kwargs: Any) -> Any:
    if not any(p.has_hooks("both") for p in (attention.hook_attn_scores, attention.hook_pattern)):
        return AttentionBridge.forward(attention, *args, **kwargs)
    with _Hooked(attention):
        return AttentionBridge.forward(attention, *args, **kwargs)


def _leave(hook: Any, tensor: Tensor, label: str) -> Tensor:
    """It fired inside."""
    return tensor
