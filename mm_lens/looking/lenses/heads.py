"""A lens on each attention head: the words that what it writes points to.

What head h of a block writes at a position is `z_h W_O^h`; it is read through the final norm and
the unembedding, as if it were the whole state. The order of words does not depend on its length,
their probabilities do: they are those of a state that holds nothing else, and far too sure. What
heads write is added to what is there already; a head may also work through later blocks alone, and
then the words mean nothing. Refused where heads do not add up to what the attention writes (another
norm behind it, as in Gemma 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor
from transformer_lens.tools.analysis import logit_readout

from mm_lens.arguments import require_whole
from mm_lens.errors import InputError, MMLensError
from mm_lens.layout.groups import group_mask
from mm_lens.looking.token_values import Where
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.running.logits import keep_logits
from mm_lens.model.running.rerun import TOLERANCE
from mm_lens.model.streams import resolve_blocks


@torch.no_grad()
def head_lens(
    model: VisionLanguageBridge,
    inputs: Inputs,
    where: Where = "last",
    *,
    layers: Sequence[int] | None = None,
    top_k: int = 5,
) -> pd.DataFrame:
    """Top words of what each head writes, of the mean over the tokens of a group in each row.

    Args:
        model: in evaluation mode.
        inputs: what `model.prepare` returned.
        where: tokens at which heads write: "last", a group, a `Box`, a mask.
        layers: blocks, negative ones from the end; None takes all that have attention.
        top_k: how many words.

    Returns:
        A row for each block, head and row: layer, head, row, norm of what it writes, words, and
        token_ids, the best first.

    Raises:
        InputError: a row has no such token; there is no such block.
        MMLensError: heads do not add up to what the attention writes, or blocks do not add up.
    """
    check_inputs(model, inputs)
    model.report.require("A lens on one head", "residual")
    require_whole("top_k", top_k, 1)
    blocks = resolve_blocks(model, "z", layers)
    mask = group_mask(inputs.layout, where)
    if not bool(mask.any(1).all()):
        raise InputError(f"Row {int((~mask.any(1)).nonzero()[0])} has no position of {where!r}.")
    names = [f"blocks.{b}.{x}" for b in blocks for x in ("attn.hook_z", "hook_attn_out")]
    _, cache = model.run_with_cache(inputs, names_filter=names, **keep_logits(model, 1))
    rows = []
    for block in blocks:
        z = mean_of(cache[f"blocks.{block}.attn.hook_z"], mask)
        wrote = mean_of(cache[f"blocks.{block}.hook_attn_out"], mask)
        heads = head_outputs(model, block, z, wrote)
        for row in range(len(heads)):
            read = logit_readout(model, heads[row].to(cache.model.W_U.dtype), top_k=top_k)
            assert read.top_ids is not None
            for head, ids in enumerate(read.top_ids.tolist()):
                rows.append(
                    {
                        "layer": block,
                        "head": head,
                        "row": row,
                        "norm": float(heads[row, head].norm()),
                        "words": [model.tokenizer.decode([i]) for i in ids],
                        "token_ids": ids,
                    }
                )
    return pd.DataFrame(rows)


def mean_of(x: Float[Tensor, "batch pos *d"], mask: Tensor) -> Float[Tensor, "batch *d"]:
    """Mean over a row's tokens of a mask, in float64."""
    weight = mask.to(x.device, torch.float64)
    weight = weight / weight.sum(1, keepdim=True)
    found: Tensor = einsum(x.double(), weight, "batch pos ..., batch pos -> batch ...")
    return found


def head_outputs(
    model: VisionLanguageBridge,
    block: int,
    z: Float[Tensor, "batch head d"],
    wrote: Float[Tensor, "batch d_model"],
) -> Float[Tensor, "batch head d_model"]:
    """What each head of a block writes.

    Raises:
        MMLensError: together they are not what the attention writes.
    """
    attention: Any = model.blocks[block].attn
    output = attention.o.original_component
    weight = output.weight.double().to(z.device)
    matrices = rearrange(weight, "d_model (head d) -> head d d_model", head=z.shape[1])
    heads: Tensor = einsum(z, matrices, "batch head d, head d d_model -> batch head d_model")
    whole = heads.sum(1)
    if getattr(output, "bias", None) is not None:
        whole = whole + output.bias.double().to(z.device)
    error = float((whole - wrote).detach().abs().max() / wrote.abs().max().clamp(min=1e-6))
    if not error <= 10 * TOLERANCE.get(output.weight.dtype, 0.2):
        raise MMLensError(
            f"What heads write passes something else at block {block}: they miss what its "
            f"attention writes by {error:.3g} of it, so a lens on one head is not defined."
        )
    return heads
