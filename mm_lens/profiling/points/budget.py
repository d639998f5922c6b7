"""What a run will hold of the states, and how it stays within a budget.

In files, states are limited by the disk alone. In memory, hooks are measured in groups, each with
a pass over the data of its own: a group holds as many hooks as fit, and both ends of its pairs.
Where not even one pair fits, fewer tokens are sampled, unless their number was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """

    tokens: int
    passes: tuple[tuple[Spot, ...], ...]
    bytes: int
    budget: int | None
    fewer: bool = False

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
    **where: bool,
) -> Holding:
    """How many tokens, and in how many passes over the data; see `plan_holding`."""
    check_patches(points, modalities)
    itemsize = model.cfg.dtype.itemsize
    per_token = sum(
        point.width * itemsize * (1 if point.tower else 2 * len(streams)) for point in points
    )
    return plan_holding(
        points,
        spots,
        tokens=tokens,
        default_tokens=sample_size(None, metrics, int(model.cfg.d_model), per_token),
        streams=len(streams),
        groups=2 if "all" in modalities else len(modalities),
        itemsize=itemsize,
        budget=budget,
        **where,
    )


def honest_number(model: Any, tokens: int | None, holding: Holding) -> int:
    """Most tokens that the honest preset takes of those sampled."""
    return min(tokens or default_number(int(model.cfg.d_model)), holding.tokens)


def plan_holding(
    points: Sequence[Point],
    spots: Sequence[Spot],
    *,
    tokens: int | None,
    default_tokens: int,
    streams: int,
    groups: int,
    itemsize: int,
    budget: float | None,
    in_files: bool = False,
    one_pass: bool = False,
) -> Holding:
    """Choose groups of hooks, and if need be fewer tokens.

    Args:
        points: hooks whose states are kept.
        spots: what is measured.
        tokens: most tokens per modality; None: `default_tokens`, or as many as fit.
        default_tokens: how many there would be.
        streams: how many streams are run.
        groups: modalities that tokens are sampled of.
        itemsize: bytes of a number.
        budget: in GiB; None: 80 % of the machine's memory.
        in_files: whether states are kept in files.
        one_pass: whether all hooks must share one pass.

    Raises:
        InputError: not even one pair of hooks fits with that many tokens.
    """
    k = tokens or default_tokens

    def cost(held: set[int], k: int) -> int:
        # Patches are one modality, and are seen in one stream only.
        return sum(
            k * points[i].width * itemsize * (1 if points[i].tower else streams * groups)
            for i in held
        )

    everything = cost(_held(spots), k)
    if in_files:
        return Holding(k, (tuple(spots),), everything, None)
    limit = int(budget * GIB) if budget is not None else int(SHARE * _memory())
    most = cost(_held(spots), 1) if one_pass else max(cost(_held([spot]), 1) for spot in spots)
    fewer = tokens is None and most * k > limit
    if fewer:
        k = limit // most
    if most * k > limit or k < 1:
        raise InputError(
            f"The sampled states of one hook and what leads to it would take "
            f"{most * max(k, 1) / GIB:.3g} GiB, of {limit / GIB:.3g} GiB. Keep them on disk with "
            "`run_dir`, lower `tokens`, raise `budget`, or profile one stream at a time."
        )
    passes: list[list[Spot]] = [[]]
    for spot in spots:
        if cost(_held([*passes[-1], spot]), k) > limit:
            passes.append([])
        passes[-1].append(spot)
    held = max(cost(_held(group), k) for group in passes)
    return Holding(k, tuple(tuple(group) for group in passes), held, limit, fewer)


def restrict(
    points: Sequence[Point], spots: Sequence[Spot]
) -> tuple[tuple[Point, ...], tuple[Spot, ...]]:
    """The points that these spots need, and the spots in terms of them."""
    held = sorted(_held(spots))
    new = {old: i for i, old in enumerate(held)}
    moved = [
        Spot(new[s.point], s.head, tuple((new[i], head) for i, head in s.sources), s.alone)
        for s in spots
    ]
    return tuple(points[i] for i in held), tuple(moved)


def _held(spots: Sequence[Spot]) -> set[int]:
    return {i for spot in spots for i in (spot.point, *(source for source, _ in spot.sources))}


def _memory() -> Any:
    return psutil.virtual_memory().total
