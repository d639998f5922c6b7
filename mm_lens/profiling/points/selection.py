"""Hook points from what a user calls them: short names, full names, patterns, functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from mm_lens.arguments import require_whole, suggest
from mm_lens.errors import InputError
from mm_lens.model.hooks import ModalityHookPoint, canonical
from mm_lens.model.streams import state_names
from mm_lens.profiling.points.point import (
    FLOW,
    HEADED,
    OUTSIDE,
    TAILS,
    TOWER,
    Point,
    component_of,
    flow_key,
    is_tower,
    layer_of,
)
from mm_lens.profiling.points.probe import Shape, probe

Named: TypeAlias = "str | Callable[[str], bool]"
Hooks: TypeAlias = "Named | Sequence[Named] | None"
Heads: TypeAlias = "bool | Sequence[int]"

STATES = "states"
"""The states of the residual stream: what enters block 0, and what leaves every block."""
TOWER_STATES = "tower"
"""The same of the vision tower, as far as the model reads it."""
SHORT = (
    STATES,
    *FLOW,
    "ln_final",
    TOWER_STATES,
    "projector_in",
    "projector_out",
)


def choose_points(
    bridge: Any, hooks: Hooks, extra: Iterable[str] = ()
) -> tuple[list[Point], set[str]]:
    """The hook points to keep, in the order in which data flows, and which are asked for.

    Args:
        bridge: the model.
        hooks: short names, full names, patterns with `*`, functions of a name; None: the states.
        extra: full names of hooks that pairs need besides.

    Raises:
        InputError: a name is unknown, never fires, or has no vector per token.
    """
    default = hooks is None and not extra
    asked, left_out = resolve_names(bridge, hooks)
    names = list(dict.fromkeys([*asked, *extra]))
    if default:  # known without a look
        shapes: Mapping[str, Shape | str] = dict.fromkeys(names, Shape(int(bridge.cfg.d_model)))
    else:
        shapes = probe(bridge, names)
    refused = {name: why for name, why in shapes.items() if isinstance(why, str)}
    if wrong := [name for name in names if name in refused and name not in left_out]:
        raise InputError(f"{wrong[0]} cannot be profiled: {refused[wrong[0]]}")
    points = [
        describe(bridge, name, shape) for name, shape in shapes.items() if isinstance(shape, Shape)
    ]
    if not points:
        first = next(iter(refused))
        raise InputError(f"{first} cannot be profiled: {refused[first]}")
    return sorted(points, key=lambda point: flow_key(point.hook)), {*asked}


def describe(bridge: Any, name: str, shape: Shape) -> Point:
    """A point from its name and shape."""
    layer = layer_of(name, int(bridge.cfg.n_layers))
    return Point(name, component_of(name), layer, shape.width, shape.heads)


def resolve_names(bridge: Any, hooks: Hooks) -> tuple[list[str], set[str]]:
    """Full names, and which of them only a pattern or a function has named.

    Raises:
        InputError: a name is unknown, or nothing matches a pattern.
    """
    if hooks is None:
        hooks = STATES
    items = [hooks] if isinstance(hooks, str) or callable(hooks) else list(hooks)
    if not items:
        raise InputError("No hook is asked for. Name one, as hooks=['states', 'attn_out'].")
    found: dict[str, None] = {}
    by_name: set[str] = set()
    for item in items:
        names = _resolve(bridge, item)
        found |= dict.fromkeys(names)
        if isinstance(item, str) and "*" not in item:
            by_name |= {*names}
    return list(found), {*found} - by_name


def _resolve(bridge: Any, item: Named) -> list[str]:
    if not isinstance(item, str) and not callable(item):
        raise InputError(f"{item!r} names no hook point. {_advice()}")
    known = bridge.hook_dict
    if callable(item) or "*" in item:
        matches = item if callable(item) else lambda name: fnmatchcase(name, str(item))
        names = take_once(bridge, [name for name in known if matches(name)])
        if not names:
            raise InputError(f"No hook point matches {item!r}. {_advice()}")
        return names
    if item in SHORT or item.startswith("tower."):
        names = short_names(bridge, item)
        if not names:
            raise InputError(f"This model has no hook point {item!r}. {_advice()}")
        return names
    name = canonical(item)
    if name not in known:
        meant = suggest(item, [*SHORT, *known])
        raise InputError(f"No hook point is called {item!r}. {_advice()}{meant}")
    point = known[name]
    if isinstance(point, ModalityHookPoint):
        return [whole_name(name)]
    return [name]


def whole_name(name: str) -> str:
    """Of a view `blocks.3.visual.hook_q`, the hook point that it is a part of."""
    block, short = name.split(".hook_")
    return f"{block.rpartition('.')[0]}.{TAILS[short]}"


def short_names(bridge: Any, short: str) -> list[str]:
    """Every hook of a short name, layer by layer."""
    known, n_layers = bridge.hook_dict, int(bridge.cfg.n_layers)
    if short == STATES:
        return list(state_names(n_layers))
    if short == TOWER_STATES:
        return _tower_states(bridge)
    if short in OUTSIDE:
        return [OUTSIDE[short]] if OUTSIDE[short] in known else []
    if short.startswith("tower."):
        names = [name for name in known if is_tower(name) and component_of(name) == short]
        return sorted(take_once(bridge, names), key=flow_key)
    names = [f"blocks.{b}.{TAILS[short]}" for b in range(n_layers)]
    return [name for name in names if name in known]


def _tower_states(bridge: Any) -> list[str]:
    """What enters the first block, and what leaves each block that the model reads from."""
    inert = bridge.family.inert_hooks()
    blocks = sorted(
        {
            (int(match[1]), name.rpartition(f".{match[2]}")[0])
            for name in bridge.hook_dict
            if (match := TOWER.fullmatch(name))
        }
    )
    ends = [f"{block}.hook_out" for _, block in blocks]
    ends = [name for name in ends if not any(re.fullmatch(p, name) for p in inert)]
    return [f"{blocks[0][1]}.hook_in", *ends] if ends else []


def take_once(bridge: Any, names: Iterable[str]) -> list[str]:
    """Each hook point once, under the best known of its names; views as what they are part of."""
    best: dict[int, str] = {}
    known = bridge.hook_dict
    for name in names:
        point = known[name]
        if isinstance(point, ModalityHookPoint):
            name, point = whole_name(name), point.parent
        key = id(point)
        if key not in best or _rank(name) < _rank(best[key]):
            best[key] = name
    return list(best.values())


def _rank(name: str) -> tuple[int, int, str]:
    """Names of components first, then short ones."""
    tail = name.split(".", 2)[-1]
    return (tail not in TAILS.values() and name not in OUTSIDE.values()), len(name), name


def choose_heads(points: Sequence[Point], heads: Heads) -> dict[str, list[int]]:
    """The heads to measure one by one, for every hook that has any.

    Raises:
        InputError: no hook has heads, or none of that number.
    """
    if heads is False:
        return {}
    with_heads = [p for p in points if p.heads and p.component.removeprefix("tower.") in HEADED]
    if not with_heads:
        raise InputError(f"No hook that is asked for has heads. Name one of: {', '.join(HEADED)}.")
    if heads is True:
        return {point.hook: list(range(point.heads)) for point in with_heads}
    wanted = list(dict.fromkeys(require_whole("Each of heads=", head) for head in heads))
    most = max(point.heads for point in with_heads)
    if not wanted or min(wanted) < 0 or max(wanted) >= most:
        raise InputError(f"heads={list(heads)} are not all there: heads are 0 to {most - 1}.")
    return {point.hook: [h for h in wanted if h < point.heads] for point in with_heads}


def name_hooks(hooks: Hooks) -> list[str] | None:
    """What was asked for, ready for JSON."""
    if hooks is None:
        return None
    items = [hooks] if isinstance(hooks, str) or callable(hooks) else hooks
    return [item if isinstance(item, str) else repr(item) for item in items]


def check_patches(points: Sequence[Point], modalities: Sequence[str]) -> None:
    """Refuse hooks of the tower where visual tokens are not asked for."""
    tower = [point.hook for point in points if point.tower]
    if tower and "visual" not in modalities:
        raise InputError(
            f"{tower[0]} has patches, which are visual tokens: name 'visual' among the modalities."
        )


def drop_repeated(names: Collection[str], same: Callable[[str, str], bool]) -> list[str]:
    """Without what enters a block and is what left the one before, which is one state.

    Args:
        names: of hooks.
        same: whether two of them hold the same.
    """
    kept = []
    left = {_chain(name, 1): name for name in names if _is(name, "resid_post")}
    for name in names:
        before = left.get(_chain(name, 0)) if _is(name, "resid_pre") else None
        if before is None or not same(name, before):
            kept.append(name)
    return kept


def _is(name: str, short: str) -> bool:
    return component_of(name).removeprefix("tower.") == short


def _chain(name: str, step: int) -> tuple[bool, int]:
    """Tower or not, and the block that a state enters, `step` blocks on."""
    match = re.search(r"\.(\d+)\.", name)
    return is_tower(name), int(match[1]) + step if match else -1


def _advice() -> str:
    return f"Short names: {', '.join(SHORT)}; full names: model.hook_dict; or a pattern with *."
