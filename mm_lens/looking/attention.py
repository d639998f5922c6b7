"""Attention from tokens of the text to the image, by block and head.

Under sdpa, the default, only the patterns of the queries that are asked for are computed, some at a
time; what comes out of the blocks is as if nobody had asked.

What a map shows is where a head reads from. How much of what it reads matters is another question:
values may be small, a later block may undo it, and weight may rest on a token for no other reason
than that softmax must sum to one (`docs/looking.md`). Knock-out and patching answer it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import einsum
from jaxtyping import Float, Float32
from torch import Tensor

from mm_lens.errors import InputError
from mm_lens.layout.groups import group_mask
from mm_lens.looking.token_tensor import TokenValues, name_layers
from mm_lens.looking.token_values import Where
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.running.logits import keep_logits
from mm_lens.model.running.patterns import read_patterns
from mm_lens.model.streams import resolve_layers


def attention_map(
    model: VisionLanguageBridge,
    inputs: Inputs,
    *,
    query: Where = "last",
    key: Where = "visual",
    layers: Sequence[int] | None = None,
) -> Float32[TokenValues, "layers heads batch pos"]:
    """Attention that the tokens of `query` pay to each token of `key`, by block and head.

    Of several queries the mean is taken. The pattern is read while the model runs, and only the
    rows of the queries are kept.

    ```python
    weights = attention_map(model, model.prepare("what color is it?", image))
    weights[5, 3].nansum()      # share of head 3 of block 5 that goes from the end to the picture
    weights.plot(head=3)        # on the picture, as .explore() with a slider over the blocks
    ```

    Args:
        model: the model.
        inputs: what `model.prepare` returned.
        query: who looks: "last", a group ("text after"), or a mask as of
            `mm_lens.token_values.find_words`.
        key: who is looked at.
        layers: blocks, negative ones from the end; None takes all that have attention.

    Returns:
        A share of each head's attention: summed over all attended positions it is 1, so over the
        keys at most 1. A tensor with `plot` and `explore`. On the CPU; NaN off the keys, and in
        rows without a query.

    Raises:
        InputError: there is no such group or block; no query or no key; attention is computed
            by code that shows no scores.
    """
    check_inputs(model, inputs)
    looks, seen = (group_mask(inputs.layout, where) for where in (query, key))
    for name, where, mask in (("query", query, looks), ("key", key, seen)):
        if not mask.any():
            raise InputError(f"These inputs hold no position of {name}={where!r}.")
    wanted = resolve_layers(layers, model.cfg.n_layers)
    if layers is None:  # of a hybrid model, the blocks that have attention
        wanted = tuple(b for b in wanted if getattr(model.blocks[b], "attn", None) is not None)
    for block in wanted:
        if getattr(model.blocks[block], "attn", None) is None:
            raise InputError(
                f"Block {block} has no attention: it mixes positions in another way. Name blocks "
                "that have some in layers=."
            )
    shape = (model.cfg.n_heads, *looks.shape)
    found = {block: torch.zeros(shape) for block in wanted}
    share = looks.float() / looks.sum(1, keepdim=True).clamp(min=1)

    def read(block: int, at: Tensor, pattern: Float[Tensor, "batch heads query key"]) -> None:
        mean = einsum(
            pattern.float(),
            share.to(at.device)[:, at],
            "batch head query key, batch query -> head batch key",
        )
        found[block] += mean.cpu()

    with torch.no_grad(), read_patterns(model, sorted(found), looks, read):
        model(inputs, **keep_logits(model, 1))  # which nobody reads
    hidden = (~(seen & looks.any(1, keepdim=True))).cpu()
    maps = torch.stack([found[block] for block in wanted]).masked_fill(hidden, math.nan)
    label = f"attention of {query if isinstance(query, str) else 'the query'}"
    return TokenValues.of(maps, inputs, label, name_layers(wanted, "block"))
