"""What fires in a model and of which shape: one forward pass of a small prompt with an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mm_lens.model.check import PROMPT
from mm_lens.model.families import TowerGrid
from mm_lens.model.hooks import NamedHook
from mm_lens.model.running.logits import keep_logits
from mm_lens.profiling.points.point import is_tower


@dataclass(frozen=True)
class Shape:
    """Of the states at a hook: numbers per token, and how many heads share them (0: none do)."""

    width: int
    heads: int = 0


def run_pass(bridge: Any, inputs: Any, hooks: Sequence[NamedHook]) -> None:
    """Run the model for the sake of its hooks."""
    # Of the logits, nothing is needed: at real size they would be most of the memory.
    bridge.run_with_hooks(inputs, fwd_hooks=[*hooks], **keep_logits(bridge, 1))


@torch.no_grad()
def probe(bridge: Any, names: Sequence[str]) -> dict[str, Shape | str]:
    """The shape of the states at each hook, or why it has none."""
    found: dict[str, Shape | str] = {}
    inputs = bridge.prepare(PROMPT, bridge.family.probe_image())
    grid = bridge.family.tower_grid(inputs)
    pos: int = inputs.input_ids.shape[1]

    def note(x: Any, hook: Any, name: str) -> None:
        found[name] = find_shape(name, x, (1, pos), grid)

    alive = []
    for name in names:
        if remedy := bridge._remedy_if_dead(name):
            found[name] = f"it never fires in this model. {remedy}"
        else:
            alive.append((name, lambda x, hook, name=name: note(x, hook, name)))
    run_pass(bridge, inputs, alive)
    silent = "it did not fire in a forward pass of a prompt with an image."
    return {name: found.get(name, silent) for name in names}


def find_shape(name: str, x: Any, shape: tuple[int, int], grid: TowerGrid | None) -> Shape | str:
    """The shape of the states at a hook, or why it has none.

    Args:
        name: of the hook.
        x: what it was given.
        shape: (batch, pos) of the forward pass.
        grid: of the tiles that the tower saw; None: unknown.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim not in (3, 4):
        return f"it has no vector per token, but {_describe(x)}."
    rows: tuple[int, ...] = tuple(x.shape[:2])
    if is_tower(name):
        if grid is None:
            return (
                "the model's family does not say which patches its tower sees (Family.tower_grid)."
            )
        if rows[0] != sum(grid.tiles) or rows[1] - grid.rows * grid.cols not in (0, 1):
            return f"it has no token axis, but {_describe(x)}."
    elif rows != shape or (x.ndim == 4 and x.shape[2:] == (shape[1], shape[1])):
        return f"it has no token axis, but {_describe(x)}."
    return Shape(x[0, 0].numel(), x.shape[2] if x.ndim == 4 else 0)


def _describe(x: Any) -> str:
    if not isinstance(x, Tensor):
        return f"a {type(x).__name__}"
    return f"shape {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"
