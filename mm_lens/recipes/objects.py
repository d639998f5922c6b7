"""Recipes about the image tokens of the thing: taking them out, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens.utilities.statistics import derive_generator

from mm_lens.causal.ablation import ablation_hooks, mean_activation
from mm_lens.looking.lenses.neighbours import latent_lens
from mm_lens.looking.lenses.text_index import build_text_index
from mm_lens.looking.logit_lens import first_token, visual_logit_lens
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.recipes.questions import Asked, draw, read, with_thing
from mm_lens.recipes.recipe import Measured, Recipe, summarise

LLAVA = "LLaVA-1.5 7B"


def ablate_objects(model: VisionLanguageBridge, asked: Sequence[Asked], seed: int) -> Measured:
    """Mean-ablate the tokens of the thing where the language model begins, and as many others."""
    asked = with_thing(asked)
    inputs = [question.inputs for question in asked]
    options: dict[str, Any] = {"layers": [0], "hook": "resid_pre"}
    means = mean_activation(model, inputs, "visual", **options)
    generator = derive_generator(seed, "other tokens")
    rows = []
    for question in asked:
        thing = question.thing
        n = int(thing.sum())
        others = draw(question.visual & ~thing, n, generator)
        plain = read(model, question)
        dropped = []
        for mask in (thing, others):
            hooks = ablation_hooks(model, question.inputs, mask, how="mean", means=means, **options)
            with model.hooks(fwd_hooks=hooks):
                dropped.append(plain - read(model, question))
        rows.append(
            {
                "id": question.sample.id,
                "tokens": n,
                "probability": plain,
                "drop_thing": dropped[0],
                "drop_others": dropped[1],
            }
        )
    table = pd.DataFrame(rows)
    values = (table["drop_thing"] - table["drop_others"]).tolist()
    return summarise(values, asked, table, seed)


def name_objects(model: VisionLanguageBridge, asked: Sequence[Asked], seed: int) -> Measured:
    """Log probability of the right word at the thing's tokens less that at the others', late.

    Each word has an offset of its own at image tokens: its mean over the questions with another
    answer is taken out.
    """
    asked = with_thing(asked)
    n = model.cfg.n_layers
    layers = list(range(n - max(1, n // 3), n))
    words = sorted({str(question.sample.answer) for question in asked})
    found = []
    for question in asked:
        lens = visual_logit_lens(
            model,
            question.inputs,
            question.visual,
            layers=layers,
            top_k=1,
            targets=words,
            quantity="log_probs",
        )
        thing = question.thing[0].cpu()
        others = question.visual[0].cpu() & ~thing
        found.append([_contrast(lens.targets[word][:, 0], thing, others) for word in words])
    values = torch.tensor(found)
    right = torch.tensor([words.index(str(question.sample.answer)) for question in asked])
    centred = []
    for row, word in enumerate(right):
        rest = values[right != word][:, word]
        centred.append(float(values[row, word] - (rest.mean() if len(rest) else 0)))
    table = pd.DataFrame({"id": [q.sample.id for q in asked], "contrast": centred})
    return summarise(centred, asked, table, seed)


def _contrast(values: Tensor, thing: Tensor, others: Tensor) -> float:
    """Mean over layers and tokens of the thing, less that over the other tokens."""
    return float(values[:, thing].mean() - values[:, others].mean())


def compare_lenses(model: VisionLanguageBridge, asked: Sequence[Asked], seed: int) -> Measured:
    """How often the right word is among the five nearest of a token of the thing: LatentLens less
    the logit lens, over all states."""
    asked = with_thing(asked)
    texts = sorted({q.sample.text for q in asked} | {f"the {q.sample.answer} one" for q in asked})
    words = sorted({f"it is {q.sample.answer} here" for q in asked})
    index = build_text_index(model, [*texts, *words], most_per_word=8)
    rows = []
    for question in asked:
        thing, answer = question.thing, str(question.sample.answer)
        k = min(5, len(index.contexts))
        near = latent_lens(model, question.inputs, index, thing, top_k=k).words()
        lens = visual_logit_lens(model, question.inputs, thing, top_k=5)
        token = first_token(model, answer)
        word = model.tokenizer.decode([token]).strip().lower()
        logit = (lens.top_ids[:, 0][:, thing[0].cpu()] == token).any(-1).float().mean()
        latent = [
            any(f"[{word}]" in text.lower().replace("[ ", "[") for text in at)
            for layer in near
            for at in layer
            if at
        ]
        rows.append(
            {
                "id": question.sample.id,
                "latent": sum(latent) / len(latent),
                "logit": float(logit),
            }
        )
    table = pd.DataFrame(rows)
    return summarise((table["latent"] - table["logit"]).tolist(), asked, table, seed)


RECIPES = (
    Recipe(
        name="object-ablation",
        paper="Neo et al., Towards Interpreting Visual Information Processing, arXiv 2410.07149",
        claim="What a picture shows lies in the image tokens where it is shown: without these the "
        "model no longer names it.",
        statistic="fall of the right option's probability when the tokens of the thing are set to "
        "the mean image token, less the fall for as many other image tokens",
        threshold=0.0,
        above=True,
        published=f"{LLAVA}: identification falls by over 70 %, far less for other tokens",
        miniature="A trained miniature can show it; how much falls depends on picture and task.",
        measure=ablate_objects,
    ),
    Recipe(
        name="object-words",
        paper="Neo et al., Towards Interpreting Visual Information Processing, arXiv 2410.07149",
        claim="In late layers the logit lens reads the thing's word at its own image tokens.",
        statistic="log probability of the right word at tokens of the thing less that at other "
        "image tokens, in the last third of the states before the end, the word's mean over "
        "questions with other answers taken out",
        threshold=0.0,
        above=True,
        published=f"{LLAVA}: shown on examples and by segmentation, no figure of this kind",
        miniature="Words of a miniature are few: what is read is which answer, not a description.",
        measure=name_objects,
    ),
    Recipe(
        name="latent-lens",
        paper="LatentLens, arXiv 2602.00462",
        claim="Words in texts with like states say what an image token shows, at all layers, "
        "better than the logit lens.",
        statistic="share of states of the thing's tokens with the right word among the five "
        "nearest contexts, less the share with it among the logit lens's five top words",
        threshold=0.0,
        above=True,
        published="several models, judged by a language model: no figure of this kind",
        miniature="The index is of the questions' own sentences: far smaller than the paper's, and "
        "right answers are a larger part of it, which favours the claim.",
        measure=compare_lenses,
    ),
)
