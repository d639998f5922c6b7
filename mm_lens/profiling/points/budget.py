"""What a run will hold of the states, and how it stays within a budget.

In files, states are limited by the disk alone. In memory, hooks are measured in groups, each with
a pass over the data of its own: a group holds as many hooks as fit, and both ends of its pairs.
Where not even one pair fits, fewer tokens are sampled, unless their number was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil  # type: ignore[import-untyped]

from mm_lens.errors import InputError
from mm_lens.metrics import Metric
from mm_lens.model.streams import Stream
from mm_lens.profiling.points.numbers import default_number, sample_size
from mm_lens.profiling.points.point import Point, Spot
from mm_lens.profiling.points.selection import check_patches

SHARE = 0.8
"""Of the machine's memory, the budget if none is given."""
GIB = 2**30


@dataclass(frozen=True)
class Holding:
    """What a run holds.

    Attributes:
        tokens: most tokens per modality.
        passes: the spots measured in each pass over the data.
        bytes: of states at a time, at most.
        budget: in bytes; None: states are in files.
        fewer: whether tokens were cut to keep within it.
        costs: bytes of the states of each hook.
    """

    tokens: int
    passes: tuple[tuple[Spot, ...], ...]
    bytes: int
    budget: int | None
    fewer: bool = False
    costs: tuple[int, ...] = ()

    def within(self, limit: int) -> Holding | None:
        """The same tokens in passes that hold at most so many bytes; None if no pair of hooks fits.

        In files it is as before.
        """
        if self.budget is None:
            return self
        limit = min(limit, self.budget)
        passes: list[list[Spot]] = [[]]
        for spot in (spot for group in self.passes for spot in group):
            if self._of([spot]) > limit:
                return None
            if self._of([*passes[-1], spot]) > limit:
                passes.append([])
            passes[-1].append(spot)
        held = max(map(self._of, passes))
        return replace(self, passes=tuple(map(tuple, passes)), bytes=held, budget=limit)

    def _of(self, spots: Sequence[Spot]) -> int:
        return sum(self.costs[i] for i in _held(spots))

    def describe(self) -> str:
        """One line that says it beforehand."""
        where = "files" if self.budget is None else "memory"
        size = f"{self.bytes / GIB:.2g} GiB of states in {where}"
        passes = f"{len(self.passes)} pass{'es' * (len(self.passes) > 1)} over the data"
        fewer = f"; only {self.tokens:,} tokens per modality fit" if self.fewer else ""
        return f"Holds at most {size}, {passes}{fewer}."


def hold(
    model: Any,
    points: Sequence[Point],
    spots: Sequence[Spot],
    streams: Sequence[Stream],
    modalities: Sequence[str],
    metrics: Sequence[Metric],
    tokens: int | None,
    budget: float | None,
    *,
    in_files: bool = False,
    one_pass: bool = False,
) -> Holding:
    """Choose groups of hooks, and if need be fewer tokens.

    Args:
        model: whose states are held.
        points: hooks whose states are kept.
        spots: what is measured.
        streams: streams that are run.
        modalities: modalities that are measured.
        metrics: what is computed.
        tokens: most tokens per modality; None: what the metrics need, or as many as fit.
        budget: in GiB; None: 80 % of the machine's memory.
        in_files: whether states are kept in files.
        one_pass: whether all hooks must share one pass.

    Raises:
        InputError: not even one pair of hooks fits with that many tokens.
    """
    check_patches(points, modalities)
    itemsize, groups = model.cfg.dtype.itemsize, 2 if "all" in modalities else len(modalities)
    # Patches are one modality, and are seen in one stream only.
    of_two, each = (
        [p.width * itemsize * (1 if p.tower else len(streams) * number) for p in points]
        for number in (2, groups)
    )
    k = tokens or sample_size(None, metrics, int(model.cfg.d_model), sum(of_two))
    limit = int(budget * GIB) if budget is not None else int(SHARE * _memory())
    together = [spots] if one_pass else [[spot] for spot in spots]
    most = max(sum(each[i] for i in _held(some)) for some in together)
    fewer = tokens is None and not in_files and most * k > limit
    if fewer:
        k = limit // most
    if not in_files and (most * k > limit or k < 1):
        raise InputError(
            f"The sampled states of one hook and what leads to it would take "
            f"{most * max(k, 1) / GIB:.3g} GiB, of {limit / GIB:.3g} GiB. Keep them on disk with "
            "`run_dir`, lower `tokens`, raise `budget`, or profile one stream at a time."
        )
    costs = tuple(k * cost for cost in each)
    whole = sum(costs[i] for i in _held(spots))
    at_once = Holding(k, (tuple(spots),), whole, None if in_files else limit, fewer, costs)
    return at_once.within(limit) or at_once


def honest_number(model: Any, tokens: int | None, holding: Holding) -> int:
    """Most tokens that the honest preset takes of those sampled."""
    return min(tokens or default_number(int(model.cfg.d_model)), holding.tokens)


def restrict(
    points: Sequence[Point], spots: Sequence[Spot]
) -> tuple[tuple[Point, ...], tuple[Spot, ...]]:
    """The points that these spots need, and the spots in terms of them."""
    held = sorted(_held(spots))
    new = {old: i for i, old in enumerate(held)}
    moved = [
        replace(
            s,
            point=new[s.point],
            sources=tuple((new[i], head) for i, head in s.sources),
            beside=tuple(new[i] for i in s.beside),
        )
        for s in spots
    ]
    return tuple(points[i] for i in held), tuple(moved)


def _held(spots: Sequence[Spot]) -> set[int]:
    ends = ((s.point, *(source for source, _ in s.sources), *s.beside) for s in spots)
    return {i for held in ends for i in held}


def _memory() -> Any:
    return psutil.virtual_memory().total
