"""Functional dimension: how many directions of its tokens a model needs for its answers.

The tokens of a group are projected, where they enter a block, onto their mean and their first k
principal directions, which other images have given; everything else about them is gone. The
smallest k that keeps 95 % of the accuracy is the functional dimension of that layer. Counts that
look at the cloud of states alone (TwoNN, participation ratio, effective rank) stand beside it.

Directions at random are the control: where k of those do as well, the answer is spread over many
directions, and principal ones are nothing special. Where one direction keeps all (also `k = 0`,
the mean alone), nothing of these tokens is needed from this layer on.

Limits: principal directions are those of variance, not of use; what is needed may lie in a narrow
one, so that this is an upper bound of the smallest subspace that would do. k is one of `sizes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast

import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from transformer_lens.utilities.statistics import derive_generator

from mm_lens.arguments import require_kind, require_number, require_whole
from mm_lens.causal.effects import EffectTable, effect_table
from mm_lens.errors import InputError
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs
from mm_lens.model.running.rerun import Rerun
from mm_lens.model.streams import resolve_blocks
from mm_lens.replacing.fitting import require_others
from mm_lens.replacing.outcomes import watch
from mm_lens.replacing.subspaces import Subspace, Subspaces, place_edits, require_layers

Rows: TypeAlias = Float[Tensor, "batch n d"]
Directions: TypeAlias = Literal["principal", "random"]


def dimension_table(
    model: VisionLanguageBridge,
    samples: Sequence[tuple[Inputs, Any]],
    subspaces: Subspaces,
    *,
    sizes: Sequence[int] | None = None,
    directions: Sequence[Directions] = ("principal", "random"),
    layers: Sequence[int] | None = None,
    seed: int = 0,
    **options: Any,
) -> EffectTable:
    """Effect on the answers of keeping only k directions of the tokens that enter a block.

    ```python
    table = dimension_table(model, samples, fit_subspaces(model, others), sizes=[0, 1, 2, 4, 8])
    functional_dimension(table, subspaces)
    ```

    Args:
        model: in evaluation mode.
        samples: as `replacement_table` takes them.
        subspaces: from `fit_subspaces`.
        sizes: numbers of directions; None takes 0, 1, 2, 4, … and all.
        directions: "principal", "random".
        layers: blocks that are entered; None takes all that there are directions of.
        seed: of random directions and intervals.
        options: those of `mm_lens.causal.effects.effect_table`.

    Returns:
        As `replacement_table`, with the columns directions and k.

    Raises:
        InputError: a layer has no directions, or not as many; a picture was fitted on.
    """
    require_kind("subspaces", subspaces, Subspaces, "what fit_subspaces returns")
    numbers = [*subspaces.layers] if layers is None else resolve_blocks(model, "resid_pre", layers)
    require_layers(subspaces, numbers)
    require_others(subspaces.seen, samples)
    if isinstance(directions, str) or not {*directions} <= {"principal", "random"}:
        raise InputError(f'directions are out of "principal", "random", not {directions!r}.')
    d = len(next(iter(subspaces.layers.values())).mean)
    chosen = _double(d) if sizes is None else [require_whole("A size", k, 0) for k in sizes]
    if not chosen or max(chosen) > d:
        raise InputError(f"sizes are numbers of directions from 0 to {d}, not {sizes!r}.")
    trials = [
        {"group": subspaces.group, "directions": which, "k": k, "first_layer": n, "last_layer": n}
        for n in numbers
        for which in directions
        for k in chosen
    ]
    basis: dict[Any, Tensor] = {("principal", n): subspaces.layers[n].directions for n in numbers}
    if "random" in directions:
        basis |= {("random", n): _draw(d, seed + n) for n in numbers}

    def edit(trial: Mapping[str, Any]) -> Callable[[Rows], Rows]:
        layer = trial["first_layer"]
        kept = basis[trial["directions"], layer][: trial["k"]]
        return project(subspaces.layers[layer].mean, kept)

    def prepare(rerun: Rerun) -> Any:
        def run(chunk: Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
            layer = chunk[0]["first_layer"]
            hooks = place_edits(subspaces.group, layer, [edit(trial) for trial in chunk])
            return rerun.run(layer, len(chunk), hooks)

        return run

    about = ["dimension", subspaces.group, describe(subspaces), seed]
    return effect_table(
        model, watch(model, samples), trials, prepare, about=about, seed=seed, **options
    )


def project(
    mean: Float64[Tensor, " d"], directions: Float64[Tensor, "k d"]
) -> Callable[[Rows], Rows]:
    """An edit that keeps of states, about a mean, what lies along orthonormal directions."""

    def edit(rows: Rows) -> Rows:
        wide = torch.promote_types(rows.dtype, torch.float32)
        centre, kept = (x.to(rows.device, wide) for x in (mean, directions))
        along = (rows.to(wide) - centre) @ kept.T
        projected: Tensor = centre + along @ kept
        return projected

    return edit


def describe(subspaces: Subspaces) -> list[Any]:
    """What tells subspaces apart, for a file that is resumed."""

    def told(one: Subspace) -> tuple[Tensor, ...]:
        return one.mean, one.ordinary, one.directions

    return [(k, told(one)) for k, one in subspaces.layers.items()]


def _double(d: int) -> list[int]:
    return [0, *(2**i for i in range(int(math.log2(d)) + 1) if 2**i < d), d]


def _draw(d: int, seed: int) -> Float64[Tensor, "d d"]:
    generator = derive_generator(seed, "directions")
    found: Tensor = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    return found


def functional_dimension(
    table: pd.DataFrame, subspaces: Subspaces | None = None, *, keep: float = 0.95
) -> pd.DataFrame:
    """The smallest k from which on the accuracy stays above `keep` of what it was.

    `low` and `high` are the same of the ends of the intervals of the accuracies: k below `low`
    loses more than that for certain (at the level of the table, one k at a time), from `high` on
    surely less. NaN: no k among the sizes does.

    Args:
        table: from `dimension_table`, with the metric accuracy.
        subspaces: whose counts are put beside it.
        keep: share of the accuracy.

    Raises:
        InputError: the table is another one.
    """
    require_number("keep", keep, 0, 1)
    if missing := {"directions", "k", "metric", "effect", "low", "high"} - {*table.columns}:
        raise InputError(
            f"functional_dimension takes what dimension_table returns: there is no column "
            f"{min(missing)!r}."
        )
    found = []
    accuracy = pd.DataFrame(table)[table["metric"] == "accuracy"].sort_values("k")
    for (layer, which), rows in accuracy.groupby(["first_layer", "directions"], sort=True):
        bound = (keep - 1) * float(rows["baseline"].iloc[0]) - 1e-9
        place = {"layer": layer, "directions": which, "accuracy": rows["baseline"].iloc[0]}
        columns = {"k": "effect", "low": "high", "high": "low"}
        where = {
            name: _from_on(rows["k"].to_list(), (rows[of] >= bound).to_list())
            for name, of in columns.items()
        }
        counts = subspaces.layers[cast(int, layer)].counts if subspaces is not None else {}
        found.append({**place, **where, **counts})
    return pd.DataFrame(found)


def _from_on(sizes: Sequence[int], enough: Sequence[bool]) -> float:
    """The first size from which on all are enough."""
    last = next((i for i in range(len(sizes) - 1, -1, -1) if not enough[i]), -1)
    return float(sizes[last + 1]) if last + 1 < len(sizes) else math.nan
