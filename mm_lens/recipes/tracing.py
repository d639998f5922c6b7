"""Recipes of causal tracing: what is put back into a run whose picture is spoilt.

Spoilt by noise: to each image token where the language model begins normal noise is added, of three
standard deviations of these tokens. Or by another picture: a counterfactual pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor
from transformer_lens.utilities.components_utils import get_act_name
from transformer_lens.utilities.statistics import derive_generator

from mm_lens.causal.ablation import Edit, ablation_hooks, make_edit_hook
from mm_lens.causal.patching import get_act_patch_attn_head_out_by_pos
from mm_lens.looking.token_values import read_states
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.cache import LayoutCache
from mm_lens.model.hooks import NamedHook
from mm_lens.model.running.logits import keep_logits
from mm_lens.recipes.pairs import Pair, find_pairs
from mm_lens.recipes.questions import Asked, read
from mm_lens.recipes.recipe import Measured, Recipe, summarise

NOISE = 3.0
"""Standard deviations of the embeddings."""
DRAWS = 500
RESTORED = ("attn_out", "mlp_out")


def trace(model: VisionLanguageBridge, asked: Sequence[Asked], seed: int) -> Measured:
    """Put attention and MLP outputs at image tokens back, in windows of a third of the blocks."""
    n = model.cfg.n_layers
    width = max(1, n // 3)
    generator = derive_generator(seed, "noise")
    rows: list[dict[str, Any]] = []
    pairs = find_pairs(model, asked, seed)
    for number, pair in enumerate(pairs):
        donor = _clean(model, pair.clean, RESTORED, range(n))
        spoilt = [("noise", pair.clean, _noise_hooks(model, pair.clean, generator))]
        spoilt.append(("pair", pair.other, []))
        plain = read(model, pair.clean)
        for name, question, hooks in spoilt:
            with model.hooks(fwd_hooks=hooks):
                low = read(model, question)
            for start in range(n - width + 1):
                back = _restore(model, question, donor, range(start, start + width))
                with model.hooks(fwd_hooks=[*hooks, *back]):
                    found = read(model, question)
                rows.append(
                    {
                        "question": number,
                        "id": question.sample.id,
                        "spoilt_by": name,
                        "first_block": start,
                        "n_blocks": width,
                        "clean": plain,
                        "spoilt": low,
                        "rise": found - low,
                    }
                )
    table = pd.DataFrame(rows)
    left = [pair.clean for pair in pairs]
    by_noise, by_pairs = (
        summarise(_early_less_middle(part, n, width), left, table, seed)
        for part in (table[table["spoilt_by"] == name] for name in ("noise", "pair"))
    )
    note = f"by pairs: {by_pairs.value:.3g} ({by_pairs.low:.3g} to {by_pairs.high:.3g})"
    return replace(by_noise, note=note)


def _early_less_middle(table: pd.DataFrame, n: int, width: int) -> list[float]:
    """Rise of the first window less that of the window in the middle, for each question."""
    wide = table.pivot_table(index="question", columns="first_block", values="rise")
    return (wide[0] - wide[(n - width) // 2]).tolist()


def _clean(
    model: VisionLanguageBridge, question: Asked, hooks: Sequence[str], layers: Sequence[int]
) -> LayoutCache:
    names = [str(get_act_name(hook, k)) for hook in hooks for k in layers]
    cache: LayoutCache
    with torch.no_grad():
        _, cache = model.run_with_cache(
            question.inputs, names_filter=names, **keep_logits(model, 1)
        )
    return cache


def _restore(
    model: VisionLanguageBridge, question: Asked, donor: LayoutCache, layers: Sequence[int]
) -> list[NamedHook]:
    return [
        hook
        for name in RESTORED
        for hook in ablation_hooks(
            model,
            question.inputs,
            question.visual,
            layers=layers,
            hook=name,
            how="resample",
            donor=donor,
        )
    ]


def _noise_hooks(
    model: VisionLanguageBridge, question: Asked, generator: torch.Generator
) -> list[NamedHook]:
    """Noise on the image tokens where the language model begins, the same in every run."""
    held: list[Tensor] = []
    mask = question.visual
    read_states(model, question.inputs, [0], lambda _, state: held.append(state[mask]))
    (tokens,) = held
    noise = torch.randn(tokens.shape, generator=generator).to(tokens)
    noisy = tokens + NOISE * tokens.float().std().to(tokens) * noise
    row, position = mask.nonzero(as_tuple=True)
    edit = Edit(row, position, noisy)
    return [("blocks.0.hook_resid_pre", make_edit_hook([edit], question.inputs.layout))]


def compare_heads(model: VisionLanguageBridge, asked: Sequence[Asked], seed: int) -> Measured:
    """Put each head's output back into the run of the other picture, and compare kinds."""
    effects, kinds, pictures, rows = [], [], [], []
    for pair in find_pairs(model, asked, seed):
        found = _head_effects(model, pair)
        effects.append(found)
        kind = str(pair.clean.sample.about.get("kind"))
        kinds.append(kind)
        pictures.append(pair.clean.picture)
        about = {"id": pair.clean.sample.id, "kind": kind}
        rows += [
            {**about, "layer": layer, "head": head, "effect": value}
            for (layer, head), value in np.ndenumerate(found)
        ]
    table = pd.DataFrame(rows)
    values = np.stack([found.ravel() for found in effects])
    named, whose = np.asarray(kinds), np.asarray(pictures)
    several = [k for k in dict.fromkeys(kinds) if len(set(whose[named == k])) > 1]
    if len(several) < 2:
        why = "Heads are compared between kinds of questions (column kind) about two pictures each."
        return Measured(math.nan, math.nan, math.nan, table, why)
    groups = [(values[named == k], whose[named == k]) for k in several]
    value = _agreement([effect.mean(0) for effect, _ in groups])
    chance = np.random.default_rng(seed)
    draws = [
        _agreement([_resampled_mean(effect, of, chance) for effect, of in groups])
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    means = table.groupby(["layer", "head"])["effect"].mean()
    best = ", ".join(f"{layer}.{head}" for layer, head in means.nlargest(3).index)
    return Measured(value, float(low), float(high), table, f"largest effects: {best}")


def _head_effects(model: VisionLanguageBridge, pair: Pair) -> Any:
    """What each head brings back of the clean answer's logit difference: [layer, head]."""
    clean = _clean(model, pair.clean, ["z"], range(model.cfg.n_layers))
    found = get_act_patch_attn_head_out_by_pos(
        model,
        pair.other.inputs,
        clean,
        pair.other.answers.logit_diff,
        axis={"all": "all"},
        progress=False,
    )
    assert found.baseline is not None
    return (found.values[:, 0, :, 0] - found.baseline[0]).double().cpu().numpy()


def _resampled_mean(effect: Any, picture: Any, chance: np.random.Generator) -> Any:
    """The mean of the effects of as many pictures, drawn anew."""
    there = np.unique(picture)
    drawn = chance.choice(there, len(there))
    return np.concatenate([effect[picture == one] for one in drawn]).mean(0)


def _agreement(means: Sequence[Any]) -> float:
    """The rank correlation of each two, over heads; the mean."""
    return float(np.mean([spearmanr(a, b).statistic for a, b in combinations(means, 2)]))


RECIPES = (
    Recipe(
        name="causal-tracing",
        paper="Basu et al., Understanding Information Storage and Transfer in Multi-modal Large "
        "Language Models, arXiv 2406.04236",
        claim="What the answer needs comes out of the attention and the MLPs of early blocks, not "
        "of those in the middle, as in language models.",
        statistic="rise of the right option's probability, under noise on the image tokens, when "
        "the clean outputs of attention and MLP at these tokens are put back in the first third of "
        "the blocks, less that of the third in the middle",
        threshold=0.0,
        above=True,
        published="LLaVA and multi-modal Phi-2: much earlier blocks than in language models (the "
        "abstract), no figure of this kind",
        miniature="The paper spoils the words of the question that name what the picture shows, "
        "of facts to be known by heart; a miniature knows none, so the picture is spoilt, and what "
        "late blocks write at image tokens comes too late to be read.",
        measure=trace,
    ),
    Recipe(
        name="counterfactual-heads",
        paper="Golovanevsky et al., What Do VLMs NOTICE?, arXiv 2406.16320",
        claim="The same heads matter whatever is asked.",
        statistic="rank correlation over heads between kinds of questions of how much of the right "
        "answer's logit difference a head's clean output brings back in the run of a picture that "
        "differs in what is asked about",
        threshold=0.5,
        above=True,
        published="BLIP and LLaVA: 'universal attention heads' across tasks (the abstract), no "
        "figure of this kind",
        miniature="Two kinds of questions about one shape are more alike than the paper's tasks; "
        "few pairs lower a correlation.",
        measure=compare_heads,
    ),
)
