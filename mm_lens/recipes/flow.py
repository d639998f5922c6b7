"""Recipes about who reads the image: windows of knock-out, and pruning."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.utilities.statistics import derive_generator

from mm_lens.causal.knockout import knockout
from mm_lens.layout.groups import last_position
from mm_lens.looking.attention import attention_map
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.recipes.questions import Asked, draw, read
from mm_lens.recipes.recipe import Measured, Recipe, summarise, summarise_changes

SHARE = 0.5
"""Of the image tokens that are pruned."""


def cut_windows(model: VisionLanguageBridge, asked: Sequence[Asked], seed: int) -> Measured:
    """Cut the image from the question, or from the last position, in windows of blocks."""
    n = model.cfg.n_layers
    width = max(1, n // 3)
    rows = []
    values = []
    for question in asked:
        plain = read(model, question)
        last = last_position(question.inputs.layout)
        fall = {}
        for name, query in (("question", question.question), ("last", last)):
            found = []
            for start in range(0, n - width + 1):
                blocks = range(start, start + width)
                with knockout(
                    model, question.inputs, query=query, key=question.visual, layers=blocks
                ):
                    cut = read(model, question)
                found.append((plain - cut) / max(plain, 1e-6))
                rows.append(
                    {
                        "id": question.sample.id,
                        "cut": f"image from {name}",
                        "first_block": start,
                        "n_blocks": width,
                        "relative_fall": found[-1],
                    }
                )
            fall[name] = sum(found) / len(found)
        values.append(fall["question"] - fall["last"])
    return summarise(values, asked, pd.DataFrame(rows), seed)


def prune(model: VisionLanguageBridge, asked: Sequence[Asked], seed: int) -> Measured:
    """Hide the half of the image tokens that the last position looks at least, after block k."""
    n = model.cfg.n_layers
    k = min(2, n - 1)
    generator = derive_generator(seed, "pruned")
    rows = []
    for question in asked:
        visual = question.visual
        attended = attention_map(model, question.inputs, layers=[k - 1])[0, :, 0].mean(0)
        size = round(SHARE * int(visual.sum()))
        least = _least(attended, visual, size)
        full = read(model, question, "accuracy")
        scores = {"full": full}
        for name, mask in (("pruned", least), ("at random", draw(visual, size, generator))):
            with knockout(
                model,
                question.inputs,
                query="all",
                key=mask,
                layers=range(k, n),
                keep_self=True,
            ):
                scores[name] = read(model, question, "accuracy")
        rows.append({"id": question.sample.id, **scores})
    table = pd.DataFrame(rows)
    change = table["pruned"] - table["full"]
    n = len({question.picture for question in asked})
    note = "" if change.any() else f"No answer changed, of {n} pictures."
    return summarise_changes(change.tolist(), asked, table, seed, note)


def _least(
    attended: Float[Tensor, " pos"], visual: Bool[Tensor, "1 pos"], size: int
) -> Bool[Tensor, "1 pos"]:
    """So many image tokens with the least attention."""
    here = attended.masked_fill(~visual[0].cpu(), torch.inf)
    out = torch.zeros_like(visual)
    out[0, here.nan_to_num(torch.inf).argsort()[:size].to(out.device)] = True
    return out


RECIPES = (
    Recipe(
        name="information-flow",
        paper="Zhang et al., Cross-modal Information Flow, arXiv 2411.18620",
        claim="The image reaches the answer through the question's tokens; the last position reads "
        "little of it directly.",
        statistic="mean over windows of a third of the blocks of the relative fall of the right "
        "option's probability when the image is cut from the question, less that when it is cut "
        "from the last position",
        threshold=0.0,
        above=True,
        published="LLaVA-1.5 7B and 13B, LLaVA-v1.6, Llama3-LLaVA-NeXT: curves; image to "
        "question matters most in lower layers, image to last position hardly",
        miniature="Few blocks: that there are two stages one after the other is not to be seen.",
        measure=cut_windows,
    ),
    Recipe(
        name="token-pruning",
        paper="Chen et al., An Image is Worth 1/2 Tokens After Layer 2 (FastV), arXiv 2403.06764",
        claim="After block 2 half of the image tokens, those with the least attention, can go at "
        "no cost.",
        statistic="accuracy with the half hidden from all tokens after block 2, less accuracy with "
        "all; no cost is a fall of less than 0.05",
        threshold=-0.05,
        above=True,
        published="LLaVA-1.5 13B: 45 % fewer operations without a loss (the abstract)",
        miniature="Of 8 blocks the second is a quarter of the way, of 32 a sixteenth: a fall here "
        "says nothing against the paper.",
        measure=prune,
    ),
)
