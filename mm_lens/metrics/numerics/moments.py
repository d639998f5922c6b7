"""Second moments that add up: of one hook (`Scatter`) or of two (`Moments`).

Moments of parts join to those of the whole, and a part can be taken out again: a refit without a
group of samples, the next batch of a stream and the shard of another process are one operation.
They are kept about their own means and joined by Chan, Golub & LeVeque (1983), so that a large mean
costs no digits: any split into parts gives the same to 1e-13.

Cost: see `numerics.products`; joining costs d² each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from mm_lens.metrics.numerics.products import gram, product, split_rows


@dataclass(frozen=True)
class Scatter:
    """Number, mean and central second moment of rows; `a + b` is that of both sets of rows."""

    n: int
    mean: Float64[Tensor, " d"]
    xx: Float64[Tensor, "d d"]

    @staticmethod
    def of(x: Float64[Tensor, "n d"], *, fast: bool = False) -> Scatter:
        """Of at least one row; `fast` as in `Moments.of`."""
        mean = x.mean(0)
        x = x - mean
        return Scatter(len(x), mean, gram(x, split_rows(x) if fast else None))

    def __add__(self, other: Scatter) -> Scatter:
        return self._joined(other, 1)

    def __sub__(self, part: Scatter) -> Scatter:
        return self._joined(part, -1)

    def _joined(self, other: Scatter, sign: int) -> Scatter:
        """Chan's formula; with the sign turned, it takes the other rows out again."""
        n = self.n + sign * other.n
        step = other.mean - self.mean
        xx = self.xx.add(other.xx, alpha=sign).addr_(step, step, alpha=sign * self.n * other.n / n)
        return Scatter(n, self.mean + sign * other.n / n * step, xx)


@dataclass(frozen=True)
class Moments:
    """Number, means and central second moments of pairs of rows; `uu` is of `y - x`.

    Where the two hooks differ in width there is no `y - x`, and `uu` is NaN.

    `a + b` are the moments of both sets of rows, `whole - part` those of the rest.
    """

    n: int
    x: Float64[Tensor, " c"]
    y: Float64[Tensor, " d"]
    xx: Float64[Tensor, "c c"]
    xy: Float64[Tensor, "c d"]
    yy: Float64[Tensor, ""]
    uu: Float64[Tensor, ""]

    @staticmethod
    def of(x: Float64[Tensor, "n c"], y: Float64[Tensor, "n d"], *, fast: bool = False) -> Moments:
        """Moments of at least one pair of rows.

        Args:
            x: States at a hook.
            y: The same tokens at the next hook.
            fast: Products in float32, but for rows of large norm (`products.split_rows`): twice
                the speed, R² to 1e-6. For states that were rounded to 16 bit anyway.
        """
        mean_x, mean_y = x.mean(0), y.mean(0)
        x, y = x - mean_x, y - mean_y
        update = y - x if x.shape == y.shape else None
        yy = y.square().sum()
        uu = torch.full_like(yy, math.nan) if update is None else update.square().sum()
        heavy = split_rows(x, y) if fast else None
        xx = gram(x, heavy)
        if heavy is not None and update is not None and bool(uu < yy):
            # The rounding of xᵀx must drop out of the update, the smaller of the two targets.
            xy = xx + product(x, update, heavy)
        else:
            xy = product(x, y, heavy)
        return Moments(len(x), mean_x, mean_y, xx, xy, yy, uu)

    def __add__(self, other: Moments) -> Moments:
        return self._joined(other, 1)

    def __sub__(self, part: Moments) -> Moments:
        return self._joined(part, -1)

    def _joined(self, other: Moments, sign: int) -> Moments:
        """As in `Scatter`."""
        n = self.n + sign * other.n
        dx, dy = other.x - self.x, other.y - self.y
        share, weight = sign * other.n / n, sign * self.n * other.n / n
        return Moments(
            n,
            self.x + share * dx,
            self.y + share * dy,
            self.xx.add(other.xx, alpha=sign).addr_(dx, dx, alpha=weight),
            self.xy.add(other.xy, alpha=sign).addr_(dx, dy, alpha=weight),
            self.yy + sign * other.yy + weight * dy.square().sum(),
            self.uu + sign * other.uu + weight * _squares(dx, dy),
        )

    def about(
        self, x: Float64[Tensor, " c"], y: Float64[Tensor, " d"]
    ) -> tuple[
        Float64[Tensor, "c c"], Float64[Tensor, "c d"], Float64[Tensor, ""], Float64[Tensor, ""]
    ]:
        """`xx`, `xy`, `yy` and `uu` about another origin."""
        dx, dy = self.x - x, self.y - y
        return (
            torch.addr(self.xx, dx, dx, alpha=self.n),
            torch.addr(self.xy, dx, dy, alpha=self.n),
            self.yy + self.n * dy.square().sum(),
            self.uu + self.n * _squares(dx, dy),
        )


def _squares(dx: Float64[Tensor, " c"], dy: Float64[Tensor, " d"]) -> Float64[Tensor, ""] | float:
    """Of the update between two means; NaN where there is none."""
    return (dy - dx).square().sum() if dx.shape == dy.shape else math.nan
