"""Anisotropy: how much of the variance of the tokens lies along one direction.

``anisotropy`` is the largest eigenvalue of the centred covariance over its trace (Razzhigaev et al.
2024). It reads as "all tokens point one way", but a handful of tokens with massive activations,
mostly at position 0, is enough to drive it to one (a real layer: 0.997 with position 0, 0.090
without). So it never stands alone: the same value ``_without_first`` and ``_trimmed`` of the 1 %
largest norms, and the number of tokens that hold half of the trace. ``mean_cosine`` is the older
definition, the mean cosine between two tokens *without* centring (Ethayarajh 2019).

The ``chance`` column is the largest eigenvalue share of isotropic noise with the same number of
tokens and dimensions, ``(1 + sqrt(d / n))² / d`` (Marchenko & Pastur 1967).

Intervals: the influence function ``((v·x)² - a |x|²) / trace``, summed within samples; trimming is
taken as given. Cost: one float64 covariance on the smaller side of the n × d matrix and its
eigenvectors, per variant.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from mm_lens.metrics.core import Estimate, Family, UndefinedError, estimate
from mm_lens.metrics.intervals import (
    Replicates,
    clustered_error,
    jackknife_error,
    left_out,
    margin,
)
from mm_lens.metrics.tokens import Tokens, centre


class Cloud:
    """The tokens in float64, and their principal direction."""

    def __init__(self, tokens: Tokens, seed: int) -> None:
        self.tokens = tokens
        self.seed = seed

    @cached_property
    def x(self) -> Float64[Tensor, "n d"]:
        """Raw states."""
        return self.tokens.x.double()

    @cached_property
    def everything(self) -> Estimate:
        """Anisotropy of all tokens."""
        return _principal_share(self.tokens, self.x, self.seed)

    def anisotropy(self, keep: Bool[Tensor, " n"]) -> Estimate:
        """Anisotropy of the kept tokens; ``n_tokens`` says how many those are."""
        if bool(keep.all()):
            return self.everything
        return _principal_share(self.tokens.take(keep), self.x[keep], self.seed)


def _deviations(x: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
    if len(x) < 3:
        raise UndefinedError(f"fewer than 3 tokens ({len(x)})")
    centred = centre(x)
    if not bool(centred.any()):
        raise UndefinedError("all tokens have the same state")
    return centred


def _principal_share(tokens: Tokens, x: Float64[Tensor, "n d"], seed: int) -> Estimate:
    """Largest eigenvalue of the covariance over its trace."""
    centred = _deviations(x)
    n, d = centred.shape
    squares = centred.square().sum(1)
    trace = squares.sum()
    if n < d:
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        along = vectors[:, -1].square() * values[-1]
    else:
        values, vectors = torch.linalg.eigh(centred.T @ centred)
        along = (centred @ vectors[:, -1]).square()
    value = float(values[-1] / trace)
    influence = (along - value * squares) / trace
    half = margin(*clustered_error(influence, tokens.sample))
    return estimate(
        tokens,
        value,
        max(value - half, 0.0),
        min(value + half, 1.0),
        chance=(1 + math.sqrt(d / n)) ** 2 / d,
        replicates=Replicates.of(value, influence, tokens.sample, seed),
    )


FAMILY = Family("anisotropy", arity=1, prepare=Cloud)


@FAMILY.metric("anisotropy", label="Anisotropy", presets=("paper", "honest"), headline=("paper",))
def anisotropy(cloud: Cloud) -> Estimate:
    """Largest eigenvalue of the centred covariance over its trace, all tokens."""
    return cloud.everything


@FAMILY.metric(
    "anisotropy_without_first", label="Anisotropy without position 0", presets=("honest",)
)
def anisotropy_without_first(cloud: Cloud) -> Estimate:
    """``anisotropy`` without the tokens at position 0, where massive activations gather."""
    return cloud.anisotropy(cloud.tokens.position != 0)


@FAMILY.metric(
    "anisotropy_trimmed",
    label="Anisotropy, trimmed",
    presets=("honest",),
    headline=("honest",),
)
def anisotropy_trimmed(cloud: Cloud) -> Estimate:
    """``anisotropy`` without the 1 % of tokens (at least one) with the largest norms."""
    norms = cloud.x.square().sum(1)
    keep = torch.ones(len(norms), dtype=torch.bool, device=norms.device)
    keep[norms.topk(math.ceil(0.01 * len(norms))).indices] = False
    return cloud.anisotropy(keep)


@FAMILY.metric(
    "half_trace_tokens",
    label="Tokens that hold half the trace",
    unit="tokens",
    presets=("honest",),
)
def half_trace_tokens(cloud: Cloud) -> Estimate:
    """Smallest number of tokens that hold half of the variance: few means massive activations."""
    squares = _deviations(cloud.x).square().sum(1)
    # The share, not the number, is what survives leaving tokens out.
    refits = [_half_share(squares[keep]) for keep in left_out(cloud.tokens.sample, cloud.seed)]
    n, value = len(squares), _half_share(squares)
    half = margin(*jackknife_error(refits))
    low, high = max((value - half) * n, 1.0), min((value + half) * n, float(n))
    replicates = Replicates(tuple(refit * n for refit in refits))
    return estimate(cloud.tokens, value * n, low, high, replicates=replicates)


def _half_share(squares: Float64[Tensor, " n"]) -> float:
    held = squares.sort(descending=True).values.cumsum(0)
    return (int((held < 0.5 * held[-1]).sum()) + 1) / len(squares)


@FAMILY.metric("mean_cosine", label="Mean cosine", presets=("honest",))
def mean_cosine(cloud: Cloud) -> Estimate:
    """Mean cosine between two different tokens, not centred; zero states are left out."""
    norms = cloud.x.square().sum(1).sqrt()
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
