"""Copying heads: does a head write, for the token it reads, the word that this token says?

For each source token `j` of a group and each head, what the head would write if it looked at this
token alone, `v_j W_O`, is read through the final norm and the unembedding (Elhage et al. 2021, "A
mathematical framework for transformer circuits": the OV circuit, here with the values that the
model has). A text token's word is the token itself. An image token has none: it is given the word
whose row of the input embedding is nearest to it where the language model begins, or the top word
of the logit lens at the state that the block reads.

- `rank`: share of the vocabulary that is below the token's own word; by chance 0.5;
- `others`: the same for words of the other tokens, where they differ: a head that writes one thing
  for all has as much there. Hold `rank` against it;
- `top`: share of tokens whose own word is among the `top_k` first;
- `attended`: `rank`, tokens weighted by the attention of the queries; `attention` is its sum.

What an image token "says" is a guess in both lenses, and a poor one in early blocks: a head that
copies what the lens does not read is not found. A head may also copy in another code, which a later
block reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.tools.analysis import logit_readout

from mm_lens.arguments import require_whole
from mm_lens.errors import InputError, MMLensError
from mm_lens.layout.groups import group_mask
from mm_lens.looking.attention import attention_map
from mm_lens.looking.lenses.heads import head_outputs, mean_of
from mm_lens.looking.lenses.neighbours import embedding_neighbours
from mm_lens.looking.logit_lens import visual_logit_lens
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.running.logits import keep_logits
from mm_lens.model.running.rerun import TOLERANCE
from mm_lens.model.streams import resolve_blocks

WAYS = ("embedding", "lens")


@torch.no_grad()
def copying_scores(
    model: VisionLanguageBridge,
    inputs: Inputs,
    where: Any = "visual",
    *,
    says: str | Int[Tensor, "batch pos"] = "embedding",
    query: Any = "last",
    layers: Sequence[int] | None = None,
    top_k: int = 10,
) -> pd.DataFrame:
    """Score how far each head copies; two or three forward passes. See the module for the columns.

    ```python
    table = copying_scores(model, inputs, "visual")
    (table["rank"] - table["others"]).nlargest(3)
    ```

    Args:
        model: in evaluation mode.
        inputs: what `model.prepare` returned.
        where: source tokens: a group, a `Box`, a mask.
        says: word of an image token: "embedding" or "lens", see the module; or a token id for each
            position, text and image alike. Tokens that the model cannot write, or of a negative
            id, are left out.
        query: who looks: "last", a group or a mask.
        layers: blocks, negative ones from the end; None takes all that have attention.
        top_k: how many words count as the first.

    Returns:
        A row for each block, head and row of the batch: layer, head, row, n_tokens, and the scores.

    Raises:
        InputError: a row has no such token; no such block, or word.
        MMLensError: what heads write is not attention times values through their output matrix.
    """
    check_inputs(model, inputs)
    model.report.require("A score of what heads copy", "residual")
    vocabulary = int(model.W_U.shape[1])
    if require_whole("top_k", top_k, 1) > vocabulary:
        raise InputError(f"top_k={top_k} is more than the {vocabulary} words there are.")
    blocks = resolve_blocks(model, "z", layers)
    source, looks = (group_mask(inputs.layout, group).cpu() for group in (where, query))
    for group, mask in ((where, source), (query, looks)):
        if not bool(mask.any(1).all()):
            row = int((~mask.any(1)).nonzero()[0])
            raise InputError(f"Row {row} has no position of {group!r}.")
    words = _find_words(model, inputs, source, says, blocks)
    weights = attention_map(model, inputs, query=query, key="all", layers=blocks)
    pattern = weights.as_subclass(Tensor).double().nan_to_num(0)
    short = ("attn.hook_v", "attn.hook_z", "hook_attn_out")
    names = [f"blocks.{b}.{x}" for b in blocks for x in short]
    _, cache = model.run_with_cache(inputs, names_filter=names, **keep_logits(model, 1))
    rows = []
    for k, block in enumerate(blocks):
        matrices, values = _check_sum(model, cache, block, pattern[k], looks)
        for row in range(len(source)):
            here = words[k, row] >= 0
            at = values[row, here.to(values.device)]
            own = words[k, row, here]
            for head in range(len(matrices)):
                written = at[:, head] @ matrices[head]
                attention = pattern[k, head, row, here]
                found = _score(model, written, own, attention, top_k, vocabulary)
                rows.append({"layer": block, "head": head, "row": row, **found})
    return pd.DataFrame(rows)


def _find_words(
    model: VisionLanguageBridge,
    inputs: Inputs,
    source: Tensor,
    says: Any,
    blocks: Sequence[int],
) -> Int[Tensor, "block batch pos"]:
    """The word of each position, for each block; negative where it is left out.

    Raises:
        InputError: there is no such way, or nothing is left in a row.
    """
    n = len(blocks)
    if isinstance(says, Tensor):
        words = repeat(says.cpu().long(), "batch pos -> n batch pos", n=n)
    elif says in WAYS:
        words = repeat(inputs.input_ids.cpu(), "batch pos -> n batch pos", n=n).clone()
        image = inputs.layout.mask("visual").cpu() & source
        if image.any() and says == "embedding":
            near = embedding_neighbours(model, inputs, image, layers=[0], top_k=1)
            words[:, image] = near.entries[0, ..., 0][image]
        elif image.any():
            lens = visual_logit_lens(model, inputs, image, layers=list(blocks), top_k=1)
            words[:, image] = lens.top_ids[..., 0][:, image]
    else:
        raise InputError(
            f"says is one of {WAYS}, or a tensor with a token id for each position, not {says!r}."
        )
    words[:, ~source | (words >= model.W_U.shape[1]).any(0)] = -1
    if not bool((words >= 0).any(-1).all()):
        raise InputError(
            f"In some row no source token has a word that the model can write: token ids are from "
            f"0 to {model.W_U.shape[1] - 1}."
        )
    return words


def _check_sum(
    model: VisionLanguageBridge, cache: Any, block: int, pattern: Tensor, looks: Tensor
) -> tuple[Float[Tensor, "head d d_model"], Float[Tensor, "batch pos head d"]]:
    """Output matrices and values of a block's heads.

    Raises:
        MMLensError: heads do not mix values by attention, or do not add up.
    """
    z = mean_of(cache[f"blocks.{block}.attn.hook_z"], looks)
    head_outputs(model, block, z, mean_of(cache[f"blocks.{block}.hook_attn_out"], looks))
    values = cache[f"blocks.{block}.attn.hook_v"].double()
    heads = z.shape[1]
    values = repeat(values, "b pos k d -> b pos (k same) d", same=heads // values.shape[2])
    mixed = einsum(pattern.to(z.device), values, "head b pos, b pos head d -> b head d")
    error = float((mixed - z).abs().max() / z.abs().max().clamp(min=1e-6))
    weight = model.blocks[block].attn.o.original_component.weight
    if not error <= 10 * TOLERANCE.get(weight.dtype, 0.2):
        raise MMLensError(
            f"Attention at block {block} is not a sum over values: it misses by {error:.3g} of it, "
            "so what a head writes for one token is not defined."
        )
    split = "d_model (head d) -> head d d_model"
    return rearrange(weight.double().to(z.device), split, head=heads), values


def _score(
    model: VisionLanguageBridge,
    written: Float[Tensor, "n d_model"],
    own: Int[Tensor, " n"],
    attention: Float[Tensor, " n"],
    top_k: int,
    vocabulary: int,
) -> dict[str, float]:
    """The scores of one head."""
    distinct, which = own.unique(return_inverse=True)
    read = logit_readout(model, written.to(model.W_U.dtype), targets=distinct.tolist())
    assert read.target_ranks is not None
    above = read.target_ranks.cpu()
    below = 1 - above.double() / (vocabulary - 1)
    mine = rearrange(which, "n -> n 1")
    ranks = below.gather(1, mine)[:, 0]
    counts = torch.bincount(which, minlength=len(distinct)).double()
    of_others = counts * (torch.arange(len(distinct)) != mine)
    total = of_others.sum()
    weight = attention.cpu().double()
    return {
        "rank": float(ranks.mean()),
        "others": float((below * of_others).sum() / total) if total else math.nan,
        "top": float((above.gather(1, mine) < top_k).double().mean()),
        "attended": float((ranks * weight).sum() / weight.sum()) if weight.sum() else math.nan,
        "attention": float(weight.sum()),
        "n_tokens": len(own),
    }
