"""Rows of a table that belong to one line over depth: a component, a head, or a pair of components.

The states of the residual stream are one line, although two hooks make it: what enters block 0,
and what leaves each block. So are those of the vision tower. Everything else is a line of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from mm_lens.profiling.points.point import FLOW, component_of

STATES = "states"
"""The line of the residual stream: what a profile shows first."""
TOWER = "tower"
_HEAD = re.compile(r"\[\d+\]$")
_ENDS = {"resid_post": STATES, "tower.resid_post": TOWER}
_STARTS = {"resid_pre": "resid_post", "tower.resid_pre": "tower.resid_post"}


def name_lines(table: pd.DataFrame) -> pd.Series:
    """Which line each row of a profile's table belongs to."""
    if "component" not in table:  # profiles of earlier versions hold states alone
        return pd.Series(STATES, index=table.index, dtype=object)
    held = {*table.component}
    rows = zip(table.component, table.hook, table["head"], table.source, strict=True)
    named = [_name(*row, held) for row in rows]
    return pd.Series(named, index=table.index, dtype=object)


def _name(component: str, hook: str, head: int, source: str, held: set[str]) -> str:
    chain = _chain(component, hook, held)
    of = f"{chain} head {head}" if head >= 0 else chain
    if not source:
        return of
    where = _HEAD.sub("", source)
    before = component_of(where)
    if chain == _chain(before, where, held) and chain in (STATES, TOWER) and _follows(where, hook):
        return chain
    return f"{before} → {f'{component} head {head}' if head >= 0 else component}"


def _chain(component: str, hook: str, held: set[str]) -> str:
    """The line of a hook by itself."""
    if component in _STARTS and _STARTS[component] in held and _block(hook) == 0:
        component = _STARTS[component]
    return _ENDS.get(component, component)


def _follows(source: str, hook: str) -> bool:
    """Whether one state is the next after another."""
    start = component_of(source) in _STARTS
    return _block(hook) == _block(source) + (not start)


def _block(hook: str) -> int:
    match = re.search(r"\.(\d+)\.", hook)
    return int(match[1]) if match else -1


def take_first(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that curves over layers show: of the states, or of what comes first without any."""
    lines = name_lines(table)
    first = list_components(list(lines))[:1]
    return table[lines == (STATES if STATES in set(lines) else "".join(first))]


def list_components(lines: Sequence[str]) -> list[str]:
    """The lines without single heads, in the order in which data flows."""
    whole = [line for line in dict.fromkeys(lines) if " head " not in line]
    order = [TOWER, "projector_in", "projector_out", STATES, *FLOW]

    def place(line: str) -> tuple[int, int]:
        last = line.rpartition(" → ")[2]
        return order.index(last) if last in order else len(order), whole.index(line)

    return sorted(whole, key=place)


def place_on_path(table: pd.DataFrame) -> pd.DataFrame:
    """The states from pixel to word, with their place on one axis as `path` and `stop`.

    The tower's states, what the projector gets and gives, the residual stream's states, and what
    comes after the final norm, in the order in which data flows; of visual tokens only.
    """
    lines = name_lines(table)
    singles = table.assign(line=lines)
    singles = singles[(singles.modality == "visual") & (singles["head"] < 0)]
    order = {TOWER: 0, "projector_in": 1, "projector_out": 2, STATES: 3, "ln_final": 4}
    pairs = {"projector_in → projector_out": 2, "resid_post → ln_final": 4}
    stage = singles.line.map({**order, **pairs})
    found = singles[stage.notna()].assign(stage=stage[stage.notna()])
    stops = sorted({*zip(found.stage, found.layer, strict=True)})
    index = {stop: i for i, stop in enumerate(stops)}
    path = [index[stop] for stop in zip(found.stage, found.layer, strict=True)]
    return found.assign(
        path=path, stop=[_stop(*row) for row in zip(found.stage, found.layer, strict=True)]
    )


def _stop(stage: float, layer: int) -> str:
    names = {1: "in", 2: "out", 4: "norm"}
    return names.get(int(stage), f"{'t' * (stage == 0)}{layer}")
