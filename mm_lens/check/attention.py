"""Attention written out plainly, in place of a native model's own, with an edit in the midst of it.

The native model calls a function of transformers' registry with queries, keys, values and its mask.
In one block another one answers: scores, mask, softmax, sum over values, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Hidden: TypeAlias = "Mapping[str, Bool[Tensor, 'batch head query key']]"
"""By path of the attention: keys that its queries do not see. The head axis may be 1."""

Edits: TypeAlias = "Mapping[str, Callable[[Tensor], Tensor]]"
"""By path of the attention: what becomes of its pattern."""

NONE: Mapping[str, Any] = {}


@contextmanager
def plain_attention(native: Any, hidden: Hidden = NONE, edits: Edits = NONE) -> Iterator[set[str]]:
    """Inside, some attentions of a native model are written out.

    Yields:
        Paths of those that were run.
    """
    paths = {id(native.get_submodule(path)): path for path in {*hidden, *edits}}
    before = native.config._attn_implementation
    native.set_attn_implementation("sdpa")
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    reached: set[str] = set()

    def attend(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        **rest: Any,
    ) -> Any:
        if (path := paths.get(id(module))) is None:
            return sdpa(module, query, key, value, attention_mask, **rest)
        reached.add(path)
        seen = (attention_mask, getattr(module, "is_causal", True), hidden.get(path))
        pattern = _weigh(query, _per_head(key, query), rest.get("scaling"), *seen)
        pattern = edits.get(path, lambda x: x)(pattern.to(value.dtype))
        mixed = pattern @ _per_head(value, query)
        return mixed.transpose(1, 2).contiguous(), pattern

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    try:
        yield reached
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = sdpa
        native.set_attn_implementation(before)


def _per_head(x: Tensor, query: Tensor) -> Tensor:
    """Keys or values that several heads share, for each of them."""
    return x.repeat_interleave(query.shape[1] // x.shape[1], 1)


def _weigh(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch head key d_head"],
    scaling: float | None,
    mask: Tensor | None,
    causal: bool,
    hidden: Bool[Tensor, "batch heads query key"] | None,
) -> Float[Tensor, "batch head query key"]:
    """Weights of each query over the keys."""
    n_queries, n_keys = query.shape[2], key.shape[2]
    scores = query @ key.transpose(-1, -2)
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    seen = torch.ones(n_queries, n_keys, dtype=torch.bool, device=query.device)
    if mask is None:
        seen = seen.tril(n_keys - n_queries) if causal else seen
    elif mask.dtype == torch.bool:
        seen = mask[..., :n_keys]
    else:
        scores = scores + mask[..., :n_keys]
    if hidden is not None:
        seen = seen & ~hidden
    return scores.float().masked_fill(~seen, torch.finfo(torch.float32).min).softmax(-1)
