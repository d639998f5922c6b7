"""Linear regression from second moments: exact least squares, and ridge at every strength.

Moments are sums over tokens, so that the moments of all tokens minus those of some are the moments
of the rest: a refit without a group costs no second pass over the others.

Numerics. Least squares: inputs scaled to equal variance (Jacobi), then Cholesky; where that fails
or a pivot sinks into rounding, eigenvectors, cut at d·eps of the largest eigenvalue. That is the
answer of a truncated SVD, also for constant columns and repeated tokens. Ridge: eigenvectors of
the unscaled Gram matrix, so that the result does not depend on the basis of the hidden state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

#: What is predicted: the state at the next hook, or the update that leads there.
Target = Literal["state", "update"]
_STRENGTHS = torch.cat([10 ** torch.linspace(-10, 4, 57), torch.tensor([math.inf])]).double()
N_CHOICES = len(_STRENGTHS)


@dataclass(frozen=True)
class Moments:
    """Sums over tokens, about any fixed origin: those of a part are subtracted to leave it out."""

    n: int
    x: Float64[Tensor, " d"]
    y: Float64[Tensor, " d"]
    xx: Float64[Tensor, "d d"]
    xy: Float64[Tensor, "d d"]
    yy: Float64[Tensor, ""]
    uu: Float64[Tensor, ""]

    @staticmethod
    def of(x: Float64[Tensor, "n d"], y: Float64[Tensor, "n d"]) -> Moments:
        """Moments of the rows; ``uu`` is the sum of squares of the update ``y - x``."""
        yy, uu = y.square().sum(), (y - x).square().sum()
        return Moments(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y, yy, uu)

    def __sub__(self, part: Moments) -> Moments:
        return Moments(*(getattr(self, f.name) - getattr(part, f.name) for f in fields(self)))

    def about(self, x: Float64[Tensor, " d"], y: Float64[Tensor, " d"]) -> Moments:
        """The same about another origin."""
        shift_x, shift_u = self.x - self.n * x, self.y - self.x - self.n * (y - x)
        shift_y = self.y - self.n * y
        return Moments(
            self.n,
            shift_x,
            shift_y,
            self.xx - torch.outer(self.x, x) - torch.outer(x, shift_x),
            self.xy - torch.outer(self.x, y) - torch.outer(x, shift_y),
            self.yy - self.y @ y - y @ shift_y,
            self.uu - (self.y - self.x) @ (y - x) - (y - x) @ shift_u,
        )

    def means(self) -> tuple[Float64[Tensor, " d"], Float64[Tensor, " d"]]:
        """Mean of the inputs and of the states."""
        return self.x / self.n, self.y / self.n


@dataclass(frozen=True)
class InSample:
    """Least squares fitted and scored on the same ``n`` tokens."""

    residual: float
    total: dict[Target, float]
    rank: int
    n: int

    def r2(self, target: Target) -> float:
        """Share of variance explained."""
        return 1 - self.residual / self.total[target]

    def adjusted(self, target: Target) -> float:
        """The same per degree of freedom; NaN where none is left."""
        free = self.n - 1 - self.rank
        if free <= 0:
            return math.nan
        return 1 - (1 - self.r2(target)) * (self.n - 1) / free


def least_squares(moments: Moments, scale: Float64[Tensor, " d"]) -> InSample:
    """Ordinary least squares from moments.

    Args:
        moments: Of the tokens to fit and score.
        scale: Factor for each input column (Jacobi), from all tokens: of a column that is constant
            in these only rounding is left, and must not be scaled up.
    """
    m = moments.about(*moments.means())
    d = len(m.xx)
    # Both targets leave the same residual; the smaller one loses least of it to cancellation.
    cross, total = (m.xy - m.xx, m.uu) if bool(m.uu < m.yy) else (m.xy, m.yy)
    cross = cross * scale[:, None]
    gram = m.xx * scale * scale[:, None]

    eps = torch.finfo(gram.dtype).eps
    factor, failed = torch.linalg.cholesky_ex(gram)
    if int(failed) == 0 and float(factor.diagonal().min()) ** 2 > 1e4 * d * eps:
        explained = torch.linalg.solve_triangular(factor, cross, upper=False).square().sum()
        rank = d
    else:
        values, vectors = torch.linalg.eigh(gram)
        keep = values > d * eps * values[-1]
        explained = ((vectors[:, keep].T @ cross).square().sum(1) / values[keep]).sum()
        rank = int(keep.sum())
    residual = max(float(total - explained), 0.0)
    return InSample(residual, {"state": float(m.yy), "update": float(m.uu)}, rank, m.n)


class Ridge:
    """Ridge regression of both targets at every strength, from one eigendecomposition.

    The choices are :data:`_STRENGTHS` times the mean eigenvalue; the last is no map at all.
    """

    def __init__(self, train: Moments) -> None:
        self.means = train.means()
        train = train.about(*self.means)
        values: Tensor
        vectors: Tensor
        values, vectors = torch.linalg.eigh(train.xx)
        keep = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
        values, self._vectors = values[keep], vectors[:, keep]
        mean = values.mean() if bool(keep.any()) else values.new_ones(())
        self._weights = (values + _STRENGTHS.to(mean.device)[:, None] * mean).reciprocal()
        state = self._vectors.T @ train.xy
        update = state - values[:, None] * self._vectors.T
        self._rotated: dict[Target, Tensor] = {"state": state, "update": update}

    @cached_property
    def _products(self) -> dict[Target, Float64[Tensor, "rank rank"]]:
        return {target: rotated @ rotated.T for target, rotated in self._rotated.items()}

    def errors(self, held: Moments) -> dict[Target, Float64[Tensor, " choices"]]:
        """Squared error of each choice on tokens given by their moments."""
        held = held.about(*self.means)
        half = self._vectors.T @ held.xx
        gram, state = half @ self._vectors, self._vectors.T @ held.xy
        w = self._weights
        errors: dict[Target, Tensor] = {}
        for target, rotated in self._rotated.items():
            cross, total = (state, held.yy) if target == "state" else (state - half, held.uu)
            explained = 2 * w @ (rotated * cross).sum(1)
            errors[target] = total - explained + (w @ (gram * self._products[target]) * w).sum(1)
        return errors

    def map(self, target: Target, choice: int) -> Float64[Tensor, "d d"]:
        """The map at one of the choices."""
        return self._vectors @ (self._weights[choice][:, None] * self._rotated[target])
