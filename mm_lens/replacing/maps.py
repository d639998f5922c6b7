"""Affine maps of what each block does to a group of tokens, fitted on other images.

A block turns the state x of a token, all others given, into y. In its place:

| how | what the token gets |
|---|---|
| `"affine"` | the best affine map: `x + (mean y - mean x) + (x - mean x) U`, `U` a ridge regression of the update `y - x` |
| `"shift"` | `x + (mean y - mean x)`: what the block adds on average, the same for all tokens |
| `"identity"` | `x`: the block adds nothing |
| `"mean"` | `mean y`: no token knows any more what it was |
| `"random"` | as affine, with the singular values of `U` and directions at random: as much, as many dimensions, nothing that was learnt |
| `"block"` | y itself: changes nothing, and says so |

Only what the block writes to these tokens is replaced: the others attend, in this block too, to
what enters it. The strength of the ridge is chosen in four folds of samples; `linearity` is the
held-out R² of the state in these folds, `linearity_update` that of the update (both by a little too
good, since the strength was chosen for them).

Of the residual stream. The maps of the main stream (without skip connections) are of states that
the model never has: there is no answer that they could be tried on.

Memory: 12 d × d matrices for each block. Cost: a forward pass of each batch, six eigendecompositions
of d × d for each block.
"""  # noqa: E501

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, TypeAlias, get_args

import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from transformer_lens.utilities.statistics import derive_generator

from mm_lens.errors import InputError, MMLensWarning
from mm_lens.metrics.numerics.moments import Moments
from mm_lens.metrics.numerics.regression import Ridge, fit_ridge
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.hooks import NamedHook
from mm_lens.model.inputs import Inputs
from mm_lens.model.streams import resolve_blocks
from mm_lens.replacing.fitting import picture_sums, read_states

How: TypeAlias = Literal["affine", "shift", "identity", "mean", "random", "block"]
HOWS: tuple[How, ...] = get_args(How)
Rows: TypeAlias = Float[Tensor, "batch n d"]
Replace: TypeAlias = Callable[[Rows, Rows], Rows]
"""From what entered and what left a block to what takes its place."""

FOLDS = 4
ENOUGH = 10
"""Tokens for each dimension, below which a map is mostly noise."""


@dataclass(frozen=True)
class BlockMap:
    """The affine map of one block.

    Attributes:
        into: mean of what enters.
        out: mean of what leaves.
        update: what is added to a state beyond `out - into`, of its difference from `into`.
        n: tokens that it was fitted to.
        linearity: held-out R² of the state.
        linearity_update: held-out R² of the update; NaN where there is none.
    """

    into: Float64[Tensor, " d"]
    out: Float64[Tensor, " d"]
    update: Float64[Tensor, "d d"]
    n: int
    linearity: float
    linearity_update: float

    def replace(self, how: How, seed: int = 0) -> Replace:
        """What is put in the place of the block; `seed` is of random directions."""
        if how == "block":
            return lambda before, after: after
        if how == "identity":
            return lambda before, after: before
        if how == "mean":
            return lambda before, after: self.out.to(after).expand_as(after)
        update = torch.zeros_like(self.update) if how == "shift" else self.update
        if how == "random":
            update = turn_at_random(self.update, seed)

        def put(before: Rows, after: Rows) -> Rows:
            wide = torch.promote_types(before.dtype, torch.float32)
            into, out, of = (x.to(before.device, wide) for x in (self.into, self.out, update))
            moved: Tensor = before.to(wide) + (out - into) + (before.to(wide) - into) @ of
            return moved.to(after.dtype)

        return put


def turn_at_random(matrix: Float64[Tensor, "d d"], seed: int) -> Float64[Tensor, "d d"]:
    """A matrix with the same singular values and directions at random on both sides."""
    generator = derive_generator(seed, "directions")
    sides = [torch.randn(*matrix.shape, generator=generator, dtype=matrix.dtype) for _ in range(2)]
    left, right = (torch.linalg.qr(side)[0].to(matrix.device) for side in sides)
    turned: Tensor = (left * torch.linalg.svdvals(matrix)) @ right
    return turned


@dataclass(frozen=True, eq=False)
class BlockMaps:
    """Maps of some blocks, for one group of tokens.

    Attributes:
        group: "visual" or "text".
        blocks: the map of each block.
        seen: checksums of the pictures that they were fitted on.
    """

    group: str
    blocks: Mapping[int, BlockMap]
    seen: frozenset[str]

    @property
    def table(self) -> pd.DataFrame:
        """How linear each block was, on pictures that a fold had not seen."""
        return pd.DataFrame(
            [(k, each.n, each.linearity, each.linearity_update) for k, each in self.blocks.items()],
            columns=["block", "n_tokens", "linearity", "linearity_update"],
        )

    def __repr__(self) -> str:
        return f"Maps of the {self.group} tokens\n{self.table.to_string(index=False)}"


