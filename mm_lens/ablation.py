"""Zero, mean and resample ablation of groups of positions.

*Zero* puts zeros, *mean* the mean over a data set (per group; `mean_activation`), *resample* what
another input has at the matching positions (`mm_lens.correspondence`). Zeros are far from anything
the model has seen; prefer mean or resample, and say which (Zhang and Nanda 2024, arXiv 2309.16042).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from transformer_lens.utilities.components_utils import get_act_name

from mm_lens.bridge import VisionLanguageBridge
from mm_lens.cache import LayoutCache
from mm_lens.correspondence import sources
from mm_lens.effects import Metrics, Table, effect_table, windows
from mm_lens.errors import HookError, InputError
from mm_lens.hooks import PARENTS
from mm_lens.inputs import Inputs
from mm_lens.moves import Move
from mm_lens.regions import group_mask, regions
from mm_lens.reruns import Rerun

How: TypeAlias = Literal["zero", "mean", "resample"]
Hook: TypeAlias = "tuple[str, Callable[..., Any]]"


def ablation_hooks(
    inputs: Inputs,
    group: Any,
    *,
    layers: Sequence[int],
    hook: str = "resid_post",
    how: How = "zero",
    means: Mapping[int, Tensor] | None = None,
    donor: LayoutCache | None = None,
) -> list[Hook]:
    """Forward hooks that ablate a group in a forward pass of `inputs`.

    Args:
        inputs: what the model is run on.
        group: group of the layout, ``"last"``, `Box` or mask (`mm_lens.regions`).
        layers: blocks.
        hook: short name of the hook point, as in `hooks.PARENTS`.
        how: "zero"; "mean", with `means`; "resample", with `donor`.
        means: mean of the group for each layer, from `mean_activation`.
        donor: cache of another input that holds `hook` at `layers`.

    Raises:
        InputError: the group is empty in some row, has no match in the donor, or what `how` needs
            is missing.
        HookError: no such hook point.
    """
    if hook not in PARENTS:
        raise HookError(f"No hook point is called {hook!r}. Use: {', '.join(PARENTS)}.")
    found = regions(inputs.layout, {str(group): group})
    mask = found.masks[0]
    if how == "zero":
        return [(_point(hook, k), partial(_fill, mask=mask, value=None)) for k in layers]
    if how == "mean":
        if means is None or any(k not in means for k in layers):
            raise InputError('how="mean" needs means= of every layer: see mean_activation.')
        return [(_point(hook, k), partial(_fill, mask=mask, value=means[k])) for k in layers]
    if how != "resample":
        raise InputError(f'how is "zero", "mean" or "resample", not {how!r}.')
    if donor is None:
        raise InputError('how="resample" needs donor=, the cache of another input.')
    move = Move(*sources(found, inputs.layout, donor.layout)[0])
    return [
        (_point(hook, k), partial(_move, move=move, values=move.values(donor[_point(hook, k)])))
        for k in layers
    ]


def mean_activation(
    model: VisionLanguageBridge,
    samples: Iterable[Inputs],
    group: Any,
    *,
    layers: Sequence[int],
    hook: str = "resid_post",
) -> dict[int, Tensor]:
    """Mean of a group's activations over all its tokens in `samples`, for each layer.

    Memory does not grow with the samples.

    Raises:
        InputError: no sample has a token of the group.
    """
    totals: dict[int, Tensor] = {}
    count = 0
    for inputs in samples:
        mask = group_mask(inputs.layout, group)
        names = [_point(hook, k) for k in layers]
        with torch.no_grad():
            _, cache = model.run_with_cache(inputs, names_filter=names)
        for k, name in zip(layers, names, strict=True):
            held = cache[name]
            total = held[mask.to(held.device)].double().sum(0)
            totals[k] = totals.get(k, torch.zeros_like(total)) + total
        count += int(mask.sum())
    if not count:
        raise InputError(f"No sample has a position of the group {group!r}.")
    return {k: (total / count).float() for k, total in totals.items()}


def ablation_table(
    model: VisionLanguageBridge,
    samples: Sequence[tuple[Inputs, Metrics]],
    groups: Sequence[Any] | Mapping[str, Any],
    *,
    how: How = "zero",
    hook: str = "resid_post",
    window: int = 1,
    stride: int = 1,
    seed: int = 0,
    **options: Any,
) -> Table:
    """Effect of ablating each group in each window of layers, over samples, as a tidy table.

    Args:
        model: in evaluation mode.
        samples: inputs and their metric (or named metrics).
        groups: groups, or a mapping from names to them.
        how: "zero"; "mean" over all samples; "resample" from another sample, drawn by `seed` so
            that none is its own donor.
        hook: short name of the hook point.
        window: layers ablated together.
        stride: layers from the start of one window to the next.
        seed: of donors and intervals.
        options: those of `mm_lens.effects.effect_table`.

    Returns:
        As `knockout_table`, with the column group in place of edge, source and target.

    Raises:
        InputError: see `ablation_hooks`; or resampling from fewer than two samples.
    """
    named = groups if isinstance(groups, Mapping) else {str(group): group for group in groups}
    spans = windows(model.cfg.n_layers, window, stride)
    cells = [
        {"first_layer": span[0], "last_layer": span[-1], "group": name}
        for span in spans
        for name in named
    ]
    every = sorted({k for span in spans for k in span})
    inputs_of = [inputs for inputs, _ in samples]
    means: dict[str, Mapping[int, Tensor]] = {}
    if how == "mean":
        means = {
            name: mean_activation(model, inputs_of, group, layers=every, hook=hook)
            for name, group in named.items()
        }
    donors = _donors(len(samples), seed) if how == "resample" else []

    def prepare(rerun: Rerun) -> Any:
        donor = None
        if donors:
            which = next(i for i, inputs in enumerate(inputs_of) if inputs is rerun.inputs)
            names = [_point(hook, k) for k in every]
            with torch.no_grad():
                _, donor = model.run_with_cache(inputs_of[donors[which]], names_filter=names)

        def run(chunk: Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
            out: list[Tensor] = []
            for cell in chunk:
                span = range(cell["first_layer"], cell["last_layer"] + 1)
                name = cell["group"]
                hooks = ablation_hooks(
                    rerun.inputs,
                    named[name],
                    layers=span,
                    hook=hook,
                    how=how,
                    means=means.get(name),
                    donor=donor,
                )
                out += rerun.run(span[0], 1, hooks)
            return tuple(out)

        return run

    about = ["ablation", sorted(named.items(), key=str), how, hook, window, stride, donors]
    return effect_table(model, samples, cells, prepare, about=about, seed=seed, **options)


def _donors(n: int, seed: int) -> list[int]:
    """A donor for each of `n` samples: none its own, each used once."""
    if n < 2:
        raise InputError("Resampling needs at least two samples: none may be its own donor.")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    return [order[(order.index(i) + 1) % n] for i in range(n)]


def _point(hook: str, layer: int) -> str:
    return str(get_act_name(hook, layer))


def _fill(tensor: Tensor, hook: Any, mask: Tensor, value: Tensor | None) -> Tensor:
    out = tensor.clone()
    copies = mask.repeat(len(tensor) // len(mask), 1).to(tensor.device)
    out[copies] = 0 if value is None else value.to(tensor.device, tensor.dtype)
    return out


def _move(tensor: Tensor, hook: Any, move: Move, values: Tensor) -> Tensor:
    out = tensor.clone()
    out[move.row, move.target] = values.to(tensor.device, tensor.dtype)
    return out
