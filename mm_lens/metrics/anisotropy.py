"""Anisotropy: how much of the variance of the tokens lies along one direction.

`anisotropy` is the largest eigenvalue of the centred covariance over its trace (Razzhigaev et al.
2024). It reads as "all tokens point one way", but a handful of massive tokens, mostly at position
0, is enough to drive it to one (a real layer: 0.997 with position 0, 0.090 without). So it never
stands alone: the same `_without_massive` tokens is what the honest preset reads; `_without_first`
and `_trimmed` of the 1 % largest norms take out some of them; `massive_tokens` and
`half_trace_tokens` count them. `mean_cosine` is the older definition, the mean cosine between two
tokens *without* centring (Ethayarajh 2019).

The `chance` column is the largest eigenvalue share of isotropic noise with the same number of
tokens and dimensions, `(1 + sqrt(d / n))² / d` (Marchenko & Pastur 1967).

Intervals: the influence function `((v·x)² - a |x|²) / trace`, summed within samples; trimming is
taken as given. Cost: one float64 Gram matrix on the smaller side of the n × d matrix for all
variants together, and its largest eigenvalue (`numerics.eigen`) for each.
"""

from __future__ import annotations

import math
import operator
from functools import cached_property, reduce

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from mm_lens.metrics.core import Kind
from mm_lens.metrics.intervals import Replicates, clustered_error, margin
from mm_lens.metrics.numerics.eigen import largest
from mm_lens.metrics.numerics.estimates import Estimate, UndefinedError, estimate
from mm_lens.metrics.numerics.massive import massive
from mm_lens.metrics.numerics.moments import Scatter
from mm_lens.metrics.tokens import Tokens, centre, rounded, rounding


class Cloud:
    """The tokens in float64 and their second moments, for every metric of the family."""

    def __init__(self, tokens: Tokens, seed: int) -> None:
        self.tokens = tokens
        self.seed = seed

    @cached_property
    def x(self) -> Float64[Tensor, "n d"]:
        """Raw states."""
        return self.tokens.x.double()

    @cached_property
    def squares(self) -> Float64[Tensor, " n"]:
        """Squared norms of the raw states."""
        return self.x.square().sum(1)

    @cached_property
    def centred(self) -> Float64[Tensor, "n d"]:
        """States about the mean of all tokens."""
        if len(self.x) < 3:
            raise UndefinedError(f"fewer than 3 tokens ({len(self.x)})")
        centred = centre(self.x)
        if not bool(centred.any()):
            raise UndefinedError("all tokens have the same state")
        return centred

    @cached_property
    def notes(self) -> list[str]:
        """What rounding of the states makes of their variance."""
        size = float(self.centred.square().sum()) / len(self.centred)
        return rounded(self.tokens, rounding(self.tokens), size, "the variance")

    @cached_property
    def everyone(self) -> Bool[Tensor, " n"]:
        """All tokens."""
        return torch.ones(len(self.tokens), dtype=torch.bool, device=self.x.device)

    @cached_property
    def not_first(self) -> Bool[Tensor, " n"]:
        """The tokens that are not at position 0."""
        return self.tokens.position != 0

    @cached_property
    def not_largest(self) -> Bool[Tensor, " n"]:
        """All but the 1 % of tokens (at least one) with the largest norms."""
        keep = self.everyone.clone()
        keep[self.squares.topk(math.ceil(0.01 * len(keep))).indices] = False
        return keep

    @cached_property
    def _cells(self) -> list[tuple[Bool[Tensor, " n"], Scatter]]:
        """Scatter of the tokens on either side of both cuts: each variant is a sum of cells."""
        masks = [a & b for a in _sides(self.not_first) for b in _sides(self.not_largest)]
        return [(mask, Scatter.of(self.centred[mask])) for mask in masks if bool(mask.any())]

    def spread(
        self, keep: Bool[Tensor, " n"]
    ) -> tuple[Float64[Tensor, "m d"], Float64[Tensor, "k k"]]:
        """Deviations of the kept tokens from their mean, and their Gram matrix (k = min(m, d)).

        Raises:
            UndefinedError: Fewer than three tokens, or all in one state.
        """
        kept = self.centred[keep]
        if len(kept) < 3:
            raise UndefinedError(f"fewer than 3 tokens ({len(kept)})")
        kept = centre(kept)
        if not bool(kept.any()):
            raise UndefinedError("all tokens have the same state")
        if len(kept) < kept.shape[1]:
            return kept, kept @ kept.T
        return kept, reduce(operator.add, (s for mask, s in self._cells if bool(keep[mask][0]))).xx

    @cached_property
    def everything(self) -> tuple[Float64[Tensor, "n d"], Float64[Tensor, "k k"]]:
        """The spread of all tokens."""
        return self.spread(self.everyone)

    @cached_property
    def eigen(self) -> tuple[Float64[Tensor, " k"], Float64[Tensor, "k k"]]:
        """Eigenvalues of the Gram matrix of all tokens, ascending, and its eigenvectors."""
        values, vectors = torch.linalg.eigh(self.everything[1])
        if not bool(values[-1] > 0):
            raise UndefinedError("squares of the states underflow float64")
        return values.clamp(min=0), vectors

    @cached_property
    def along(self) -> Float64[Tensor, "n k"]:
        """Squared coordinates of all tokens along these eigenvectors."""
        (values, vectors), (centred, _) = self.eigen, self.everything
        n, d = centred.shape
        return (vectors * values.sqrt() if n < d else centred @ vectors).square_()


