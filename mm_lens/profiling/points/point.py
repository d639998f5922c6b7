"""A hook point as a profile sees it: what it is called, where it lies, how wide it is.

Inside of block b of the language model, layer b + 1: `ln1`, `q`, `k`, `v`, `z`, `attn_out`,
`resid_mid`, `ln2`, `pre`, `post`, `mlp_out`, `resid_post`, as in `mm_lens.hooks`; `ln1` and `ln2`
are the normalised inputs of attention and MLP. `resid_pre` of block b has layer b. `ln_final` is
the last state after the final norm; before it is the last `resid_post`. `tower.…` are the same of
the vision tower's blocks, with layers of their own; `projector_in` and `projector_out`, what the
projector gets and gives, have layer 0.

So `layer` is that of the state a hook lies on or leads to: block b leads from state b to b + 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mm_lens.model.hooks import PARENTS

EMBEDDINGS = "blocks.0.hook_resid_pre"
FLOW = (
    *("resid_pre", "ln1", "q", "k", "v", "z", "attn_out", "resid_mid", "ln2"),
    *("pre", "post", "mlp_out", "resid_post"),
)
"""Components of a block in the order in which data flows."""
NORMED = {"ln1": "ln1.hook_out", "ln2": "ln2.hook_out"}
TAILS = {**PARENTS, **NORMED}
"""Components of a block: where TransformerLens keeps them."""
HEADED = ("q", "k", "v", "z")
"""Components that heads have a part each of."""
_SPELLINGS = {
    **{tail: short for short, tail in TAILS.items()},
    "hook_in": "resid_pre",
    "hook_out": "resid_post",
    "attn.hook_out": "attn_out",
    "mlp.hook_out": "mlp_out",
}
_FIXED = {
    "vision_projector.hook_in": "projector_in",
    "vision_projector.hook_out": "projector_out",
    "ln_final.hook_out": "ln_final",
}
OUTSIDE = {short: name for name, short in _FIXED.items()}
"""Components that are not in a block, and their hooks."""
TOWER = re.compile(r"vision_encoder\.\w+\.(\d+)\.(.+)")
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_STAGES = ("vision_encoder.", "vision_projector.", "embed.", "blocks.", "ln_final.")


@dataclass(frozen=True)
class Point:
    """A hook point whose states are kept.

    Attributes:
        hook: full name.
        component: what it is, whatever the layer; see the module.
        layer: of the state it lies on or leads to.
        width: numbers per token, all heads together.
        heads: how many heads share them; 0 if none do.
    """

    hook: str
    component: str
    layer: int
    width: int
    heads: int = 0

    @property
    def tower(self) -> bool:
        """Whether its tokens are patches, which vision tower and projector see."""
        return is_tower(self.hook)

    def label(self, head: int = -1) -> str:
        """Name of the hook, and of the head if one is meant."""
        return self.hook if head < 0 else f"{self.hook}[{head}]"


@dataclass(frozen=True)
class Spot:
    """What is measured at one place: a hook or one head of it, alone and as the end of pairs.

    Attributes:
        point: index of the hook among those that are kept.
        head: which head; -1: all together, or there are none.
        sources: index and head of each hook from which a pair leads here.
        alone: whether metrics of one hook are asked for, too.
        beside: indices of other hooks that must be at hand then.
    """

    point: int
    head: int = -1
    sources: tuple[tuple[int, int], ...] = ()
    alone: bool = True
    beside: tuple[int, ...] = ()


def is_tower(name: str) -> bool:
    """Whether a hook belongs to the vision tower or the projector."""
    return name.startswith(("vision_encoder.", "vision_projector."))


def component_of(name: str) -> str:
    """What a hook is, whatever its layer."""
    if name in _FIXED:
        return _FIXED[name]
    if match := TOWER.fullmatch(name):
        return f"tower.{_SPELLINGS.get(match[2], match[2])}"
    if match := _BLOCK.fullmatch(name):
        return _SPELLINGS.get(match[2], match[2])
    return name


def layer_of(name: str, n_layers: int) -> int:
    """The state that a hook lies on or leads to; `n_layers` of the language model."""
    if match := TOWER.fullmatch(name) or _BLOCK.fullmatch(name):
        return int(match[1]) + (_SPELLINGS.get(match[2]) != "resid_pre")
    return n_layers if name.startswith(("ln_final.", "unembed.")) else 0


def flow_key(name: str) -> tuple[Any, ...]:
    """Sorts hooks in the order in which data flows."""
    stage = next((i for i, s in enumerate(_STAGES) if name.startswith(s)), len(_STAGES))
    match = TOWER.fullmatch(name) or _BLOCK.fullmatch(name)
    block, tail = (int(match[1]), match[2]) if match else (-1, name)
    short = _SPELLINGS.get(tail, "")
    # Hooks of other names come with what they are a part of: at the end of their block.
    place = FLOW.index(short) if short in FLOW else len(FLOW) - 1.5
    order = {"vision_projector.hook_in": -1, "vision_projector.hook_out": 1}.get(name, 0)
    return stage, block, place, order, tail
