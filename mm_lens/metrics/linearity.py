"""Linearity: how well a linear map carries the tokens from one hook to the next.

All metrics are a share of variance explained, `1 - |Y - XA|² / |Y|²` with centred X and Y (n × d,
the same tokens at two consecutive hooks) and all outputs pooled. The papers call it Procrustes
similarity; it is the multi-output R² of ordinary least squares (Razzhigaev et al. 2024).

- `linearity_paper`: fitted and scored on the same tokens. With n tokens and an input of rank r,
  *independent noise* scores r / (n - 1): one at n <= r + 1. That is the `chance` column.
- `linearity_adjusted`: corrected for it, as if tokens were independent.
- `linearity_heldout`: scored on samples (images, documents) the map has not seen, in
  four folds, by a ridge map or no map at all (`numerics.linear_fit`); the zero is the
  mean of the training folds. So noise scores zero at any n.

`linearity_update_*` is the same for the *update* Y - X: what a residual stream adds. A residual
stream is linear almost by construction, since Y contains X; its update need not be. In sample both
leave the same residual, so `1 - R²_update = (1 - R²) |Y|² / |Y - X|²` and one fit serves both.

The two hooks need not be consecutive, nor of one width: any two of the same tokens will do. Between
different widths there is no update.

Intervals: the fit repeated without each of 16 groups of samples (holding the map fixed gives up to
half the width), on the scale of log(1 - R²), so that an interval never passes one; those in sample
end at zero. Where one group makes half of the variance, as a massive token may, a warning says so.
Held out, the residuals summed within samples where that is a quarter wider. The held-out interval
is about the score of a map fitted to *this many* tokens, which is below that of the best map.

Limits: where nearly all states coincide, the held-out score may fall far below zero through a few
tokens that a map fitted to others misses; a warning says how many. Below 10 tokens per rank every
value carries a warning, below 3 the held-out one is NaN.
Cost: 3 n d² operations for all moments, 16 Cholesky factors for the intervals; held out, six
eigendecompositions of d × d, up to 16 more Cholesky factors and 8 n d². Memory: 16 pairs of d × d
matrices.
Numerics: `numerics.regression`.
"""

from __future__ import annotations

import math

from mm_lens.metrics.core import Kind
from mm_lens.metrics.intervals import GROUPS
from mm_lens.metrics.numerics.estimates import Estimate, UndefinedError, estimate
from mm_lens.metrics.numerics.linear_fit import LinearFit, Scored
from mm_lens.metrics.numerics.moments import Moments
from mm_lens.metrics.numerics.regression import InSample, Target, varies


def from_fit(fit: InSample, moments: Moments) -> dict[str, float]:
    """The metrics in sample, from moments and the fit to them: values without intervals.

    Returns:
        By name of the metric, and `chance`; NaN where the data do not determine it.
    """
    states = fit.n > 2 and fit.rank > 0 and varies(moments, "state")
    update = states and varies(moments, "update")
    return {
        "linearity_paper": fit.r2("state") if states else math.nan,
        "linearity_adjusted": fit.adjusted("state") if states else math.nan,
        "linearity_update_paper": fit.r2("update") if update else math.nan,
        "linearity_update_adjusted": fit.adjusted("update") if update else math.nan,
        "chance": fit.rank / (fit.n - 1) if states else math.nan,
    }


KIND = Kind("linearity", arity=2, prepare=LinearFit)


def _estimate(fit: LinearFit, scored: Scored, chance: float, warnings: list[str]) -> Estimate:
    *numbers, replicates = scored
    if replicates.hang_on_one:
        note = f"half of the interval hangs on one of {GROUPS} groups of samples"
        warnings = [*warnings, note]
    return estimate(fit.tokens, *numbers, chance=chance, warnings=warnings, replicates=replicates)


def _in_sample(fit: LinearFit, target: Target) -> Estimate:
    chance = fit.in_sample.rank / (len(fit.tokens) - 1)
    value, low, high, replicates = fit.scored_in_sample(target, InSample.r2)
    scored = value, max(low, 0.0), high, replicates
    return _estimate(fit, scored, chance, fit.warnings(target))


def _adjusted(fit: LinearFit, target: Target) -> Estimate:
    n, rank = len(fit.tokens), fit.in_sample.rank
    if n <= rank + 1:
        raise UndefinedError(f"{n} tokens leave no degree of freedom at rank {rank}")
    numbers = fit.scored_in_sample(target, InSample.adjusted)
    return _estimate(fit, numbers, 0.0, fit.warnings(target))


def _heldout(fit: LinearFit, target: Target) -> Estimate:
    fit.require_enough()
    numbers = fit.held_out(target)
    n, few = len(fit.tokens), fit.holders(target)
    notes = [f"half of the held-out error is in {few} of {n} tokens"] * (few <= 0.005 * n)
    return _estimate(fit, numbers, 0.0, fit.warnings(target) + notes)


@KIND.metric(
    "linearity_paper",
    label="R², in sample",
    presets=("paper",),
    headline=("paper",),
    without_massive=True,
)
def linearity_paper(fit: LinearFit) -> Estimate:
    """R² of the best linear map, on the tokens it was fitted to."""
    return _in_sample(fit, "state")


@KIND.metric("linearity_adjusted", label="R², adjusted", presets=("honest",), without_massive=True)
def linearity_adjusted(fit: LinearFit) -> Estimate:
    """R² of the best linear map per degree of freedom, as if tokens were independent."""
    return _adjusted(fit, "state")


@KIND.metric(
    "linearity_heldout",
    label="R², held out",
    presets=("honest",),
    headline=("honest",),
    without_massive=True,
)
def linearity_heldout(fit: LinearFit) -> Estimate:
    """R² of a ridge map on samples it was not fitted to."""
    return _heldout(fit, "state")


@KIND.metric(
    "linearity_update_paper",
    label="R² of the update, in sample",
    presets=("paper",),
    without_massive=True,
)
def linearity_update_paper(fit: LinearFit) -> Estimate:
    """R² of the best linear map to the update Y - X, on the tokens it was fitted to."""
    return _in_sample(fit, "update")


@KIND.metric(
    "linearity_update_adjusted",
    label="R² of the update, adjusted",
    presets=("honest",),
    without_massive=True,
)
def linearity_update_adjusted(fit: LinearFit) -> Estimate:
    """R² of the best linear map to the update per degree of freedom."""
    return _adjusted(fit, "update")


@KIND.metric(
    "linearity_update_heldout",
    label="R² of the update, held out",
    presets=("honest",),
    without_massive=True,
)
def linearity_update_heldout(fit: LinearFit) -> Estimate:
    """R² of a ridge map to the update on samples it was not fitted to."""
    return _heldout(fit, "update")
