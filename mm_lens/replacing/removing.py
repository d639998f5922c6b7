"""Anisotropy and sinks: what becomes of the answers when they are taken away.

| what | what the tokens of the group get where they enter a block |
|---|---|
| `"leading direction"` | the mean along the first principal direction: it carries no difference between tokens any more |
| `"random direction"` | the same of a direction at random: the control of the first |
| `"massive tokens"` | those over 8 times the median length of their row get the mean of ordinary ones |
| `"ordinary tokens"` | as many others, drawn at random, get it: the control of the third |

Directions and means come from other images (`fit_subspaces`). A direction that carries most of the
variance and none of the answer is anisotropy without a use; massive tokens whose loss changes the
answer are no artefact. Where no token is massive there is nothing to remove, and a warning says so.
"""  # noqa: E501

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from transformer_lens.utilities.statistics import derive_generator

from mm_lens.arguments import require_kind
from mm_lens.causal.effects import EffectTable, effect_table
from mm_lens.errors import InputError, MMLensWarning
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs
from mm_lens.model.running.rerun import Rerun
from mm_lens.model.streams import resolve_blocks
from mm_lens.replacing.dimension import describe
from mm_lens.replacing.fitting import read_states, require_others
from mm_lens.replacing.outcomes import watch
from mm_lens.replacing.subspaces import (
    Subspace,
    Subspaces,
    find_massive,
    place_edits,
    require_layers,
)

What: TypeAlias = Literal[
    "leading direction", "random direction", "massive tokens", "ordinary tokens"
]
WHATS: tuple[What, ...] = get_args(What)
Rows: TypeAlias = Float[Tensor, "batch n d"]


def removal_table(
    model: VisionLanguageBridge,
    samples: Sequence[tuple[Inputs, Any]],
    subspaces: Subspaces,
    *,
    what: Sequence[What] = WHATS,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    **options: Any,
) -> EffectTable:
    """Effect on the answers of taking out the leading direction or the massive tokens.

    Args:
        model: in evaluation mode.
        samples: as `replacement_table` takes them.
        subspaces: from `fit_subspaces`.
        what: what is taken out; see the module.
        layers: blocks that are entered; None takes all that there are directions of.
        seed: of what is drawn, and of intervals.
        options: those of `mm_lens.causal.effects.effect_table`.

    Returns:
        As `replacement_table`, with the column what; and massive, the mean number of massive
        tokens in a row, at that layer.

    Raises:
        InputError: `what` is unknown, a layer has no directions, or a picture was fitted on.
    """
    require_kind("subspaces", subspaces, Subspaces, "what fit_subspaces returns")
    if isinstance(what, str) or not what or not {*what} <= {*WHATS}:
        raise InputError(f"what is out of {', '.join(WHATS)}, not {what!r}.")
    numbers = [*subspaces.layers] if layers is None else resolve_blocks(model, "resid_pre", layers)
    require_layers(subspaces, numbers)
    require_others(subspaces.seen, samples)
    group = subspaces.group
    found = watch(model, samples)
    massive = _count(model, [inputs for inputs, _ in found], group, numbers)
    if not any(massive.values()) and {"massive tokens", "ordinary tokens"} & {*what}:
        warnings.warn(
            f"No {group} token is massive at any of these layers, so that none is removed: the "
            "effect of removing them is zero because there are none.",
            MMLensWarning,
            stacklevel=2,
        )
    trials = [
        {
            "group": group,
            "what": name,
            "massive": massive[n],
            "first_layer": n,
            "last_layer": n,
        }
        for n in numbers
        for name in what
    ]
    edits = {(w, n): make_removal(subspaces.layers[n], w, seed + n) for w in what for n in numbers}

    def prepare(rerun: Rerun) -> Any:
        def run(chunk: Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
            layer = chunk[0]["first_layer"]
            each = [edits[trial["what"], layer] for trial in chunk]
            return rerun.run(layer, len(chunk), place_edits(group, layer, each))

        return run

    about = ["removal", group, describe(subspaces), seed]
    return effect_table(model, found, trials, prepare, about=about, seed=seed, **options)


def make_removal(subspace: Subspace, what: What, seed: int = 0) -> Callable[[Rows], Rows]:
    """The edit that takes something out of the tokens that enter one block."""
    if what in ("leading direction", "random direction"):
        direction = subspace.directions[0]
        if what == "random direction":
            direction = torch.randn(
                len(direction), generator=derive_generator(seed, "direction"), dtype=direction.dtype
            )
        return _flatten(subspace.mean, direction / direction.norm())

    def edit(rows: Rows) -> Rows:
        chosen = find_massive(rows)
        if what == "ordinary tokens":
            chosen = _draw_others(rows, chosen, seed)
        mean = subspace.ordinary.to(rows)
        return torch.where(chosen[..., None], mean, rows)

    return edit


def _flatten(
    mean: Float64[Tensor, " d"], direction: Float64[Tensor, " d"]
) -> Callable[[Rows], Rows]:
    def edit(rows: Rows) -> Rows:
        wide = torch.promote_types(rows.dtype, torch.float32)
        centre, unit = (x.to(rows.device, wide) for x in (mean, direction))
        along = (rows.to(wide) - centre) @ unit
        flat: Tensor = rows.to(wide) - along[..., None] * unit
        return flat

    return edit


def _draw_others(rows: Rows, massive: Tensor, seed: int) -> Tensor:
    """As many tokens of each row that are neither massive nor padding."""
    generator = derive_generator(seed, "tokens")
    order = torch.rand(rows.shape[1], generator=generator).to(rows.device).expand(massive.shape)
    there = rows.abs().sum(-1) > 0
    order = order.masked_fill(massive | ~there, 2.0)
    rank = order.argsort(1).argsort(1)
    chosen: Tensor = (rank < massive.sum(1, keepdim=True)) & (order < 2)
    return chosen


def _count(
    model: VisionLanguageBridge, samples: Sequence[Inputs], group: str, layers: Sequence[int]
) -> dict[int, float]:
    """Mean number of massive tokens of the group in a row, by layer."""
    names = {k: f"blocks.{k}.hook_resid_pre" for k in layers}
    counts, rows = dict.fromkeys(layers, 0), 0
    for _, mask, states in read_states(model, samples, group, [*names.values()]):
        rows += len(mask)
        for k, name in names.items():
            here = mask.to(states[name].device)
            counts[k] += int(find_massive(states[name].masked_fill(~here[..., None], 0)).sum())
    return {k: count / max(rows, 1) for k, count in counts.items()}
