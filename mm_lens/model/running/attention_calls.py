"""Attention where it is computed, whatever code computes it.

Every model has attention code of its own, and hands masks to it in its own way: one for all blocks,
one for each kind of block, or made inside of the attention (block-sparse). But the scores of all of
them meet one of two functions of torch: softmax over `[batch, head, query, key]` (eager) or
`scaled_dot_product_attention` (sdpa). `intercept` hands these two calls of one attention module to
functions of ours; nothing else of the model is touched, and nothing at all outside of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)
_FILL = (Tensor.masked_fill, torch.masked_fill)


class AttentionCalls(TorchFunctionMode):
    """Calls of the code inside, as seen by a subclass; each method's default is to run them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One call of torch; this mode is off while it is looked at."""
        kwargs = kwargs or {}
        if func in _SOFTMAX:
            named = "input" if "input" in kwargs else None
            scores = kwargs["input"] if named else args[0]
            if scores.ndim == 4:

                def softmax(scores: Tensor) -> Any:
                    return func(scores, *args[1:], **{k: kwargs[k] for k in kwargs if k != named})

                return self.softmax(scores, softmax)
        elif func is functional.scaled_dot_product_attention:
            return self.fused(*args, **kwargs)
        elif func in _FILL and len(args) == 3 and args[0].ndim == 4 and args[2] == -torch.inf:
            return self.forbid(*args)
        return func(*args, **kwargs)

    def softmax(
        self,
        scores: Float[Tensor, "batch head query key"],
        run: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Attention weights from scores, masks included."""
        return run(scores)

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
        """Attention in one call."""
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, **options
        )

    def forbid(self, scores: Tensor, mask: Tensor, value: Any) -> Tensor:
        """Scores [batch, head, query, key] whose keys are taken out of a choice."""
        return scores.masked_fill(mask, value)


@contextmanager
def intercept(attention: Any, make: Callable[..., AttentionCalls]) -> Iterator[None]:
    """Run one attention module under what `make` returns for its arguments."""
    had, run = "forward" in attention.__dict__, attention.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with make(*args, **kwargs):
            return run(*args, **kwargs)

    # Past `__setattr__`, which TransformerLens sends on to what is wrapped.
    attention.__dict__["forward"] = forward
    try:
        yield
    finally:
        if had:
            attention.__dict__["forward"] = run
        else:
            attention.__dict__.pop("forward", None)


def compute_scores(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch key_head key d_head"],
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None = None,
    at: Int[Tensor, " chosen"] | None = None,
) -> Float[Tensor, "batch head chosen key"]:
    """Scores behind a call of `scaled_dot_product_attention`, as eager attention computes them.

    Args:
        query: as in the call.
        key: as in the call; of fewer heads where several queries share one.
        mask: as in the call: what is seen, or what is added.
        is_causal: as in the call.
        scale: as in the call.
        at: numbers of the queries that are wanted; None takes all.

    Returns:
        Scores before the softmax, masks added: what is not seen has the least number of the dtype.
    """
    rows = torch.arange(query.shape[-2], device=query.device)
    if at is not None:
        query, rows = query[:, :, at], rows[at]
        mask = mask if mask is None or mask.shape[-2] == 1 else mask[..., at, :]
    key = share_heads(key, query.shape[1])
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is None and is_causal:
        mask = torch.arange(key.shape[-2], device=key.device) <= rearrange(rows, "query -> query 1")
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        least = torch.finfo(scores.dtype).min
        mask = scores.new_zeros(mask.shape).masked_fill(~mask, least)
    return scores + mask


def compute_pattern(
    scores: Float[Tensor, "batch head query key"],
) -> Float[Tensor, "batch head query key"]:
    """Attention weights from scores; the softmax in float32 at least, as models do."""
    exact = torch.promote_types(scores.dtype, torch.float32)
    return functional.softmax(scores, dim=-1, dtype=exact).to(scores.dtype)


def share_heads(x: Tensor, heads: int) -> Float[Tensor, "batch head pos d_head"]:
    """Keys or values of one head for each query's, which may share them."""
    times = heads // x.shape[1]
    return x if times == 1 else repeat(x, "b head pos d -> b (head times) pos d", times=times)


def is_packed(query: Tensor, states: Tensor) -> bool:
    """Whether heads that share a key stand where queries do, as transformers calls sdpa for one."""
    return states.shape[1] == 1 and query.shape[-2] > 1


def unpack_heads(x: Tensor) -> Tensor:
    """Queries or masks `[batch, key head, head of it, d]` as `[batch, head, 1, d]`."""
    return rearrange(x, "b share head d -> b (share head) 1 d")


def seen_scores(scores: Float[Tensor, "batch head query key"]) -> Bool[Tensor, "batch h query key"]:
    """Which keys each query may look at: masks are added to scores, as the least number or -inf."""
    return _one_for_all_heads(scores > torch.finfo(scores.dtype).min / 2)


def seen_mask(
    query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool
) -> Bool[Tensor, "batch h query key"]:
    """Which keys each query may look at in a call of `scaled_dot_product_attention`."""
    if mask is None:
        shape = (1, 1, query.shape[-2], key.shape[-2])
        seen = torch.ones(shape, dtype=torch.bool, device=query.device)
        return seen.tril() if is_causal else seen
    mask = mask.expand(*mask.shape[:-2], query.shape[-2], key.shape[-2])
    return _one_for_all_heads(
        mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    )


def _one_for_all_heads(seen: Tensor) -> Tensor:
    first = seen[:, :1]
    return first if seen.shape[1] == 1 or bool((seen == first).all()) else seen
