"""From ratios of neighbour distances to a dimension: the estimators, and each token's influence.

In `D` dimensions at constant density, the ratio `mu` of the distances to two neighbours has a
known law. All estimators work on `log mu` and return a `Fit`: the dimension, and how much
each token moves it, from which intervals follow.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from mm_lens.metrics.numerics.estimates import UndefinedError
from mm_lens.metrics.numerics.neighbours import Neighbours


@dataclass(frozen=True)
class Fit:
    """A dimension, and what each token contributes to its error."""

    value: float
    influence: Float64[Tensor, " n"]


def log_ratios(neighbours: Neighbours, n1: int = 1) -> Float64[Tensor, " n"]:
    """Logarithm of the distance to neighbour `2 n1` over that to neighbour `n1`.

    Raises:
        UndefinedError: Some distance underflows, or every point has both neighbours equally far.
    """
    distance = neighbours.distance
    ratios = (distance[:, 2 * n1 - 1] / distance[:, n1 - 1]).log()
    if not bool(ratios.isfinite().all()):
        raise UndefinedError("distances between distinct states underflow float64")
    if float(ratios.sum()) <= 0:
        raise UndefinedError("both neighbours of every token are equally far: a regular grid")
    return ratios


def fit_mle(ratios: Float64[Tensor, " n"]) -> Fit:
    """Unbiased maximum likelihood of `r2 / r1` (Denti et al. 2022): `(N - 1) / sum(log mu)`."""
    n, total = len(ratios), float(ratios.sum())
    return Fit((n - 1) / total, (n / total) * (1 / n - ratios / total))


def fit_gride(ratios: Float64[Tensor, " n"], n1: int) -> Fit:
    """Maximum likelihood of `r(2 n1) / r(n1)`, at most 60 Newton steps (Denti et al. 2022).

    The density of `mu` is `D (mu^D - 1)^(n1 - 1) / (B(n1, n1) mu^(D (2 n1 - 1) + 1))` (their
    eq. 2.6 with n2 = 2 n1); its likelihood has one maximum.
    """
    t = ratios
    # Exact in the mean: E log mu = sum of 1/j for j from n1 to 2 n1 - 1, over D.
    start = sum(1 / j for j in range(n1, 2 * n1)) / t.mean()

    def score(d: Tensor) -> tuple[Tensor, Tensor]:
        """Derivative of each token's log likelihood by D, and the second one."""
        shrink = -torch.expm1(-d * t)
        first = torch.where(t > 0, t / shrink, 1 / d)
        second = torch.where(t > 0, (1 - shrink) * first.square(), d**-2)
        return 1 / d + (n1 - 1) * first - (2 * n1 - 1) * t, -(d**-2) - (n1 - 1) * second

    d = start
    for _ in range(60):
        first, second = score(d)
        step = -first.sum() / second.sum()
        d = torch.maximum(d + step, d / 2)
        if bool(step.abs() <= 1e-14 * d):
            break
    first, second = score(d)
    return Fit(float(d), -(first - first.mean()) / second.sum())


def fit_line(ratios: Float64[Tensor, " n"], n_fitted: int) -> Fit:
    """Slope through the origin of `-log(1 - F)` on `log mu` over the smallest ratios.

    Args:
        ratios: `log mu`. Zeros count in the distribution `F` and pull at no line.
        n_fitted: How many of the smallest to fit, zeros included.
    """
    n = len(ratios)
    x, order = ratios.sort()
    rank = torch.arange(1, n_fitted + 1, device=x.device, dtype=x.dtype)
    x, y = x[:n_fitted], -torch.log1p(-rank / n)
    sxx = x.square().sum()
    slope = float((x * y).sum() / sxx)
    # Influence of an L-statistic: a point at x0 lowers every quantile above it. With g the
    # derivative of the slope by the quantile, it adds the integral of g up to min(x0, last x).
    spacing = torch.diff(x, prepend=x.new_zeros(1))
    gained = ((y - 2 * slope * x) * spacing).cumsum(0) * (n / sxx)
    influence = gained[-1].repeat(n)
    influence[order[:n_fitted]] = gained
    return Fit(slope, (influence - influence.mean()) / n)
