"""Which keys each query may look at, read and changed where attention is computed.

Block-sparse attention chooses blocks of keys for each query, by scores of its own from which what
is not to be chosen is taken out with -inf. What is hidden here is taken out of that choice as well:
else it would still move which other keys are seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Bool
from torch import Tensor

from mm_lens.errors import InputError
from mm_lens.model.running.attention_calls import (
    AttentionCalls,
    intercept,
    seen_mask,
    seen_scores,
)

if TYPE_CHECKING:
    from mm_lens.model.bridge import VisionLanguageBridge

Note = Callable[[Bool[Tensor, "batch head query key"]], None]
Check = Callable[[Bool[Tensor, "batch head query key"], Bool[Tensor, "batch head query key"]], None]


@contextmanager
def read_masks(
    model: VisionLanguageBridge,
) -> Iterator[Mapping[int, Bool[Tensor, "batch head query key"]]]:
    """Which keys each query may look at, by block, in the last forward pass inside.

    A head axis of size 1 stands for all heads. Blocks without attention are left out, and blocks
    whose attention is computed by code that shows no mask.
    """
    found: dict[int, Tensor] = {}

    def note(layer: int, seen: Tensor) -> None:
        # Most blocks share their masks: one copy is kept.
        same = (x for x in found.values() if x.shape == seen.shape and torch.equal(x, seen))
        found[layer] = next(same, seen)

    with ExitStack() as stack:
        for layer, block in enumerate(model.blocks):
            if (attention := getattr(block, "attn", None)) is None:
                continue
            make = partial(_make_reader, partial(note, layer))
            stack.enter_context(intercept(attention, make))
        yield found


def _make_reader(note: Note, *args: Any, **kwargs: Any) -> AttentionCalls:
    return _Seen(note)


@contextmanager
def hide_keys(
    attention: Any,
    hidden: Callable[[Tensor], Bool[Tensor, "batch head query key"]],
    check: Check | None = None,
) -> Iterator[None]:
    """Hide keys from queries in every call of one attention.

    Args:
        attention: the block's attention, of the bridge.
        hidden: from the states that enter it [batch, pos, d_model] to what is hidden; the head axis
            may have size 1, for all heads.
        check: is told which keys the queries see otherwise, and what is hidden of them.

    Raises:
        InputError: the attention is computed by code that cannot be reached.
    """
    hiders: list[_Hider] = []

    def make(*args: Any, **kwargs: Any) -> AttentionCalls:
        states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        hiders.append(_Hider(hidden(states).to(states.device), check))
        return hiders[-1]

    def look(module: Any, args: Any, output: Any) -> None:
        if hiders and not hiders.pop().reached:
            raise InputError(
                f"The attention of {attention.name} is computed by code that shows no mask, so "
                "keys cannot be hidden from its queries. Load the model with "
                'attention="eager".'
            )

    handle = attention.register_forward_hook(look)
    try:
        with intercept(attention, make):
            yield
    finally:
        handle.remove()


class _Seen(AttentionCalls):
    """Notes which keys the queries of one attention may look at."""

    def __init__(self, note: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.note = note

    def softmax(self, scores: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        self.note(seen_scores(scores))
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
        self.note(seen_mask(query, key, attn_mask, is_causal))
        return super().fused(query, key, value, attn_mask, dropout_p, is_causal, **options)


class _Hider(AttentionCalls):
    """Hides keys from the queries of one attention."""

    def __init__(self, hidden: Tensor, check: Check | None) -> None:
        super().__init__()
        self.hidden, self.check = hidden, check
        self.reached = False
        self.chosen_from: Tensor | None = None

    def _told(self, seen: Tensor) -> None:
        self.reached = True
        if self.check is not None:
            # What competes for a place is seen by the choice, whether or not it wins.
            choice = seen if self.chosen_from is None else seen | self.chosen_from
            self.check(choice, self.hidden)

    def _fits(self, scores: Tensor) -> bool:
        return scores.shape[-2:] == self.hidden.shape[-2:]

    def softmax(self, scores: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        if not self._fits(scores):
            return run(scores)
        self._told(seen_scores(scores))
        return run(scores.masked_fill(self.hidden, torch.finfo(scores.dtype).min))

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
        seen, hidden = seen_mask(query, key, attn_mask, is_causal), self.hidden
        # A single query: heads that share keys may stand where queries do (`pack_gqa`).
        packed = query.shape[-2] if hidden.shape[-2] == 1 else 1
        told = seen
        if packed > 1:
            hidden = _pack(hidden, packed)
            told = seen[:, :, :1] if seen.shape[1] == 1 else _unpack(seen)
        if not self._fits(told):
            return super().fused(query, key, value, attn_mask, dropout_p, is_causal, **options)
        self._told(told)
        if attn_mask is None or attn_mask.dtype == torch.bool:
            mask = seen & ~hidden
        else:  # biases of the scores, if the mask holds any, stay
            shape = torch.broadcast_shapes(attn_mask.shape, hidden.shape)
            mask = attn_mask.expand(shape).masked_fill(hidden, torch.finfo(attn_mask.dtype).min)
        return super().fused(query, key, value, mask, dropout_p, False, **options)

    def forbid(self, scores: Tensor, mask: Tensor, value: Any) -> Tensor:
        if not self._fits(scores):
            return super().forbid(scores, mask, value)
        hidden, heads = self.hidden, scores.shape[1]
        if hidden.shape[1] not in (1, heads):
            # One choice for several heads: what all of them lose is no longer chosen.
            hidden = rearrange(hidden, "b (choice head) q k -> b choice head q k", choice=heads)
            hidden = hidden.all(2)
        self.chosen_from = (~mask).expand(scores.shape).any(1, keepdim=True)
        return super().forbid(scores, mask | hidden, value)


def _pack(hidden: Bool[Tensor, "batch head 1 key"], n: int) -> Bool[Tensor, "batch h _ key"]:
    """What is hidden of heads, `n` of which share keys, those standing where queries do."""
    if hidden.shape[1] == 1:
        return hidden
    return rearrange(hidden, "b (h n) 1 k -> b h n k", n=n)


def _unpack(seen: Bool[Tensor, "batch h n key"]) -> Bool[Tensor, "batch head 1 key"]:
    return rearrange(seen, "b h n k -> b (h n) 1 k")
