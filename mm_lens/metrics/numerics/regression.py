"""Linear regression from second moments: exact least squares, and ridge at every strength.

Numerics. Least squares: inputs scaled to equal variance (Jacobi), then Cholesky; where that fails
or a pivot sinks into rounding, eigenvectors, cut at d·eps of the largest eigenvalue. That is the
answer of a truncated SVD, also for constant columns and repeated tokens. Ridge: eigenvectors of the
unscaled Gram matrix, so that the result does not depend on the basis of the hidden state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from mm_lens.metrics.numerics.moments import Moments

#: What is predicted: the state at the next hook, or the update that leads there.
Target = Literal["state", "update"]
_STRENGTHS = torch.cat([10 ** torch.linspace(-10, 4, 57), torch.tensor([math.inf])]).double()
N_CHOICES = len(_STRENGTHS)


@dataclass(frozen=True)
class InSample:
    """Least squares fitted and scored on the same `n` tokens.

    `pivot` is what the other inputs leave unexplained of the best explained one: rounding of the
    moments that comes near it is in the result.
    """

    residual: float
    total: dict[Target, float]
    rank: int
    n: int
    pivot: float

    def r2(self, target: Target) -> float:
        """Share of variance explained; NaN if there is none to explain."""
        if not self.total[target] > 0:
            return math.nan
        return 1 - self.residual / self.total[target]

    def adjusted(self, target: Target) -> float:
        """The same per degree of freedom; NaN where none is left."""
        free = self.n - 1 - self.rank
        if free <= 0:
            return math.nan
        return 1 - (1 - self.r2(target)) * (self.n - 1) / free


def varies(moments: Moments, target: Target) -> bool:
    """Whether the target varies by more than its rounding."""
    m, eps = moments, torch.finfo(moments.xx.dtype).eps
    means = m.n * (m.x.square().sum() + m.y.square().sum())
    if target == "update":
        return bool(m.uu > (16 * eps) ** 2 * (m.yy + m.xx.trace() + means))
    return bool(m.yy > m.n * (8 * eps) ** 2 * m.y.square().sum())


def jacobi(moments: Moments) -> Float64[Tensor, " d"]:
    """One over the norm of each input column; zero for those constant up to rounding."""
    variance = moments.xx.diagonal()
    rounding = moments.n * (8 * torch.finfo(variance.dtype).eps * moments.x).square()
    return torch.where(variance > rounding, variance.rsqrt(), 0.0)


def least_squares(moments: Moments, scale: Float64[Tensor, " d"]) -> InSample:
    """Ordinary least squares from moments.

    Args:
        moments: Of the tokens to fit and score.
        scale: Factor for each input column (Jacobi), from all tokens: of a column that is constant
            in these only rounding is left, and must not be scaled up.
    """
    m, d = moments, len(moments.xx)
    # Both targets leave the same residual; the smaller one loses least of it to cancellation.
    cross, total = (m.xy - m.xx, m.uu) if bool(m.uu < m.yy) else (m.xy, m.yy)
    cross = cross * scale[:, None]
    gram = m.xx * scale * scale[:, None]

    eps = torch.finfo(gram.dtype).eps
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivot = 0.0 if int(failed) else float(factor.diagonal().min()) ** 2
    if pivot > 1e4 * d * eps:
        explained = torch.linalg.solve_triangular(factor, cross, upper=False).square().sum()
        rank = d
    else:
        values, vectors = torch.linalg.eigh(gram)
        keep = values > d * eps * values[-1]
        explained = ((vectors[:, keep].T @ cross).square().sum(1) / values[keep]).sum()
        rank = int(keep.sum())
    residual = max(float(total - explained), 0.0)
    return InSample(residual, {"state": float(m.yy), "update": float(m.uu)}, rank, m.n, pivot)


class Ridge:
    """Ridge regression of both targets at every strength, from one eigendecomposition.

    The choices are `_STRENGTHS` times the mean eigenvalue; the last is no map at all.
    """

    def __init__(self, train: Moments) -> None:
        self.means, self._n = (train.x, train.y), train.n
        values: Tensor
        vectors: Tensor
        values, vectors = torch.linalg.eigh(train.xx)
        keep = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
        values, self._vectors = values[keep], vectors[:, keep]
        mean = values.mean() if bool(keep.any()) else values.new_ones(())
        self._weights = (values + _STRENGTHS.to(mean.device)[:, None] * mean).reciprocal()
        state = self._vectors.T @ train.xy
        self._rotated: dict[Target, Tensor] = {"state": state}
        if train.xx.shape == train.xy.shape:  # hooks of different width have no update
            self._rotated["update"] = state - values[:, None] * self._vectors.T

    @cached_property
    def _products(self) -> dict[Target, Float64[Tensor, "rank rank"]]:
        return {target: rotated @ rotated.T for target, rotated in self._rotated.items()}

    def errors(self, held: Moments) -> dict[Target, Float64[Tensor, " choices"]]:
        """Squared error of each choice on tokens given by their moments."""
        xx, xy, yy, uu = held.about(*self.means)
        half = self._vectors.T @ xx
        gram, state = half @ self._vectors, self._vectors.T @ xy
        w = self._weights
        errors: dict[Target, Tensor] = {}
        for target, rotated in self._rotated.items():
            cross, total = (state, yy) if target == "state" else (state - half, uu)
            explained = 2 * w @ (rotated * cross).sum(1)
            errors[target] = total - explained + (w @ (gram * self._products[target]) * w).sum(1)
        return errors

    def fitted(self, target: Target, choice: int) -> Fitted:
        """The map at one of the choices."""
        weights = self._weights[choice][:, None]

        def solve(right: Tensor) -> Tensor:
            return self._vectors @ (weights * (self._vectors.T @ right))

        map_ = self._vectors @ (weights * self._rotated[target])
        return Fitted(target, self.means, self._n, map_, solve, _stiffness(choice, weights.numel()))


def fit_ridge(train: Moments, target: Target, choice: int) -> Fitted:
    """The map of `Ridge` at one of its choices, without eigenvectors where the inputs allow.

    A Cholesky factor does where no direction is so weak that `Ridge` would cut it off.
    """
    gram, d = train.xx, len(train.xx)
    strength = float(_STRENGTHS[choice])
    factor, failed = torch.linalg.cholesky_ex(gram)
    weakest = 0.0 if int(failed) else float(factor.diagonal().min()) ** 2
    if not weakest > 1e4 * d * torch.finfo(gram.dtype).eps * float(gram.trace()):
        return Ridge(train).fitted(target, choice)
    means, right = (train.x, train.y), train.xy if target == "state" else train.xy - gram
    if math.isinf(strength):
        nothing = torch.zeros_like(right)
        return Fitted(target, means, train.n, nothing, torch.zeros_like, 0.0)
    stiff = gram.clone()
    stiff.diagonal().add_(strength * float(gram.trace()) / d)
    factor = torch.linalg.cholesky(stiff)

    def solve(right: Tensor) -> Tensor:
        return torch.cholesky_solve(right, factor)

    map_ = solve(right)
    return Fitted(target, means, train.n, map_, solve, _stiffness(choice, d))


def _stiffness(choice: int, rank: int) -> float:
    """How the strength moves with the trace of the inputs' moments: it is a multiple of the mean
    eigenvalue. None is left of it where there is no map at all."""
    strength = float(_STRENGTHS[choice])
    return strength / max(rank, 1) if math.isfinite(strength) else 0.0


@dataclass(frozen=True)
class Fitted:
    """A ridge map of one target at one strength.

    Attributes:
        target: what it predicts.
        means: of inputs and outputs in the rows that it was fitted to.
        n: number of these rows.
        map: from inputs to outputs, both about their means.
        solve: the inverse of the regularised moments, applied.
        stiffness: by what the strength grows with the trace of the moments.
    """

    target: Target
    means: tuple[Float64[Tensor, " c"], Float64[Tensor, " e"]]
    n: int
    map: Float64[Tensor, "c d"]
    solve: Callable[[Tensor], Tensor]
    stiffness: float

    def effects(
        self,
        inputs: Float64[Tensor, "m d"],
        outputs: Float64[Tensor, "m e"],
        left: Float64[Tensor, "m e"],
    ) -> Callable[[Moments], Float64[Tensor, " 2"]]:
        """What training rows add to the squared errors of tested rows, by map and by mean.

        To first order: the map and the means move along the training rows' own errors.

        Args:
            inputs: Of the tested rows, about the training means.
            outputs: The target in these rows, about its mean.
            left: What the map leaves of them.

        Returns:
            A function of the moments of some of the training rows.
        """
        pull = self.solve(inputs.T @ left)
        back = pull @ self.map.T
        stiff = self.stiffness * (pull * self.map).sum()
        total_left, total = left.sum(0), outputs.sum(0)

        def of(rows: Moments) -> Float64[Tensor, " 2"]:
            xx, xy, _, _ = rows.about(*self.means)
            x = rows.n * (rows.x - self.means[0])
            y = rows.n * (rows.y - self.means[1])
            if self.target == "update":
                xy, y = xy - xx, y - x
            moved = (pull * xy).sum() - (back * xx).sum() - stiff * xx.trace()
            shifted = (y - x @ self.map) @ total_left / self.n
            return -2 * torch.stack([moved + shifted, y @ total / self.n])

        return of
