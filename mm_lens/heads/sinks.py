"""Attention sinks among image tokens, and attention taken from them to the rest of the picture.

A sink is a token whose state has a *sink dimension* far above the rest: `max_d |x_d| / rms(x)` over
these dimensions is at least a threshold (Kang et al. 2025, arXiv 2503.03321, which takes 20). Sink
dimensions are the model's own: those where the first token of a prompt, on which heads rest that
have nothing to do, is that far above. Small models may have none; then there is no sink.

`redistribution_hooks` takes a share of what chosen heads attend to at sinks and gives it to the
other image tokens in proportion to what these have already. Every row of the pattern still sums to
1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mm_lens.arguments import require_number, resolve_numbers
from mm_lens.errors import InputError
from mm_lens.heads.patterns import PatternEdit
from mm_lens.layout.groups import group_mask
from mm_lens.looking.token_values import read_states
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.hooks import NamedHook
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.streams import resolve_layers

THRESHOLD = 20.0
"""Of the paper, for models of 7 and 13 billion weights."""


@dataclass(frozen=True, eq=False)
class Sinks:
    """Which image tokens are sinks.

    Attributes:
        layers: states.
        dims: sink dimensions, found or given.
        height: largest of a token's sink dimensions over its root mean square.
        mask: which image tokens reach the threshold.
    """

    layers: tuple[int, ...]
    dims: tuple[int, ...]
    height: Float[Tensor, "layer batch pos"] = field(repr=False)
    mask: Bool[Tensor, "layer batch pos"] = field(repr=False)


def find_sinks(
    model: VisionLanguageBridge,
    inputs: Inputs,
    *,
    layers: Sequence[int] | None = None,
    dims: Sequence[int] | None = None,
    threshold: float = THRESHOLD,
) -> Sinks:
    """Sinks among the image tokens; one forward pass, two where dimensions are to be found.

    Args:
        model: the model.
        inputs: what `model.prepare` returned.
        layers: states, negative ones from the end; None takes all.
        dims: sink dimensions; None finds those of the first attended token of the rows, at any of
            the layers.
        threshold: how far above the root mean square.

    Raises:
        InputError: no such layer or dimension.
    """
    check_inputs(model, inputs)
    require_number("threshold", threshold, 0)
    wanted = resolve_layers(layers, model.cfg.n_layers + 1)
    attended = inputs.layout.mask("all")
    first = attended & (attended.cumsum(1) == 1)
    visual = inputs.layout.mask("visual").cpu()
    if dims is None:
        found: set[int] = set()

        def look(k: int, state: Tensor) -> None:
            x = heights(state[first.to(state.device)])
            found.update((x >= threshold).any(0).nonzero()[:, 0].tolist())

        read_states(model, inputs, wanted, look)
        dims = sorted(found)
    else:
        dims = resolve_numbers("dims=", "dimension", dims, model.cfg.d_model)
    out = torch.zeros(len(wanted), *visual.shape)
    if dims:
        chosen = list(dims)

        def read(k: int, state: Tensor) -> None:
            out[k] = heights(state)[..., chosen].amax(-1).cpu()

        read_states(model, inputs, wanted, read)
    return Sinks(wanted, tuple(dims), out, (out >= threshold) & visual & bool(dims))


def heights(states: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Each entry's size over the root mean square of its state."""
    x = states.float()
    return x.abs() / x.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)


def redistribution_hooks(
    model: VisionLanguageBridge,
    inputs: Inputs,
    sinks: Bool[Tensor, "batch pos"] | Mapping[int, Bool[Tensor, "batch pos"]],
    *,
    layers: Sequence[int],
    heads: Sequence[int] | None = None,
    share: float = 0.6,
    least: float = 0.0,
    query: Any = "last",
) -> list[NamedHook]:
    """Forward hooks that take attention from sinks, in passes of `inputs` and in `generate`.

    ```python
    sinks = find_sinks(model, inputs, layers=[4]).mask[0]
    with model.hooks(fwd_hooks=redistribution_hooks(model, inputs, sinks, layers=[4, 5])):
        model.generate(inputs)
    ```

    Args:
        model: the model.
        inputs: what it is run on.
        sinks: which image tokens are; or for each block.
        layers: blocks, negative ones from the end.
        heads: their numbers; None takes all.
        share: of the attention at sinks that is moved.
        least: heads (and queries) are left as they are where image tokens that are no sinks have a
            smaller share of the attention to the image; the paper takes image-centred heads alone.
        query: who looks: "last" (each written token, too), a group or a mask.

    Raises:
        InputError: there is no such block or head; a mask does not fit, or has no image token, or
            all of a row.
        HookError: when the hook runs, the cache has forgotten positions.
        MMLensError: the check at load found that edits of patterns do nothing on this model.
    """
    check_inputs(model, inputs)
    model.report.require("Attention redistributed in the pattern", "pattern")
    for name, value in (("share", share), ("least", least)):
        require_number(name, value, 0, 1)
    blocks = resolve_layers(layers, model.cfg.n_layers)
    chosen = list(resolve_numbers("heads=", "head", heads, model.cfg.n_heads))
    visual = inputs.layout.mask("visual")
    hooks: list[NamedHook] = []
    for block in blocks:
        given = sinks[block] if isinstance(sinks, Mapping) else sinks
        mask = group_mask(inputs.layout, given) & visual
        if not bool(mask.any()):
            raise InputError(
                "No image token is a sink, so there is no attention to redistribute: a lower "
                "threshold= of find_sinks, or other layers."
            )
        if bool((mask.any(1) & ~(visual & ~mask).any(1)).any()):
            raise InputError("All image tokens of a row are sinks: there is nowhere to give it.")
        name = f"blocks.{block}.attn.hook_pattern"
        hooks.append(
            (
                name,
                PatternEdit(
                    model,
                    inputs,
                    partial(redistribute, share=share, least=least),
                    [mask, visual & ~mask],
                    query=query,
                    heads=chosen,
                    what="The redistribution",
                ),
            )
        )
    return hooks


def redistribute(
    pattern: Float[Tensor, "batch head query key"],
    sinks: Bool[Tensor, "batch 1 1 key"],
    others: Bool[Tensor, "batch 1 1 key"],
    share: float,
    least: float,
) -> Float[Tensor, "batch head query key"]:
    """A share of what sinks have goes to the others, in proportion to what they have."""
    at_sinks = (pattern * sinks).sum(-1, keepdim=True)
    at_others = (pattern * others).sum(-1, keepdim=True)
    whole = at_sinks + at_others
    moves = (at_others > 0) & (at_others >= least * whole)
    gain = 1 + share * at_sinks / at_others.clamp(min=torch.finfo(pattern.dtype).tiny)
    new = torch.where(sinks, pattern * (1 - share), torch.where(others, pattern * gain, pattern))
    return torch.where(moves, new, pattern)
