"""Which hooks are related to which: pairs of the same tokens at two hooks, source and target.

Known pairs, by name:

| name | from … to … |
|---|---|
| `states` | a state of the residual stream to the next |
| `tower` | a state of the vision tower to the next |
| `attention` | `resid_pre` → `attn_out` |
| `mlp` | `resid_mid` → `mlp_out` |
| `mlp_inside` | `pre` → `post` |
| `heads` | `resid_pre` → `z`, all heads together and, if heads are asked for, each alone |
| `output` | `z` → `attn_out`: one matrix, so linear exactly |
| `projector` | `projector_in` → `projector_out` |
| `norm` | the last state → `ln_final` |
| `components` | all of them but `states` and `tower` |

Any two others: `("q", "attn_out")` within every block, or two full names.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

from mm_lens.errors import InputError
from mm_lens.profiling.points.point import Point, Spot
from mm_lens.profiling.points.selection import (
    STATES,
    TOWER_STATES,
    resolve_names,
    short_names,
)

Link: TypeAlias = tuple[str, str]
"""Full names of source and target."""
Pairs: TypeAlias = "Sequence[str | Sequence[str]] | None"

COMPONENTS: Mapping[str, Link] = {
    "attention": ("resid_pre", "attn_out"),
    "mlp": ("resid_mid", "mlp_out"),
    "mlp_inside": ("pre", "post"),
    "heads": ("resid_pre", "z"),
    "output": ("z", "attn_out"),
    "projector": ("projector_in", "projector_out"),
    "norm": ("resid_post", "ln_final"),
}
NAMES = (STATES, TOWER_STATES, *COMPONENTS, "components")


def name_pairs(pairs: Pairs) -> list[str] | None:
    """What was asked for, ready for JSON."""
    if pairs is None:
        return None
    return [pair if isinstance(pair, str) else ":".join(pair) for pair in pairs]


def resolve_pairs(bridge: Any, pairs: Pairs) -> list[Link]:
    """Full names of source and target of every pair that is asked for; None: no more than known.

    Raises:
        InputError: a name is unknown, or the two are in no common block.
    """
    found: dict[Link, None] = {}
    for item in [pairs] if isinstance(pairs, str) else pairs or ():
        links = _named(bridge, item) if isinstance(item, str) else _between(bridge, *_two(item))
        if not links:
            raise InputError(f"This model has no hooks for the pair {item!r}.")
        found |= dict.fromkeys(links)
    return list(found)


def known_pairs(bridge: Any, points: Sequence[Point]) -> list[Link]:
    """Every known pair of which both ends are among these points.

    Of a component's pairs all or none: the state that enters block 0 is no input of the others.
    """
    held, components = {point.hook for point in points}, {point.component for point in points}
    links = [*_named(bridge, STATES), *_named(bridge, TOWER_STATES)]
    for name, ends in COMPONENTS.items():
        if components >= {*ends}:
            own = [link for link in _named(bridge, name) if link[1] in held]
            links += own if held >= {source for source, _ in own} else []
    return [link for link in links if held >= {*link}]


def _two(item: Any) -> Link:
    if isinstance(item, (tuple, list)) and len(item) == 2:
        source, target = item
        return str(source), str(target)
    raise InputError(
        f"{item!r} is no pair. Give two hooks, as ('resid_pre', 'attn_out'), or one of: "
        f"{', '.join(NAMES)}."
    )


def _named(bridge: Any, name: str) -> list[Link]:
    if name in (STATES, TOWER_STATES):
        chain = short_names(bridge, name)
        return [*itertools.pairwise(chain)]
    if name == "components":
        return [link for known in COMPONENTS for link in _named(bridge, known)]
    if name in COMPONENTS:
        source, target = COMPONENTS[name]
        if name == "norm":
            ends = short_names(bridge, source)[-1:], short_names(bridge, target)
            return [*zip(*ends, strict=False)]
        return _between(bridge, source, target)
    raise InputError(
        f"No pairs are called {name!r}. Give two hooks, as ('resid_pre', 'attn_out') "
        f"(--pairs resid_pre:attn_out), or one of: {', '.join(NAMES)}."
    )


def _between(bridge: Any, source: str, target: str) -> list[Link]:
    """The two in every block, where both are short names; where one is alone, it with each."""
    sources, targets = (resolve_names(bridge, name)[0] for name in (source, target))
    if len(sources) == 1 or len(targets) == 1:
        return [(a, b) for a in sources for b in targets]
    blocks = {_block(name): name for name in sources}
    links = [(blocks[_block(name)], name) for name in targets if _block(name) in blocks]
    if not links or None in blocks or STATES in (source, target):
        raise InputError(
            f"{source} and {target} are not in the same blocks. Give full names: "
            "('blocks.0.hook_resid_pre', 'blocks.3.hook_mlp_out')."
        )
    return links


def _block(name: str) -> str | None:
    match = re.match(r"(.+?\.\d+)\.", name)
    return match[1] if match else None


def plan_spots(
    points: Sequence[Point],
    asked: Collection[str],
    links: Sequence[Link],
    heads: Mapping[str, Sequence[int]],
) -> tuple[Spot, ...]:
    """What is measured where, in the order in which data flows.

    Args:
        points: the hooks that are kept.
        asked: those that are measured by themselves.
        links: the pairs; those of which an end is not kept are left out.
        heads: heads that are measured one by one.
    """
    index = {point.hook: i for i, point in enumerate(points)}
    found = []
    for i, point in enumerate(points):
        sources = tuple(
            dict.fromkeys((index[a], -1) for a, b in links if b == point.hook and a in index)
        )
        alone = point.hook in asked
        for head in (-1, *heads.get(point.hook, ())):
            if alone or sources:
                found.append(Spot(i, head, sources, alone))
    return tuple(found)
