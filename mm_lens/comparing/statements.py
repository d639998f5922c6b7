"""Statements about models that a profile can bear out, and the numbers that decide them.

Every threshold is a constant below; docs/comparing.md says why these. An answer is given only where
the 95 % interval lies on one side of the threshold: otherwise it "cannot be told". What is said of
the lowest, the highest or all layers rests on a band over the layers (`mm_lens.comparing.bands`),
not on the interval of the layer that was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from mm_lens.comparing.bands import Interval, band, highest, lowest
from mm_lens.comparing.paired import Curve, Quantity, combine

HIGHLY_LINEAR = 0.9
"""Mean R² over the layers from which on a stream is called highly linear."""
DECLINE = 0.01
"""Loss of R² between the first and the last third of depth from which on it declines."""
LOW_ANISOTROPY = 0.5
"""Anisotropy up to which it is low: no direction holds more than half of the variance."""
UNTOLD = "cannot be told"
"""The answer where the interval does not settle it."""


@dataclass(frozen=True)
class Measured:
    """One number that bears on a statement.

    Attributes:
        what: the number in words.
        quantity: its value and interval.
        threshold: what it is held against.
        answer: whether the statement is true; "" where another number decides.
        note: what to know beside it.
    """

    what: str
    quantity: Quantity | Interval
    threshold: float
    answer: str
    note: str = ""


@dataclass(frozen=True)
class Statement:
    """A sentence that can be true of one model, or of one model beside another.

    Attributes:
        key: for tables of claims.
        title: in words.
        criterion: what must be so for it to be true.
        models: how many it is about.
        kind: of the metric; the one that stands for it in each preset is used.
        streams: where it is tested, one finding each.
        modalities: all of them must agree.
        test: numbers and answer, from one curve per model and whether these are paired.
    """

    key: str
    title: str
    criterion: str
    models: int
    kind: str
    streams: tuple[str, ...]
    modalities: tuple[str, ...]
    test: Callable[[Sequence[Curve], bool], list[Measured]]


def _linear(curves: Sequence[Curve], paired: bool) -> list[Measured]:
    (curve,) = curves
    mean = combine((curve, curve.mean()))
    at, least = lowest(band([combine((curve, curve.at(x))) for x in curve.depth]))
    note = (
        f"lowest {least.value:.2f} [{least.low:.2f}, {least.high:.2f}] "
        f"at layer {curve.layer[at]:.0f}"
    )
    answer = _answer(mean, HIGHLY_LINEAR, above=True)
    return [Measured("mean", mean, HIGHLY_LINEAR, answer, note)]


def _declines(curves: Sequence[Curve], paired: bool) -> list[Measured]:
    (curve,) = curves
    first, last = curve.depth <= 1 / 3, curve.depth >= 2 / 3
    what = "last third − first third"
    if not first.any() or not last.any():
        return [Measured(what, _NOTHING, -DECLINE, UNTOLD, "too few layers")]
    change = combine((curve, last / last.sum() - first / first.sum()))
    return [Measured(what, change, -DECLINE, _answer(change, -DECLINE, above=False))]


def _higher(curves: Sequence[Curve], paired: bool) -> list[Measured]:
    a, b = curves
    grid = min(curves, key=lambda curve: len(curve.layer)).depth
    gaps = [combine((a, a.at(x)), (b, -b.at(x)), paired=paired) for x in grid]
    weights = [np.mean([c.at(x) for x in grid], axis=0) for c in curves]
    mean = combine((a, weights[0]), (b, -weights[1]), paired=paired)
    return _throughout(mean, gaps, grid, 0.0, True)


def _low(curves: Sequence[Curve], paired: bool) -> list[Measured]:
    (curve,) = curves
    values = [combine((curve, curve.at(x))) for x in curve.depth]
    mean = combine((curve, curve.mean()))
    return _throughout(mean, values, curve.depth, LOW_ANISOTROPY, False)


_NOTHING = Quantity(math.nan, math.nan, 1)


def _answer(found: Quantity | Interval, threshold: float, above: bool) -> str:
    if not found.known:
        return UNTOLD
    if found.low >= threshold:
        return "yes" if above else "no"
    if found.high < threshold:
        return "no" if above else "yes"
    return UNTOLD


def _throughout(
    mean: Quantity,
    values: Sequence[Quantity],
    depth: Float64[ndarray, " layers"],
    threshold: float,
    above: bool,
) -> list[Measured]:
    """The mean, and the worst layer, which decides."""
    bands = band(values)
    worst, found = lowest(bands) if above else highest(bands)
    answers = [_answer(each, threshold, above) for each in bands]
    sides = ("above", "below")[:: 1 if above else -1]
    note = (
        f"at depth {depth[worst]:.2f}; band {sides[0]} {threshold:g} at {answers.count('yes')} of "
        f"{len(values)} layers, {sides[1]} it at {answers.count('no')}"
    )
    name = "lowest" if above else "highest"
    return [
        Measured("mean", mean, threshold, ""),
        Measured(name, found, threshold, _answer(found, threshold, above), note),
    ]


STATEMENTS = (
    Statement(
        "linear",
        "Highly linear",
        f"mean R² over layers ≥ {HIGHLY_LINEAR}",
        1,
        "linearity",
        ("residual", "main"),
        ("visual", "text"),
        _linear,
    ),
    Statement(
        "declines",
        "Visual linearity declines over depth",
        f"R², last − first third < −{DECLINE}",
        1,
        "linearity",
        ("residual", "main"),
        ("visual",),
        _declines,
    ),
    Statement(
        "higher_dimension",
        "Higher visual intrinsic dimension",
        "difference > 0 at every layer",
        2,
        "dimension",
        ("residual",),
        ("visual",),
        _higher,
    ),
    Statement(
        "low_anisotropy",
        "Low visual anisotropy",
        f"< {LOW_ANISOTROPY} at every layer",
        1,
        "anisotropy",
        ("residual",),
        ("visual",),
        _low,
    ),
)
