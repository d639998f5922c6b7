"""Counts of dimensions at equal numbers of tokens, as far as two profiles allow.

The intrinsic dimension depends on how many tokens it is estimated from (60 samples gave a
difference of +0.91 [0.58, 1.24] where 500 gave -0.44). A profile holds it at all, half and a
quarter of its tokens: between these the value of the model with more tokens is interpolated, over
the logarithm of their number, to the number of the other model. Where that is not enough, nothing
can be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mm_lens.comparing.paired import Curve
from mm_lens.metrics import METRICS

UNEQUAL = 0.1
"""Numbers of tokens that differ by no more than this are equal."""
SCALES = ("dimension_mle", "dimension_mle_half", "dimension_mle_quarter")

Curves = Mapping[tuple[str, ...], Curve]


def at_equal_numbers(
    a: Curve, b: Curve, of_a: Curves, of_b: Curves, key: tuple[str, ...]
) -> tuple[Curve, Curve, str]:
    """Two curves of one metric, at equal numbers of tokens if it is a count of dimensions.

    Args:
        a: The curve of one model.
        b: That of the other.
        of_a: All curves of the first model.
        of_b: All of the other.
        key: Stream, modality and metric of both; and component.

    Returns:
        The curves, and why they cannot be compared; "" if they can.
    """
    metric = METRICS.get(key[2])
    if metric is None or metric.unit != "dimensions" or _equal(a, b):
        return a, b, ""
    more, fewer, others = (a, b, of_a) if _number(a) > _number(b) else (b, a, of_b)
    thinner = _thinned(more, fewer, others, key)
    if thinner is None:
        n = f"{_number(a):,.0f} and {_number(b):,.0f}"
        return (
            a,
            b,
            f"on {n} tokens, and counts of dimensions depend on it: profile both on equal numbers",
        )
    return (thinner, b, "") if more is a else (a, thinner, "")


def _number(curve: Curve) -> float:
    return float(curve.table.n_tokens.median())


def _equal(a: Curve, b: Curve) -> bool:
    ours, theirs = _number(a), _number(b)
    return abs(ours - theirs) <= UNEQUAL * max(ours, theirs)


def _thinned(more: Curve, fewer: Curve, others: Curves, key: tuple[str, ...]) -> Curve | None:
    """The curve of the model with more tokens as if it had as many as the other."""
    stream, modality, metric, *line = key
    scales = [more, *(others.get((stream, modality, name, *line)) for name in SCALES[1:])]
    curves = [curve for curve in scales if curve is not None]
    shapes = {(*curve.layer.tolist(), curve.deviations.shape) for curve in curves}
    if metric != SCALES[0] or len(curves) < len(SCALES) or len(shapes) > 1:
        return None
    numbers = np.array([curve.table.n_tokens.to_numpy(float) for curve in curves])
    wanted = np.interp(more.depth, fewer.depth, fewer.table.n_tokens.to_numpy(float))
    weights = np.zeros_like(numbers)
    for layer, n in enumerate(wanted):
        most, least = numbers[0, layer], numbers[-1, layer]
        if n > most / (1 - UNEQUAL) or n < (1 - UNEQUAL) * least:
            return None
        place = np.interp(np.log(n), np.log(numbers[::-1, layer]), [2.0, 1.0, 0.0])
        below = min(int(place), 1)
        weights[below : below + 2, layer] = 1 - (place - below), place - below
    values, rest = (
        np.where(weights != 0, weights * np.array([getattr(c, name) for c in curves]), 0).sum(0)
        for name in ("value", "rest")
    )
    deviations = np.array([curve.deviations for curve in curves])
    return replace(
        more,
        value=values,
        rest=rest,
        deviations=(weights[:, :, None] * deviations).sum(0),
        table=more.table.assign(n_tokens=wanted.round().astype(int)),
        freedom=min(curve.freedom for curve in curves),
    )
