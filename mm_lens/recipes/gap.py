"""The gap between the modalities over depth, as the Modality Integration Rate has it.

At each state the tokens of both modalities are scaled to a mean norm of 1 for text, and the Fréchet
distance between two normal distributions of their means and covariances is taken (Huang et al.
2024, arXiv 2410.07167). With few tokens it is too large by about the same at every state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float64
from torch import Tensor
from transformer_lens.utilities.statistics import derive_generator

from mm_lens.looking.token_values import read_states
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.recipes.questions import Asked
from mm_lens.recipes.recipe import Measured, Recipe

DRAWS = 100


def close_gap(model: VisionLanguageBridge, asked: Sequence[Asked], seed: int) -> Measured:
    """Logarithm of the gap at the last state less that at the first."""
    n_states, d = model.cfg.n_layers + 1, model.cfg.d_model
    n = max(question.picture for question in asked) + 1
    sums = torch.zeros(n_states, 2, n, 1 + 1 + d + d * d, dtype=torch.float64)
    for question in asked:
        masks = [question.visual, question.inputs.layout.mask("text")]

        def add(
            k: int,
            state: Tensor,
            masks: list[Tensor] = masks,
            picture: int = question.picture,
        ) -> None:
            for m, mask in enumerate(masks):
                x = state[mask.to(state.device)].double().cpu()
                square = einsum(x, x, "n a, n b -> a b").flatten()
                row = torch.cat(
                    [torch.tensor([len(x), float(x.norm(dim=-1).sum())]), x.sum(0), square]
                )
                sums[k, m, picture] += row

        read_states(model, question.inputs, range(n_states), add)
    gaps = [frechet(*(moments(sums[k, m].sum(0), d) for m in (0, 1))) for k in range(n_states)]
    generator = derive_generator(seed, "pictures")
    draws = []
    for _ in range(DRAWS if n > 1 else 0):
        chosen = torch.randint(n, (n,), generator=generator)
        ends = [
            frechet(*(moments(sums[k, m, chosen].sum(0), d) for m in (0, 1)))
            for k in (0, n_states - 1)
        ]
        draws.append(math.log(ends[1]) - math.log(ends[0]))
    value = math.log(gaps[-1]) - math.log(gaps[0])
    low, high = (math.nan, math.nan)
    if draws:
        found = torch.tensor(draws, dtype=torch.float64)
        low, high = (float(found.quantile(q)) for q in (0.025, 0.975))
    mir = math.log(sum(gaps[1:]))
    table = pd.DataFrame({"state": range(n_states), "gap": gaps})
    note = f"MIR, the logarithm of the sum over blocks: {mir:.3g}"
    return Measured(value, low, high, table, note)


def moments(
    sums: Float64[Tensor, " entries"], d: int
) -> tuple[float, Float64[Tensor, " d"], Float64[Tensor, "d d"]]:
    """Mean norm, mean and covariance, from sums over tokens."""
    n = sums[0]
    mean = sums[2 : 2 + d] / n
    square = sums[2 + d :].view(d, d) / n
    return float(sums[1] / n), mean, (square - torch.outer(mean, mean)) * n / (n - 1)


def frechet(
    visual: tuple[float, Float64[Tensor, " d"], Float64[Tensor, "d d"]],
    text: tuple[float, Float64[Tensor, " d"], Float64[Tensor, "d d"]],
) -> float:
    """Fréchet distance, both scaled by the mean norm of text."""
    scale = 1 / text[0]
    (_, a, s), (_, b, t) = visual, text
    values, vectors = torch.linalg.eigh(s)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    both = torch.linalg.eigvalsh(root @ t @ root).clamp(min=0).sqrt().sum()
    distance = (a - b).square().sum() + s.trace() + t.trace() - 2 * both
    return float(scale**2 * distance)


RECIPES = (
    Recipe(
        name="modality-gap",
        paper="Huang et al., Modality Integration Rate, arXiv 2410.07167",
        claim="The gap between visual and text tokens closes with depth.",
        statistic="logarithm of the Fréchet distance between the modalities at the last state less "
        "that at the first, tokens scaled to text's mean norm",
        threshold=0.0,
        above=False,
        published="LLaVA-1.5 and others: curves that fall over the layers",
        miniature="A curve can be confirmed; the height of MIR depends on width and tokens and "
        "does not compare.",
        measure=close_gap,
    ),
)
