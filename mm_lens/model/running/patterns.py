"""Attention patterns of some queries, read while a model runs, whatever computes its attention.

A pattern of all queries grows with the square of the length. Under sdpa only the rows of the
queries that are asked for are computed, some at a time; the output of the block is sdpa's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Int
from torch import Tensor

from mm_lens.errors import InputError
from mm_lens.model.running.attention_calls import (
    AttentionCalls,
    compute_pattern,
    compute_scores,
    intercept,
)
from mm_lens.model.running.attention_hooks import are_hooked

if TYPE_CHECKING:
    from mm_lens.model.bridge import VisionLanguageBridge

Read = Callable[[int, Tensor, Tensor], None]
"""Is told a block, numbers of queries, and their pattern [batch, head, query, key]; once or more
times for each block, never twice of a query."""

AT_ONCE = 2**25
"""Weights that are computed at a time under sdpa: 128 MiB in float32."""


@contextmanager
def read_patterns(
    model: VisionLanguageBridge,
    layers: Sequence[int],
    queries: Bool[Tensor, "batch pos"],
    read: Read,
) -> Iterator[None]:
    """Read patterns of the forward passes inside.

    Args:
        model: the model.
        layers: blocks; each has attention.
        queries: positions that look; those of any row are read of every row.
        read: see `Read`.

    Raises:
        InputError: an attention is computed by code that cannot be reached.
    """
    at = queries.any(0).nonzero()[:, 0]
    with ExitStack() as stack:
        for layer in layers:
            attention: Any = model.blocks[layer].attn
            told = partial(read, layer)
            if model.attention == "sdpa" and not are_hooked(attention):
                stack.enter_context(_read_rows(attention, at, told))
            else:  # where TransformerLens computes it; and as other hooks leave it
                stack.enter_context(_read_whole(attention, at, told))
        yield


@contextmanager
def _read_whole(attention: Any, at: Tensor, told: Callable[..., None]) -> Iterator[None]:
    def read(pattern: Tensor, hook: Any) -> None:
        rows = at.to(pattern.device)
        told(rows, pattern[:, :, rows])

    handle = attention.hook_pattern.add_hook(read)
    try:
        yield
    finally:
        attention.hook_pattern.fwd_hooks.remove(handle)
        handle.hook.remove()


@contextmanager
def _read_rows(attention: Any, at: Tensor, told: Callable[..., None]) -> Iterator[None]:
    readers: list[_Rows] = []

    def make(*args: Any, **kwargs: Any) -> AttentionCalls:
        readers.append(_Rows(at, told))
        return readers[-1]

    def look(module: Any, args: Any, output: Any) -> None:
        if readers and not readers.pop().reached:
            raise InputError(
                f"The attention of {attention.name} is computed by code that shows no scores, so "
                'its pattern is unknown. Load the model with attention="eager".'
            )

    handle = attention.register_forward_hook(look)
    try:
        with intercept(attention, make):
            yield
    finally:
        handle.remove()


class _Rows(AttentionCalls):
    """Computes the patterns of some queries beside sdpa."""

    def __init__(self, at: Int[Tensor, " chosen"], told: Callable[..., None]) -> None:
        super().__init__()
        self.at, self.told = at, told
        self.reached = False

    def softmax(self, scores: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        pattern = run(scores)
        if scores.shape[-2] > int(self.at.max()):
            self.reached = True
            rows = self.at.to(pattern.device)
            self.told(rows, pattern[:, :, rows])
        return pattern

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
        each = query.shape[0] * query.shape[1] * key.shape[-2]
        for rows in self.at.to(query.device).split(max(1, AT_ONCE // each)):
            scores = compute_scores(query, key, attn_mask, is_causal, options.get("scale"), at=rows)
            self.told(rows, compute_pattern(scores))
        return super().fused(query, key, value, attn_mask, dropout_p, is_causal, **options)