def _sides(mask: Bool[Tensor, " n"]) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
    return mask, ~mask


def principal_share(cloud: Cloud, keep: Bool[Tensor, " n"]) -> Estimate:
    """Largest eigenvalue of the covariance of the kept tokens over its trace."""
    centred, gram = cloud.everything if bool(keep.all()) else cloud.spread(keep)
    tokens = cloud.tokens.take(keep)
    n, d = centred.shape
    squares = centred.square().sum(1)
    trace = squares.sum()
    top, vector = largest(gram)
    along = vector.square() * top if n < d else (centred @ vector).square()
    value = float(top / trace)
    influence = (along - value * squares) / trace
    half = margin(*clustered_error(influence, tokens.sample))
    chance = (1 + math.sqrt(d / n)) ** 2 / d
    notes = [*cloud.notes]
    if float(along.max() / top) > 0.5:
        notes.append("one token makes more than half of the largest eigenvalue")
    if n < 2 * d and value < 2 * chance:
        notes.append(f"noise of as few tokens would score {chance:.2f}")
    return estimate(
        tokens,
        value,
        max(value - half, 0.0),
        min(value + half, 1.0),
        chance=chance,
        warnings=notes,
        replicates=Replicates.of(value, influence, tokens.sample, cloud.seed),
    )


def from_scatter(scatter: Scatter) -> float:
    """`anisotropy` from the second moment alone; NaN if there is no variance."""
    return float(largest(scatter.xx)[0] / scatter.xx.trace())


KIND = Kind("anisotropy", arity=1, prepare=Cloud)


@KIND.metric(
    "anisotropy",
    label="Anisotropy",
    presets=("paper", "honest"),
    headline=("paper", "honest"),
    without_massive=True,
)
def anisotropy(cloud: Cloud) -> Estimate:
    """Largest eigenvalue of the centred covariance over its trace, all tokens."""
    return principal_share(cloud, cloud.everyone)


@KIND.metric(
    "anisotropy_without_first",
    label="Anisotropy without position 0",
    presets=("honest",),
    without_massive="anisotropy",
)
def anisotropy_without_first(cloud: Cloud) -> Estimate:
    """`anisotropy` without the tokens at position 0, where massive activations gather."""
    return principal_share(cloud, cloud.not_first)


@KIND.metric(
    "anisotropy_trimmed",
    label="Anisotropy, trimmed",
    presets=("honest",),
    without_massive="anisotropy",
)
def anisotropy_trimmed(cloud: Cloud) -> Estimate:
    """`anisotropy` without the 1 % of tokens (at least one) with the largest norms."""
    return principal_share(cloud, cloud.not_largest)


@KIND.metric(
    "half_trace_tokens",
    label="Tokens that hold half the trace",
    unit="tokens",
    presets=("honest",),
    without_massive=True,
)
def half_trace_tokens(cloud: Cloud) -> Estimate:
    """Smallest number of tokens that hold half of the variance: few means massive activations."""
    held = cloud.centred.square().sum(1).sort(descending=True).values.cumsum(0)
    count = int((held < 0.5 * held[-1]).sum()) + 1
    return estimate(cloud.tokens, count, no_interval="")  # a count of these very tokens


@KIND.metric("massive_tokens", label="Massive tokens", unit="tokens", presets=("honest",))
def massive_tokens(cloud: Cloud) -> Estimate:
    """Tokens whose norm is over 8 times the median norm of their modality at this hook."""
    if len(cloud.tokens) < 3:
        raise UndefinedError(f"fewer than 3 tokens ({len(cloud.tokens)})")
    return estimate(cloud.tokens, int(massive(cloud.tokens).sum()), no_interval="")


@KIND.metric("mean_cosine", label="Mean cosine", presets=("honest",), without_massive=True)
def mean_cosine(cloud: Cloud) -> Estimate:
    """Mean cosine between two different tokens, not centred; zero states are left out."""
    norms = cloud.squares.sqrt()
    keep = norms > 0
    n = int(keep.sum())
    if n < 3:
        raise UndefinedError(f"fewer than 3 tokens with a state other than zero ({n})")
    units = cloud.x[keep] / norms[keep, None]
    total = units.sum(0)
    value = float((total.square().sum() - n) / (n * (n - 1)))
    influence = 2 / n * (units @ total / n - total.square().sum() / n**2)
    tokens = cloud.tokens.take(keep)
    half = margin(*clustered_error(influence, tokens.sample))
    return estimate(
        tokens,
        value,
        max(value - half, -1.0),
        min(value + half, 1.0),
        chance=0.0,
        replicates=Replicates.of(value, influence, tokens.sample, cloud.seed),
    )