def fit_maps(
    model: VisionLanguageBridge,
    others: Iterable[Inputs],
    group: str = "visual",
    *,
    layers: Sequence[int] | None = None,
) -> BlockMaps:
    """Fit the affine map of each block to the tokens of a group.

    ```python
    maps = fit_maps(model, [model.prepare(s.text, s.image) for s in data[:100]])
    ```

    Args:
        model: in evaluation mode.
        others: inputs with pictures that the maps will not be tried on; read once.
        group: "visual" or "text".
        layers: blocks, negative ones from the end; None takes all.

    Raises:
        InputError: no such group or block; or fewer than four rows have tokens of the group.
    """
    numbers = resolve_blocks(model, "resid_post", layers)
    names = {k: (f"blocks.{k}.hook_resid_pre", f"blocks.{k}.hook_resid_post") for k in numbers}
    parts: dict[int, dict[int, Moments]] = {k: {} for k in numbers}
    seen: frozenset[str] = frozenset()
    rows = 0
    every = [name for pair in names.values() for name in pair]
    for inputs, mask, states in read_states(model, others, group, every):
        seen |= picture_sums(inputs)
        held = [row for row in range(len(mask)) if bool(mask[row].any())]
        for row in held:
            fold, rows = rows % FOLDS, rows + 1
            for k, pair in names.items():
                x, y = (states[name][row][mask[row].to(states[name].device)] for name in pair)
                moments = Moments.of(x.double(), y.double())
                before = parts[k].get(fold)
                parts[k][fold] = moments if before is None else before + moments
    if rows < FOLDS:
        raise InputError(
            f"{rows} row(s) have {group} tokens: a map is fitted and chosen in {FOLDS} folds of "
            "them. Give more of others."
        )
    found = {k: _fit([*parts[k].values()]) for k in numbers}
    n, d = next((each.n, len(each.into)) for each in found.values())
    if n < ENOUGH * d:
        warnings.warn(
            f"The maps are fitted to {n} {group} tokens, {n / d:.1f} for each of {d} dimensions "
            f"({ENOUGH} wanted): they are mostly noise. Give more of others.",
            MMLensWarning,
            stacklevel=2,
        )
    return BlockMaps(group, found, seen)


def _fit(folds: list[Moments]) -> BlockMap:
    """The ridge map whose strength does best on folds that were held out."""
    whole = reduce(operator.add, folds)
    update, state = [], []
    for fold in folds:
        errors = Ridge(whole - fold).errors(fold)
        update.append(errors["update"])
        state.append(errors["state"][-1])
    missed = torch.stack(update).sum(0).clamp(min=0)
    choice = int(missed.argmin())
    left, total = float(missed[choice]), float(torch.stack(state).sum())
    alone = float(missed[-1])  # the last choice is no map at all
    fitted = fit_ridge(whole, "update", choice)
    return BlockMap(
        whole.x,
        whole.y,
        fitted.map,
        whole.n,
        1 - left / total if total > 0 else math.nan,
        1 - left / alone if alone > 1e-18 * total else math.nan,
    )


def replacement_hooks(
    model: VisionLanguageBridge,
    maps: BlockMaps,
    *,
    layers: Sequence[int] | None = None,
    how: How = "affine",
    seed: int = 0,
) -> list[NamedHook]:
    """Forward hooks that put the maps in the place of what blocks do to the group's tokens.

    They are hooks per modality: in `generate` those of text hold for what is written, too.

    ```python
    logits = model.run_with_hooks(inputs, fwd_hooks=replacement_hooks(model, maps, layers=[3, 4]))
    ```

    Args:
        model: the model.
        maps: from `fit_maps`.
        layers: blocks; None takes all that there is a map of.
        how: what takes the block's place; see the module.
        seed: of random directions.

    Raises:
        InputError: `how` is unknown, or there is no map of a block.
    """
    check_hows([how])
    numbers = [*maps.blocks] if layers is None else resolve_blocks(model, "resid_post", layers)
    require_maps(maps, numbers)
    return [
        hook
        for k in numbers
        for hook in place_hooks(maps.group, k, [maps.blocks[k].replace(how, seed + k)])
    ]


def place_hooks(group: str, block: int, each: Sequence[Replace]) -> list[NamedHook]:
    """Hooks that make replacement j in the j-th of as many copies of the inputs."""
    held: dict[str, Tensor] = {}

    def keep(rows: Rows, hook: Any) -> None:
        held["before"] = rows.clone()

    def put(rows: Rows, hook: Any) -> Rows:
        before = held.pop("before")
        pairs = zip(each, before.chunk(len(each)), rows.chunk(len(each)), strict=True)
        return torch.cat([replace(x, y) for replace, x, y in pairs])

    point = f"blocks.{block}.{group}.hook_resid_"
    return [(f"{point}pre", keep), (f"{point}post", put)]


def check_hows(how: Sequence[str]) -> None:
    """Refuse what cannot take a block's place.

    Raises:
        InputError: one of them is unknown, or there is none.
    """
    if isinstance(how, str) or not how or (unknown := [h for h in how if h not in HOWS]):
        what = how if isinstance(how, str) or not how else unknown[0]
        raise InputError(f"how is out of {', '.join(HOWS)}, not {what!r}.")


def require_maps(maps: BlockMaps, blocks: Sequence[int]) -> None:
    """Refuse blocks that there is no map of.

    Raises:
        InputError: there is none of one.
    """
    if missing := [k for k in blocks if k not in maps.blocks]:
        raise InputError(
            f"There is no map of block {missing[0]}: there are those of "
            f"{', '.join(map(str, maps.blocks))}. Name it in layers= of fit_maps."
        )
