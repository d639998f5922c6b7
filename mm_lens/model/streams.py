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
from mm_lens.errors import HookError
from mm_lens.model.hooks import PARENTS, NamedHook

Stream: TypeAlias = Literal["residual", "main"]
STREAMS: tuple[Stream, ...] = ("residual", "main")


MIXERS = ("linear_attn", "mamba", "ssm", "mixer", "conv")
"""What TransformerLens calls that which mixes positions in blocks without attention."""


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


def resolve_blocks(bridge: Any, hook: str, layers: Any) -> tuple[int, ...]:
    """Blocks that have a hook point, in the order in which they were asked for.

    In a hybrid model some blocks have no attention.

    Args:
        bridge: the model.
        hook: short name of the hook point, as in `hooks.PARENTS`.
        layers: numbers of blocks, negative ones from the end; None takes all that have it.

    Raises:
        HookError: one that is asked for has no such hook point, or none has.
        InputError: see `resolve_layers`.
    """
    n = bridge.cfg.n_layers
    have = [k for k in range(n) if f"blocks.{k}.{PARENTS[hook]}" in bridge.hook_dict]
    asked = tuple(have) if layers is None else resolve_layers(layers, n)
    without = [k for k in asked if k not in have]
    others = f" Blocks that have it: {', '.join(map(str, have))}." if have else ""
    if without:
        raise HookError(f"Block {without[0]} has no hook point {hook!r}.{others}")
    if not asked:
        raise HookError(f"The blocks have no hook point {hook!r}.")
    return asked


def main_stream_hooks(bridge: Any) -> list[NamedHook]:
    """Forward hooks under which a forward pass of `bridge` runs the main stream.

    Attach them before your own: `resid_post` then is the main stream's state. In TransformerLens 4
    an edit at `hook_resid_mid` reaches only the MLP branch, not the skip connection: what leaves
    the block is replaced at `hook_resid_post`. In blocks without attention, what mixes positions in
    its place counts as attention.

    Raises:
        HookError: a block has no hook point behind that.
    """
    hooks: list[NamedHook] = []
    for i in range(bridge.cfg.n_layers):
        mixed = _find_mixer(bridge, i)
        held: dict[str, Tensor] = {}

        def keep(tensor: Tensor, hook: Any, held: dict[str, Tensor] = held) -> None:
            held["branch"] = tensor

        def put(tensor: Tensor, hook: Any, held: dict[str, Tensor] = held) -> Tensor:
            return held.pop("branch")

        block = f"blocks.{i}"
        hooks += [
            (mixed, keep),
            (f"{block}.hook_resid_mid", put),
            (f"{block}.hook_mlp_out", keep),
            (f"{block}.hook_resid_post", put),
        ]
    return hooks


def _find_mixer(bridge: Any, block: int) -> str:
    """Hook point of what a block's attention, or what stands in its place, writes."""
    tails = ("hook_attn_out", *(f"{name}.hook_out" for name in MIXERS))
    for tail in tails:
        if (name := f"blocks.{block}.{tail}") in bridge.hook_dict:
            return name
    raise HookError(
        f"Block {block} has no hook point behind what mixes its positions, so there is no main "
        'stream. Take streams=["residual"].'
    )
