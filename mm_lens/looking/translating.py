"""What a lens does to a state before the final norm: nothing, or a map that was fitted.

States are numbered as everywhere here: 0 enters block 0, l leaves block l - 1. TransformerLens's
`JacobianLens` counts blocks: its layer l is state l + 1. The last state is never translated.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mm_lens.errors import InputError


@runtime_checkable
class Lens(Protocol):
    """A fitted lens; `layers` are the states that it was fitted to."""

    layers: tuple[int, ...]

    def translate(self, states: Float[Tensor, "n d"], layer: int) -> Float[Tensor, "n d"]:
        """States of a layer as states of the last one."""
        ...


def check_lens(lens: Any, layers: tuple[int, ...], n_states: int, d_model: int) -> None:
    """Refuse what is no lens, or one without some of the layers.

    Args:
        lens: a `Lens`, a `JacobianLens` of TransformerLens, or None.
        layers: states that are read.
        n_states: how many the model has.
        d_model: width of the states.

    Raises:
        InputError: naming what is missing.
    """
    if lens is None:
        return
    own = layers_of(lens)
    if missing := [k for k in layers if k not in own and k != n_states - 1]:
        raise InputError(
            f"The lens has no state {missing[0]}: it was fitted to {', '.join(map(str, own))}. "
            "Name these: layers=…, or fit it to more."
        )
    if (width := getattr(lens, "d_model", d_model)) != d_model:
        raise InputError(
            f"The lens is of states of {width} numbers, those of this model have {d_model}: it was "
            "fitted to another model."
        )


def layers_of(lens: Any) -> tuple[int, ...]:
    """States that a lens was fitted to.

    Raises:
        InputError: it is no lens.
    """
    if hasattr(lens, "transport"):
        return tuple(k + 1 for k in lens.source_layers)
    if not isinstance(lens, Lens):
        raise InputError(
            "lens is what fit_tuned_lens or fit_jacobian_lens returns, not a "
            f"{type(lens).__name__}."
        )
    return tuple(lens.layers)


def translate(
    lens: Any, states: Float[Tensor, "n d"], layer: int, n_states: int
) -> Float[Tensor, "n d"]:
    """States of a layer as a lens reads them; as they are without one, and at the end."""
    if lens is None or layer == n_states - 1:
        return states
    if hasattr(lens, "transport"):
        moved: Tensor = lens.transport(states, layer - 1)
    else:
        moved = lens.translate(states, layer)
    return moved.to(states.dtype)
