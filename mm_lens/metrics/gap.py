"""The gap between two modalities: how far apart their tokens lie at one hook.

- ``modality_gap``: distance of the centroids over the root mean square distance of a token from
  the centroid of its own modality. One: as far apart as a modality is wide.
- ``integration_distance``: squared Fréchet distance between Gaussians of the means and covariances,
  ``|m - m'|² + tr(C + C' - 2 (C C')^½)``, in units of the mean norm of the text tokens, without
  tokens whose norm is 3 standard deviations off. This is one layer's term of the Modality
  Integration Rate (Huang et al. 2024); :func:`integration_rate` makes the rate of all layers.

Differences to the paper's script: outlying tokens are left out instead of replaced by the median,
and covariances are in float64. Its estimate is biased upwards by few tokens (d of each modality
at least; without that, ``chance`` is most of the value).

``chance`` is what two modalities of one distribution would score: for the gap, from the sampling
error of the centroids, tokens taken for independent; for the distance, from that between two halves
of each modality, samples kept whole, scaled to the whole since the bias falls as 1/n.

Intervals: of the gap by its influence function; of the distance by leaving out 16 groups of
samples. Cost: two Gram matrices; two eigendecompositions per distance, 19 distances in all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch

from mm_lens.metrics.core import Estimate, UndefinedError, estimate, or_nan
from mm_lens.metrics.intervals import (
    GROUPS,
    MIN_SAMPLES,
    Replicates,
    clustered_error,
    jackknife_error,
    margin,
    sample_groups,
)
from mm_lens.metrics.moments import Scatter
from mm_lens.metrics.tokens import Tokens, concatenate


def modality_gap(visual: Scatter, text: Scatter) -> float:
    """Distance of the centroids over the root mean square spread within a modality."""
    spread = (visual.xx.trace() / visual.n + text.xx.trace() / text.n) / 2
    return float((visual.mean - text.mean).square().sum().div(spread).sqrt())


def frechet_distance(a: Scatter, b: Scatter) -> float:
    """Squared Fréchet (2-Wasserstein) distance of the Gaussians with these moments."""
    c, other = a.xx / (a.n - 1), b.xx / (b.n - 1)
    values, vectors = torch.linalg.eigh(c)
    root = vectors * values.clamp(min=0).sqrt()  # root rootᵀ = c: any root gives the same trace
    inner = torch.linalg.eigvalsh(root.T @ other @ root).clamp(min=0).sqrt().sum()
    between = (a.mean - b.mean).square().sum()
    return max(float(between + c.trace() + other.trace() - 2 * inner), 0.0)


def integration_rate(distances: Iterable[float]) -> float:
    """Modality Integration Rate: log10 of the sum of ``integration_distance`` over layers."""
    return math.log10(math.fsum(distances))


def gap_estimate(visual: Tokens, text: Tokens, seed: int = 0) -> Estimate:
    """:func:`modality_gap` with its interval; NaN with a reason where it is undefined."""
    return or_nan(concatenate(visual, text), _gap, visual, text, seed)


def integration_estimate(visual: Tokens, text: Tokens, seed: int = 0) -> Estimate:
    """``integration_distance`` of one hook with its interval; NaN where it is undefined."""
    return or_nan(concatenate(visual, text), _integration, visual, text, seed)


def _gap(visual: Tokens, text: Tokens, seed: int) -> Estimate:
    _require(visual, text)
    a, b = visual.x.double(), text.x.double()
    value = modality_gap(Scatter.of(a), Scatter.of(b))
    if not math.isfinite(value) or value == 0:
        raise UndefinedError("all tokens have the same state")
    step = a.mean(0) - b.mean(0)
    distance = step.square().sum().sqrt()
    spread = (distance / value).square()
    influence = []
    for x, sign in ((a, 1), (b, -1)):
        x = x - x.mean(0)
        squares = x.square().sum(1)
        moved = sign * (x @ step) / distance.square()
        widened = (squares - squares.mean()) / (4 * spread)
        influence.append(value * (moved - widened) / len(x))
    both = concatenate(visual, text)
    error = torch.cat(influence)
    half = margin(*clustered_error(error, both.sample))
    return estimate(
        both,
        value,
        max(value - half, 0.0),
        value + half,
        chance=math.sqrt(1 / len(a) + 1 / len(b)),
        replicates=Replicates.of(value, error, both.sample, seed),
    )


def _integration(visual: Tokens, text: Tokens, seed: int) -> Estimate:
    _require(visual, text)
    norm = float(text.x.double().square().sum(1).sqrt().mean())
    if not norm > 0:
        raise UndefinedError("all text tokens are zero")
    sides = [_without_outliers(side, norm) for side in (visual, text)]
    both = concatenate(*sides)
    group, count = sample_groups(both.sample, GROUPS, seed)
    groups = group.split([len(side) for side in sides])
    whole = [Scatter.of(side.x) for side in sides]
    value = frechet_distance(whole[0], whole[1])

    halves = []
    for side, own in zip(sides, groups, strict=True):
        first = own < count // 2
        if min(int(first.sum()), int((~first).sum())) > 2:
            parts = Scatter.of(side.x[first]), Scatter.of(side.x[~first])
            # A half has twice the bias of the whole, on both sides of the distance.
            halves.append(frechet_distance(*parts) / 4)
    refits = []
    for g in range(count if count >= MIN_SAMPLES else 0):
        left = [
            all_ - Scatter.of(side.x[own == g]) if bool((own == g).any()) else all_
            for all_, side, own in zip(whole, sides, groups, strict=True)
        ]
        refits.append(frechet_distance(left[0], left[1]))
    half = margin(*jackknife_error(refits))
    return estimate(
        both,
        value,
        max(value - half, 0.0),
        value + half,
        chance=math.fsum(halves) if len(halves) == 2 else math.nan,
        replicates=Replicates(tuple(refits)),
    )


def _without_outliers(tokens: Tokens, unit: float) -> Tokens:
    """In units of ``unit``, without the tokens whose norm is 3 standard deviations off."""
    x = tokens.x.double() / unit
    norms = x.square().sum(1).sqrt()
    keep = (norms - norms.mean()).abs() <= 3 * norms.std()
    return replace(tokens, x=x).take(keep)


def _require(*sides: Tokens) -> None:
    for side in sides:
        if len(side) < 3:
            raise UndefinedError(f"fewer than 3 tokens ({len(side)}) of one modality")
