"""Hook points of scores and pattern in attention that is left to the native model.

TransformerLens computes attention itself for many families, step by step. Where positions are more
than one number for each token (M-RoPE) it calls the native module instead, and fires
`hook_attn_scores` and `hook_pattern` after the fact, both on the pattern: edits would do nothing.
Here they fire inside, between the native module's own scores, softmax and sum over values.

Under sdpa the native module has no scores. Where a hook asks for them they are computed from the
queries, keys and mask that sdpa is called with, of that block alone. If the hooks only read, sdpa
itself then gives the output, the same to the last bit as if nobody had asked. If a hook edits, or a
gradient is to pass through, the block's output is the sum of values under the edited pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from einops import rearrange
from torch import Tensor
from torch.nn import functional
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

from mm_lens.errors import HookError
from mm_lens.model.families.components import NativeAttentionBridge
from mm_lens.model.parts.quiet import SAME_FORWARD
from mm_lens.model.parts.snapshots import Snapshot
from mm_lens.model.running.attention_calls import (
    AttentionCalls,
    compute_pattern,
    compute_scores,
    is_packed,
    share_heads,
    unpack_heads,
)

POINTS = ("hook_attn_scores", "hook_pattern")


class _Hooked(AttentionCalls):
    """Fires the hook points of scores and pattern where these are computed."""

    def __init__(self, attention: Any, states: Tensor) -> None:
        super().__init__()
        self.attention, self.states = attention, states
        self.reached = False

    def softmax(self, scores: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        if scores.shape[-2] != self.states.shape[1]:
            return run(scores)  # of a hook's own
        self.reached = True
        pattern = run(self.attention.hook_attn_scores(scores))
        if not self.attention.hook_pattern.has_hooks("both"):
            return pattern
        # In the dtype of the model, as where TransformerLens computes attention itself.
        hooked: Tensor = self.attention.hook_pattern(pattern.to(scores.dtype))
        return hooked

    def fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        self.reached = True
        packed, mask, queries = is_packed(query, self.states), attn_mask, query
        if packed:
            queries = unpack_heads(query)
            mask = mask if mask is None or mask.shape[1] == 1 else unpack_heads(mask)
        scores = compute_scores(queries, key, mask, is_causal, options.get("scale"))
        pattern = self._edit(scores)
        if pattern is None:
            return super().fused(query, key, value, attn_mask, dropout_p, is_causal, **options)
        z = functional.dropout(pattern, dropout_p) @ share_heads(value, pattern.shape[1])
        return rearrange(z, "b (s h) 1 d -> b s h d", s=query.shape[1]) if packed else z

    def _edit(self, scores: Tensor) -> Tensor | None:
        """The pattern that the hooks make, None if they leave scores and pattern alone.

        A backward hook takes a gradient that passes through: torch then returns another tensor.
        """
        before = Snapshot(scores)
        after = self.attention.hook_attn_scores(scores)
        edited = after is not scores or before.changed()
        if not edited and not self.attention.hook_pattern.has_hooks("both"):
            return None
        pattern = compute_pattern(after)
        before = Snapshot(pattern)
        hooked: Tensor = self.attention.hook_pattern(pattern)
        return hooked if edited or hooked is not pattern or before.changed() else None


def hook_native_attention(bridge: Any) -> None:
    """Have scores and patterns be read and edited where attention is left to the native model."""
    for block in bridge.blocks:
        attention = getattr(block, "attn", None)
        native = getattr(type(attention), "forward", None)
        if native not in (AttentionBridge.forward, NativeAttentionBridge.forward):
            continue  # there is none, or TransformerLens computes it
        # Past `__setattr__`, which TransformerLens sends on to what is wrapped.
        forward = partial(_forward, native, attention)
        attention.__dict__["forward"] = attention.__dict__[SAME_FORWARD] = forward
        attention.__dict__["_fire_post_hoc_hook"] = _leave


def unhook_native_attention(bridge: Any) -> None:
    """Undo `hook_native_attention`."""
    for block in bridge.blocks:
        for name in ("forward", SAME_FORWARD, "_fire_post_hoc_hook", _TRIED):
            getattr(getattr(block, "attn", None), "__dict__", {}).pop(name, None)


def are_hooked(attention: Any) -> bool:
    """Whether a hook is at the scores or the pattern of an attention of the bridge."""
    return any(getattr(attention, point).has_hooks("both") for point in POINTS)


_TRIED = "_mm_lens_tries_hooks"


@contextmanager
def trying_hooks(bridge: Any) -> Iterator[None]:
    """Inside, hooks of scores and patterns that nothing fires are no error: which do is tried."""
    attentions = [block.attn for block in bridge.blocks if getattr(block, "attn", None) is not None]
    for attention in attentions:
        attention.__dict__[_TRIED] = True
    try:
        yield
    finally:
        for attention in attentions:
            attention.__dict__.pop(_TRIED, None)


def _forward(native: Callable[..., Any], attention: Any, *args: Any, **kwargs: Any) -> Any:
    if not are_hooked(attention):
        return native(attention, *args, **kwargs)
    states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    calls = _Hooked(attention, states)
    with calls:
        output = native(attention, *args, **kwargs)
    if not calls.reached and _TRIED not in attention.__dict__:
        raise HookError(
            f"The attention of {attention.name} is computed by code that shows no scores, so "
            "hook_attn_scores and hook_pattern cannot fire there. Load the model with "
            'mm_lens.load(..., attention="eager").'
        )
    return output


def _leave(hook: Any, tensor: Tensor, label: str) -> Tensor:
    """It fired inside."""
    return tensor
