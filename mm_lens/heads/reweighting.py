"""Attention made stronger or weaker at some tokens, sharper or flatter.

At chosen queries and heads a row `p` of the pattern becomes `w p^(1/T)` over its sum: `w` is the
factor at the keys that are named and 1 elsewhere, `T` the temperature. So adds `log w` to the
scores before the softmax, and divides them by `T`: a factor above 1 makes the model look more at
the image, as methods against hallucination do. It is an intervention: compare with other keys, or
with heads at random. What is not to be seen at all is knocked out (`mm_lens.knockout`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mm_lens.arguments import require_number, resolve_numbers
from mm_lens.errors import InputError
from mm_lens.heads.patterns import PatternEdit
from mm_lens.layout.groups import group_mask
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.hooks import NamedHook
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.running.writing import WRITTEN
from mm_lens.model.streams import resolve_blocks

LEAST = 1e-3
"""Of factor and temperature."""


def reweighting_hooks(
    model: VisionLanguageBridge,
    inputs: Inputs,
    key: Any = "visual",
    *,
    factor: float = 1.0,
    temperature: float = 1.0,
    query: Any = "last",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> list[NamedHook]:
    """Forward hooks that reweight attention, in passes of `inputs` and in `generate`.

    ```python
    hooks = reweighting_hooks(model, inputs, "visual", factor=2.0, layers=[4, 5])
    with model.hooks(fwd_hooks=hooks):
        model.generate(inputs)
    ```

    Args:
        model: the model.
        inputs: what it is run on.
        key: who is looked at: a group, a `Box`, a mask.
        factor: of what they get, before rows are made to sum to 1 again; above 0.
        temperature: above 1 flattens the rows, below 1 sharpens them.
        query: who looks: "last" (each written token, too), a group or a mask.
        layers: blocks, negative ones from the end; None takes all that have attention.
        heads: their numbers; None takes all.

    Raises:
        InputError: there is no such block, head or token; factor or temperature are out of range.
        HookError: when the hook runs, the cache has forgotten positions.
        MMLensError: the check at load found that edits of patterns do nothing on this model.
    """
    check_inputs(model, inputs)
    model.report.require("Attention reweighted in the pattern", "pattern")
    for name, value in (("factor", factor), ("temperature", temperature)):
        require_number(name, value, LEAST)
    for name, group in (("key", key), ("query", query)):
        written = isinstance(group, str) and group == WRITTEN
        if not written and not bool(group_mask(inputs.layout, group).any()):
            raise InputError(f"These inputs hold no position of {name}={group!r}.")
    chosen = resolve_numbers("heads=", "head", heads, model.cfg.n_heads)
    edit = PatternEdit(
        model,
        inputs,
        partial(reweight, factor=factor, temperature=temperature),
        [key],
        query=query,
        heads=chosen,
        what="The reweighting",
    )
    blocks = resolve_blocks(model, "z", layers)
    return [(f"blocks.{block}.attn.hook_pattern", edit) for block in blocks]


def reweight(
    pattern: Float[Tensor, "batch head query key"],
    keys: Bool[Tensor, "batch 1 1 key"],
    factor: float,
    temperature: float,
) -> Float[Tensor, "batch head query key"]:
    """Rows raised to a power, with a factor at some keys, that sum to 1 again; empty rows stay."""
    wide = pattern.to(torch.promote_types(pattern.dtype, torch.float32))
    scores = wide.log() / temperature + keys * math.log(factor)
    empty = ~scores.isfinite().any(-1, keepdim=True)
    return torch.where(empty, wide, scores.masked_fill(empty, 0).softmax(-1))
