"""Steering: a direction is added to, taken out of, or fixed in the states of a group of tokens.

With `u` the direction at length 1 and `x` a state:

| how | what the state becomes |
|---|---|
| `"add"` | `x + strength · direction`, the direction at its own length |
| `"project_out"` | `x - (x·u) u`: nothing is left along the direction |
| `"clamp"` | `x + (strength - x·u) u`: what is along it is `strength`, whatever it was |

Works in a forward pass and, for prompt and decoding steps alike, in `generate`: a group goes on in
what is written as `mm_lens.model.running.writing.reach` says. Where directions come from:
`mm_lens.causal.directions`, or the weights of a probe (`mm_lens.looking.probes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformer_lens.utilities.components_utils import get_act_name

from mm_lens.arguments import require_number
from mm_lens.errors import HookError, InputError
from mm_lens.layout.groups import group_mask
from mm_lens.layout.layout import TokenLayout
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.hooks import PARENTS, NamedHook, find_frame
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.running.writing import WRITTEN, reach
from mm_lens.model.streams import resolve_blocks

Steer: TypeAlias = Literal["add", "project_out", "clamp"]
Direction: TypeAlias = Tensor | Mapping[int, Tensor]
"""One for all layers, or one for each."""


def steering_hooks(
    model: VisionLanguageBridge,
    inputs: Inputs,
    direction: Direction,
    group: Any = "visual",
    *,
    layers: Sequence[int],
    how: Steer = "add",
    strength: float = 1.0,
    keep_length: bool = False,
    hook: str = "resid_post",
) -> list[NamedHook]:
    """Forward hooks that steer a group, in passes of `inputs` and in `generate`.

    ```python
    hooks = steering_hooks(model, inputs, direction, "visual", layers=[4], strength=3.0)
    with model.hooks(fwd_hooks=hooks):
        text = model.generate(inputs)
    ```

    Args:
        model: the model.
        inputs: what it is run on.
        direction: a vector of the width of the hook point; or one for each layer, as of
            `mm_lens.causal.directions`.
        group: group of the layout, `"last"`, `"written"`, a `Box` or a mask.
        layers: blocks, negative ones from the end.
        how: see the module.
        strength: factor of the direction for "add", what is fixed for "clamp".
        keep_length: scale what is steered to the length that it had.
        hook: short name of the hook point, as in `hooks.PARENTS`.

    Raises:
        InputError: the group is empty in every row; a layer has no direction; a direction is zero
            or not finite, or, when the hook runs, of another width; the pass is of other inputs.
        HookError: no such hook point.
    """
    check_inputs(model, inputs)
    if hook not in PARENTS:
        raise HookError(f"No hook point is called {hook!r}. Use: {', '.join(PARENTS)}.")
    if how not in get_args(Steer):
        raise InputError(f"how is one of {get_args(Steer)}, not {how!r}.")
    require_number("strength", strength, float("-inf"))
    numbers = resolve_blocks(model, hook, layers)
    written = isinstance(group, str) and group == WRITTEN
    if not written and not bool(group_mask(inputs.layout, group).any()):
        raise InputError(f"These inputs hold no position of {group!r} to steer.")
    return [
        (
            str(get_act_name(hook, k)),
            _make_hook(inputs.layout, group, _of_layer(direction, k), how, strength, keep_length),
        )
        for k in numbers
    ]


def _of_layer(direction: Any, layer: int) -> Float[Tensor, "*d"]:
    if isinstance(direction, Mapping):
        if layer not in direction:
            raise InputError(
                f"There is no direction of layer {layer}: there are those of "
                f"{', '.join(map(str, sorted(direction)))}."
            )
        direction = direction[layer]
    vector = torch.as_tensor(direction).detach()
    norm = vector.double().norm()
    if not bool(norm.isfinite()) or not bool(norm > 0):
        raise InputError(
            f"The direction of layer {layer} is zero or not finite: it points nowhere."
        )
    return vector


def _make_hook(
    layout: TokenLayout,
    group: Any,
    direction: Tensor,
    how: Steer,
    strength: float,
    keep_length: bool,
) -> Callable[..., Tensor | None]:
    def run(tensor: Tensor, hook: Any) -> Tensor | None:
        place = find_frame(hook).place(layout, "The steering")
        here = place.of(reach(layout, group, place.total)).to(tensor.device)
        if not bool(here.any()):
            return None
        width = tensor[0, 0].numel()
        if direction.numel() != width:
            raise InputError(
                f"The direction is of shape {tuple(direction.shape)}, but one position of "
                f"{hook.name} of {tuple(tensor.shape[2:])}. Take it from the same hook point."
            )
        out = tensor.clone()
        rows = tensor[here]
        steered = steer(rows.flatten(1), direction.flatten(), how, strength)
        if keep_length:
            before, after = (
                x.float().norm(dim=1, keepdim=True) for x in (rows.flatten(1), steered)
            )
            steered = (steered * (before / after.clamp(min=1e-12))).to(rows.dtype)
        out[here] = steered.view_as(rows)
        return out

    return run


def steer(
    states: Float[Tensor, "n d"], direction: Float[Tensor, " d"], how: Steer, strength: float
) -> Float[Tensor, "n d"]:
    """States with a direction added, taken out or fixed; see the module."""
    direction = direction.to(states.device, torch.promote_types(states.dtype, torch.float32))
    wide = states.to(direction.dtype)
    if how == "add":
        added: Tensor = (wide + strength * direction).to(states.dtype)
        return added
    unit = direction / direction.norm()
    along = rearrange(wide @ unit, "n -> n 1")
    wanted = strength if how == "clamp" else 0.0
    moved: Tensor = (wide + (wanted - along) * unit).to(states.dtype)
    return moved
