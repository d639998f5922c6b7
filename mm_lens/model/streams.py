"""The two streams that metrics look at, and the layers of a model.

*Residual stream*: `resid_pre` of block 0, then `resid_post` of every block.

*Main stream*: the same blocks without skip connections, from the embeddings on:
`x_{l+1} = MLP(norm2(Attn(norm1(x_l))))` ("residual-free"; Razzhigaev et al. 2024,
arXiv 2405.12250, section 3.2). Causal and padding masks stay in force.

Cost of the main stream: one more forward pass.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from torch import Tensor

from mm_lens.arguments import resolve_numbers
from mm_lens.model.hooks import NamedHook

Stream: TypeAlias = Literal["residual", "main"]
STREAMS: tuple[Stream, ...] = ("residual", "main")


def state_names(n_layers: int) -> tuple[str, ...]:
    """Hook of every state of a model."""
    return (
        "blocks.0.hook_resid_pre",
        *(f"blocks.{i}.hook_resid_post" for i in range(n_layers)),
    )


def resolve_layers(layers: Any, count: int) -> tuple[int, ...]:
    """Numbers of layers counted from the front, in the order in which they were asked for.

    Args:
        layers: numbers of blocks or states, negative ones from the end (-1 is the last); None takes
            all.
        count: how many there are.

    Raises:
        InputError: there is none, one is no whole number or is named twice, or there is no such
            layer.
    """
    return resolve_numbers("layers=", "layer", layers, count)


def main_stream_hooks(bridge: Any) -> list[NamedHook]:
    """Forward hooks under which a forward pass of `bridge` runs the main stream.

    Attach them before your own: `resid_post` then is the main stream's state. In TransformerLens 4
    an edit at `hook_resid_mid` reaches only the MLP branch, not the skip connection: what leaves
    the block is replaced at `hook_resid_post`.
    """
    hooks: list[NamedHook] = []
    for i in range(bridge.cfg.n_layers):
        held: dict[str, Tensor] = {}

        def keep(tensor: Tensor, hook: Any, held: dict[str, Tensor] = held) -> None:
            held["branch"] = tensor

        def put(tensor: Tensor, hook: Any, held: dict[str, Tensor] = held) -> Tensor:
            return held.pop("branch")

        block = f"blocks.{i}"
        hooks += [
            (f"{block}.hook_attn_out", keep),
            (f"{block}.hook_resid_mid", put),
            (f"{block}.hook_mlp_out", keep),
            (f"{block}.hook_resid_post", put),
        ]
    return hooks
