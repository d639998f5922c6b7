"""Recipes about where heads look."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from transformer_lens.utilities.statistics import derive_generator

from mm_lens.causal.knockout import knockout
from mm_lens.heads.scores import head_scores, relative_attention
from mm_lens.heads.sinks import find_sinks
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.recipes.questions import Asked, draw, read, with_thing
from mm_lens.recipes.recipe import Measured, Recipe, summarise

CHOSEN = 3
NEUTRAL = "Write a general description of the image."


def localise(model: VisionLanguageBridge, asked: Sequence[Asked], seed: int) -> Measured:
    """Choose heads on half of the pictures, by attention alone, and score them on the others."""
    asked = with_thing(asked)
    parts = []
    for number, question in enumerate(asked):
        table = head_scores(model, question.inputs, question.thing)
        parts.append(table.assign(question=number, picture=question.picture))
    table = pd.concat(parts, ignore_index=True)
    pictures = table["picture"].unique()
    order = torch.randperm(len(pictures), generator=derive_generator(seed, "halves")).numpy()
    choosing = table["picture"].isin(pictures[order[: max(1, len(order) // 2)]])
    heads = table[choosing].groupby(["layer", "head"])[["image", "spatial_entropy"]].mean()
    looking = heads[heads["image"] >= heads["image"].mean()]
    best = looking["spatial_entropy"].nsmallest(CHOSEN).index
    rest = table[~choosing]
    if rest.empty:
        return Measured(math.nan, math.nan, math.nan, table, "One picture is too few to choose on.")
    mine = rest.set_index(["layer", "head"]).index.isin(best)
    of_all = rest.groupby("question")["overlap"].mean()
    of_mine = rest[mine].groupby("question")["overlap"].mean()
    left = [asked[k] for k in of_all.index]
    named = ", ".join(f"{layer}.{head}" for layer, head in best)
    return summarise((of_mine - of_all).tolist(), left, table, seed, f"chosen heads: {named}")


def look_relatively(model: VisionLanguageBridge, asked: Sequence[Asked], seed: int) -> Measured:
    """Relative attention at the thing over that at all image tokens."""
    asked = with_thing(asked)
    rows = []
    for question in asked:
        neutral = model.prepare(NEUTRAL, question.sample.images[0])
        found = relative_attention(model, question.inputs, neutral)[:, :, 0].mean((0, 1))
        thing, visual = question.thing[0].cpu(), question.visual[0].cpu()
        ratio = float(found[thing].mean() / found[visual].mean())
        right = read(model, question, "accuracy")
        rows.append({"id": question.sample.id, "log_ratio": math.log(ratio), "right": right})
    table = pd.DataFrame(rows)
    wrong = table[table["right"] == 0]["log_ratio"]
    note = f"of {len(wrong)} wrong answers: {wrong.mean():.3g}" if len(wrong) else ""
    return summarise(table["log_ratio"].tolist(), asked, table, seed, note)


def cut_sinks(model: VisionLanguageBridge, asked: Sequence[Asked], seed: int) -> Measured:
    """Hide visual sinks from all text, and as many other image tokens."""
    generator = derive_generator(seed, "other tokens")
    rows, left = [], []
    for question in asked:
        mask = find_sinks(model, question.inputs).mask.any(0) & question.visual.cpu()
        n, visual = int(mask.sum()), question.visual
        if not 0 < n < int(visual.sum()) / 2:
            continue
        plain = read(model, question)
        fall = []
        for key in (mask.to(visual.device), draw(visual & ~mask.to(visual.device), n, generator)):
            with knockout(model, question.inputs, query=question.question, key=key):
                fall.append(plain - read(model, question))
        rows.append({"id": question.sample.id, "sinks": n, "fall": fall[0], "others": fall[1]})
        left.append(question)
    if not rows:
        nothing = pd.DataFrame({"id": [], "sinks": [], "fall": [], "others": []})
        why = "No image token is a sink at the paper's threshold: there is nothing to hide."
        return Measured(math.nan, math.nan, math.nan, nothing, why)
    table = pd.DataFrame(rows)
    return summarise(np.asarray(table["fall"]).tolist(), left, table, seed)


RECIPES = (
    Recipe(
        name="localisation-heads",
        paper="Kang et al., Your Large Vision-Language Model Only Needs A Few Attention Heads For "
        "Visual Grounding, arXiv 2503.06287",
        claim="A few heads, chosen by how much and how compactly they look at the image, look at "
        "what is asked about.",
        statistic=f"overlap with the thing of {CHOSEN} heads (above the mean in attention to the "
        "image, the lowest spatial entropy; chosen on half of the pictures) on the other pictures, "
        "less the mean over all heads",
        threshold=0.0,
        above=True,
        published="several models; grounding with three heads near to that of tuned models",
        miniature="A miniature has few heads, and small pictures few tokens: overlap is coarse.",
        measure=localise,
    ),
    Recipe(
        name="relative-attention",
        paper="Zhang et al., MLLMs Know Where to Look, arXiv 2502.17422",
        claim="Attention relative to a neutral prompt is higher at what is asked about, also where "
        "the answer is wrong.",
        statistic="logarithm of the mean relative attention at the thing over that at all image "
        "tokens, all heads and blocks together",
        threshold=0.0,
        above=True,
        published="LLaVA-1.5, InstructBLIP and others: above 1 in most layers, right or wrong",
        miniature="A model that was never asked for descriptions has no neutral prompt.",
        measure=look_relatively,
    ),
    Recipe(
        name="visual-sinks",
        paper="Kang et al., See What You Are Told: Visual Attention Sink, arXiv 2503.03321",
        claim="Image tokens with massive activations draw attention and say nothing: without them "
        "answers are the same.",
        statistic="fall of the right option's probability when visual sinks are hidden from the "
        "question; the same is a fall of less than 0.02",
        threshold=0.02,
        above=False,
        published="LLaVA-1.5 and others: no fall without sinks",
        miniature="Massive activations come with size and long training: a miniature has none.",
        measure=cut_sinks,
    ),
)
