"""Bands over layers: intervals that hold for all layers of a curve at once.

The lowest of thirty layers was chosen for being low. Its own 95 % interval lies below zero far more
often than 2.5 % of the time where the truth is zero at every layer (measured: 9 %). A band is wide
enough for the *largest* of all errors: its width is the 95 % quantile of max |t| over the layers,
given how the layers err together, which the replicates tell. The lowest value of the true curve
then lies between the lowest ends of the band.

The quantile is simulated: errors of layers with the covariance of the replicates, each layer
divided by a standard error of its own that has been estimated from as many groups as there were.
What the groups do not show (`rest`) is taken for independent between layers, which errs on the
wide side. Where there are no replicates, the layers are taken for independent (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from mm_lens.comparing.paired import Quantity
from mm_lens.metrics.intervals import student_quantile

DRAWS = 4000
"""Enough for the quantile to 2 %."""


@dataclass(frozen=True)
class Interval:
    """A value with the ends of an interval; NaN where there is none."""

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether value and interval exist."""
        return all(map(math.isfinite, (self.value, self.low, self.high)))


def band(values: Sequence[Quantity]) -> list[Interval]:
    """An interval for each value, all of which hold at once 95 % of the time.

    Values that are not known have none, and widen nothing.
    """
    known = [value for value in values if value.known]
    quantile = simultaneous_quantile(known) if known else math.nan
    return [
        Interval(v.value, v.value - quantile * v.error, v.value + quantile * v.error)
        for v in values
    ]


def simultaneous_quantile(values: Sequence[Quantity]) -> float:
    """The 95 % quantile of the largest of the values' errors, each in its own standard errors."""
    apart = [value for value in values if value.error > 0]
    if not apart:
        return 0.0
    freedom = min(value.freedom for value in apart)
    blocks = [value.deviations for value in apart]
    if any([d.shape for d in block] != [d.shape for d in blocks[0]] for block in blocks):
        return student_quantile(freedom, 1 - 0.025 / len(apart))
    rest = np.array([value.rest for value in apart])
    parts = [np.array([block[i] for block in blocks]) for i in range(len(blocks[0]))]
    parts = [part for part in parts if part.any()]
    if not parts:
        return student_quantile(freedom, 1 - 0.025 / len(apart))
    return float(np.quantile(_largest_errors(parts, rest, freedom), 0.95))


def _largest_errors(
    parts: Sequence[Float64[ndarray, "layers _"]], rest: Float64[ndarray, " layers"], freedom: float
) -> Float64[ndarray, " draws"]:
    """Draws of max |t|, under the covariance of the deviations of each part."""
    groups = max(2, round(freedom) + 1)
    total = _normals(0, DRAWS, len(rest)) * rest
    variance = np.tile(rest**2, (DRAWS, 1))
    for seed, part in enumerate(parts, 1):
        drawn = _normals(seed, DRAWS, groups, part.shape[1]) @ part.T / math.sqrt(groups)
        total += drawn.sum(1)
        variance += drawn.var(1, ddof=1) * groups
    largest: ndarray = np.abs(total / np.sqrt(variance)).max(1)
    return largest


@lru_cache(maxsize=4)  # the same for every curve
def _normals(seed: int, *shape: int) -> Float64[ndarray, "..."]:
    return np.random.default_rng(seed).normal(size=shape)


def lowest(bands: Sequence[Interval]) -> tuple[int, Interval]:
    """Where the lowest value is, and an interval for the lowest of the true values."""
    known = [i for i, each in enumerate(bands) if each.known]
    if not known:
        return 0, Interval(math.nan, math.nan, math.nan)
    ends = [(bands[i].value, bands[i].low, bands[i].high) for i in known]
    value, low, high = (min(column) for column in zip(*ends, strict=True))
    return min(known, key=lambda i: bands[i].value), Interval(value, low, high)


def highest(bands: Sequence[Interval]) -> tuple[int, Interval]:
    """Where the highest value is, and an interval for the highest of the true values."""
    at, found = lowest([Interval(-b.value, -b.high, -b.low) for b in bands])
    return at, Interval(-found.value, -found.high, -found.low)
