"""The directions in which a group's tokens spread where they enter each block, fitted on other
images; and how many there are, by the usual counts.

`layer` is the block that the states enter: what the rest of the model gets, features that a family
adds between blocks included. It is the layer of a profile, but for those features.

Memory: d × d and `MOST` states for each layer. Cost: a forward pass of each batch, an
eigendecomposition and a nearest-neighbour search for each layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from mm_lens.errors import InputError
from mm_lens.metrics import Tokens, concatenate, evaluate, subsample
from mm_lens.metrics.numerics.massive import KAPPA
from mm_lens.metrics.numerics.moments import Scatter
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.hooks import NamedHook
from mm_lens.model.inputs import Inputs
from mm_lens.model.streams import resolve_blocks
from mm_lens.replacing.fitting import picture_sums, read_states

COUNTS = ("dimension_mle", "participation_ratio", "effective_rank", "dimensions_95")
"""Metrics that stand beside a functional dimension; the first is TwoNN."""
MOST = 2048
"""States of each layer that the counts are of."""


@dataclass(frozen=True)
class Subspace:
    """Where the tokens of a group lie as they enter one block.

    Attributes:
        mean: of all of them.
        ordinary: mean of those that are not massive.
        directions: principal directions as rows, the widest spread first.
        counts: `COUNTS` of (a sample of) the tokens.
        n: number of tokens.
    """

    mean: Float64[Tensor, " d"]
    ordinary: Float64[Tensor, " d"]
    directions: Float64[Tensor, "d d"]
    counts: Mapping[str, float]
    n: int


@dataclass(frozen=True, eq=False)
class Subspaces:
    """Those of some layers, for one group of tokens.

    Attributes:
        group: "visual" or "text".
        layers: by the block that is entered.
        seen: checksums of the pictures that they were fitted on.
    """

    group: str
    layers: Mapping[int, Subspace]
    seen: frozenset[str]

    @property
    def table(self) -> pd.DataFrame:
        """The counts of each layer."""
        rows = [{"layer": k, "n_tokens": s.n, **s.counts} for k, s in self.layers.items()]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return f"Directions of the {self.group} tokens\n{self.table.to_string(index=False)}"


def find_massive(rows: Float[Tensor, "batch n d"]) -> Bool[Tensor, "batch n"]:
    """Tokens longer than `KAPPA` times the median of their row; rows of zeros are padding."""
    norms = torch.linalg.vector_norm(rows.float(), dim=-1)
    typical = norms.masked_fill(norms == 0, torch.nan).nanmedian(1, keepdim=True).values
    found: Tensor = norms > KAPPA * typical
    return found


def fit_subspaces(
    model: VisionLanguageBridge,
    others: Iterable[Inputs],
    group: str = "visual",
    *,
    layers: Sequence[int] | None = None,
    seed: int = 0,
) -> Subspaces:
    """Principal directions of a group's tokens at each layer, and counts of dimensions.

    Args:
        model: in evaluation mode.
        others: inputs with pictures that the directions will not be tried on; read once.
        group: "visual" or "text".
        layers: blocks that are entered, negative ones from the end; None takes all.
        seed: of the choice of tokens for the counts.

    Raises:
        InputError: no such group or block; or fewer than two tokens of the group.
    """
    numbers = resolve_blocks(model, "resid_pre", layers)
    names = {k: f"blocks.{k}.hook_resid_pre" for k in numbers}
    every: dict[int, Scatter] = {}
    ordinary: dict[int, Scatter] = {}
    kept: dict[int, Tokens] = {}
    seen: frozenset[str] = frozenset()
    first = 0
    for inputs, mask, states in read_states(model, others, group, [*names.values()]):
        seen |= picture_sums(inputs)
        row, position = mask.nonzero(as_tuple=True)
        for k, name in names.items():
            state = states[name]
            here = mask.to(state.device)
            x = state[here]
            apart = find_massive(state.masked_fill(~rearrange(here, "b n -> b n 1"), 0))[here]
            _add(every, k, x)
            _add(ordinary, k, x[~apart])
            found = Tokens(x, *(each.to(x.device) for each in (row + first, position, row)))
            found = found if k not in kept else concatenate(kept[k], found)
            kept[k] = subsample(found, MOST, seed)
        first += len(mask)
    if not every or min(scatter.n for scatter in every.values()) < 2:
        raise InputError(f"There are no {group} tokens to find directions of. Give more of others.")
    fitted = {}
    for k in numbers:
        _, vectors = torch.linalg.eigh(every[k].xx)
        counts = {name: each.value for name, each in evaluate(kept[k], None, COUNTS, seed).items()}
        fitted[k] = Subspace(every[k].mean, ordinary[k].mean, vectors.flip(1).T, counts, every[k].n)
    return Subspaces(group, fitted, seen)


def _add(sums: dict[int, Scatter], layer: int, x: Float[Tensor, "n d"]) -> None:
    if len(x):
        found = Scatter.of(x.double())
        sums[layer] = found if layer not in sums else sums[layer] + found


def require_layers(subspaces: Subspaces, layers: Sequence[int]) -> None:
    """Refuse layers that there is no subspace of.

    Raises:
        InputError: there is none of one.
    """
    if missing := [k for k in layers if k not in subspaces.layers]:
        raise InputError(
            f"There are no directions of layer {missing[0]}: there are those of "
            f"{', '.join(map(str, subspaces.layers))}. Name it in layers= of fit_subspaces."
        )


def place_edits(group: str, layer: int, each: Sequence[Any]) -> list[NamedHook]:
    """A hook that makes edit j where the j-th of as many copies of the inputs enters a block."""

    def put(rows: Float[Tensor, "batch n d"], hook: Any) -> Tensor:
        parts = zip(each, rows.chunk(len(each)), strict=True)
        return torch.cat([edit(part).to(part.dtype) for edit, part in parts])

    return [(f"blocks.{layer}.{group}.hook_resid_pre", put)]
