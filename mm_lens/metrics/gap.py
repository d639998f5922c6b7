"""The gap between two modalities: how far apart their tokens lie at one hook.

- `modality_gap`: distance of the centroids over the root mean square distance of a token from
  the centroid of its own modality. One: as far apart as a modality is wide.
- `integration_distance`: squared Fréchet distance between Gaussians of the means and covariances,
  `|m - m'|² + tr(C + C' - 2 (C C')^½)`, in units of the mean norm of the text tokens, without
  tokens whose norm is 3 standard deviations off. This is one layer's term of the Modality
  Integration Rate (Huang et al. 2024); `integration_rate` makes the rate of all layers.

Differences to the paper's script: outlying tokens are left out instead of replaced by the median,
and covariances are in float64. Its estimate is biased upwards by few tokens (d of each modality
at least; without that, `chance` is most of the value).

`chance` is what two modalities of one distribution would score: for the gap, from the sampling
error of the centroids, tokens taken for independent; for the distance, from that between two halves
of each modality, samples kept whole, scaled to the whole since the bias falls as 1/n.

In a profile both stand at modality "visual-text", from the preset "between"; the gap also without
massive tokens.

Intervals: of the gap by its influence function; of the distance by leaving out 16 groups of
samples. Cost: two Gram matrices; two eigendecompositions per distance, 19 distances in all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int64
from torch import Tensor

from mm_lens.errors import InputError
from mm_lens.metrics.core import Kind
from mm_lens.metrics.intervals import (
    GROUPS,
    MIN_SAMPLES,
    Replicates,
    clustered_error,
    jackknife_error,
    margin,
    sample_groups,
)
from mm_lens.metrics.numerics.estimates import Estimate, UndefinedError, estimate, or_nan
from mm_lens.metrics.numerics.moments import Scatter
from mm_lens.metrics.tokens import (
    Tokens,
    centre,
    concatenate,
    finite,
    not_finite,
    split_modalities,
)

_WANTED = 4  # tokens per dimension of each modality: below, the bias is most of the distance


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
    """Modality Integration Rate: log10 of the sum of `integration_distance` over layers.

    Minus infinity if all are zero.

    Raises:
        InputError: There is no distance, or one is negative or NaN.
    """
    distances = [*distances]
    if not distances or not all(distance >= 0 for distance in distances):
        raise InputError(f"A rate needs the distance of one layer or more, not {distances}.")
    total = math.fsum(distances)
    return math.log10(total) if total else -math.inf


def gap_estimate(visual: Tokens, text: Tokens, seed: int = 0) -> Estimate:
    """`modality_gap` with its interval; NaN with a reason where it is undefined."""
    return _compared(_gap, visual, text, seed)


def integration_estimate(visual: Tokens, text: Tokens, seed: int = 0) -> Estimate:
    """`integration_distance` of one hook with its interval; NaN where it is undefined."""
    return _compared(_integration, visual, text, seed)


def _compared(
    function: Callable[..., Estimate], visual: Tokens, text: Tokens, seed: int
) -> Estimate:
    """The estimate from the finite rows of either side."""
    ([visual], lost), ([text], more) = finite(visual), finite(text)
    both = concatenate(visual, text)
    note = not_finite(lost + more, lost + more + len(both))
    return or_nan(both, function, visual, text, seed).warn(note)


def _gap(visual: Tokens, text: Tokens, seed: int) -> Estimate:
    _require(visual, text)
    a, b = visual.x.double(), text.x.double()
    x, y = centre(a), centre(b)
    if not (bool(x.any()) or bool(y.any())):
        raise UndefinedError("all tokens have the same state within each modality")
    value = modality_gap(Scatter.of(a), Scatter.of(b))
    step = a.mean(0) - b.mean(0)
    squares = [side.square().sum(1) for side in (x, y)]
    variance = (squares[0].mean() + squares[1].mean()) / 2
    # How much each token moves the centroids apart, and how much it widens the spread.
    moved = torch.cat([x / len(x), -y / len(y)]) / variance.sqrt()
    widened = torch.cat([(of - of.mean()) / len(of) for of in squares]) / (4 * variance)
    both = concatenate(visual, text)
    replicates = Replicates()
    if value > 0:
        influence = moved @ (step / step.square().sum().sqrt()) - value * widened
        error, freedom = clustered_error(influence, both.sample)
        if not _few_samples(visual, text):
            replicates = Replicates.of(value, influence, both.sample, seed)
    else:  # any direction leads apart
        errors = [clustered_error(column, both.sample) for column in moved.T]
        error, freedom = math.hypot(*(each for each, _ in errors)), errors[0][1]
    half = math.nan if _few_samples(visual, text) else margin(error, freedom)
    # max would take the NaN of no interval for a zero if it came second.
    ends = max(value - half, 0.0), value + half
    chance = math.sqrt(1 / len(a) + 1 / len(b))
    return estimate(both, value, *ends, chance=chance, replicates=replicates)


def _integration(visual: Tokens, text: Tokens, seed: int) -> Estimate:
    _require(visual, text)
    norm = float(text.x.double().square().sum(1).sqrt().mean())
    if not norm > 0:
        raise UndefinedError("all text tokens are zero")
    sides = [_without_outliers(side, norm) for side in (visual, text)]
    both = concatenate(*sides)
    group, count = sample_groups(both.sample, GROUPS, seed)
    groups = group.split([len(side) for side in sides])
    value = frechet_distance(*(Scatter.of(side.x) for side in sides))

    halves = []
    for side, own in zip(sides, groups, strict=True):
        first = own < count // 2
        if min(int(first.sum()), int((~first).sum())) > 2:
            parts = Scatter.of(side.x[first]), Scatter.of(side.x[~first])
            # A half has twice the bias of the whole, on both sides of the distance.
            halves.append(frechet_distance(*parts) / 4)
    refits = _refits(sides, groups, count)
    half = margin(*jackknife_error(refits))
    few = min(len(side) for side in sides) / both.d
    notes = [f"only {few:.1f} tokens per dimension ({_WANTED} wanted): most of it may be bias"]
    return estimate(
        both,
        value,
        max(value - half, 0.0),
        value + half,
        warnings=notes * (few < _WANTED),
        chance=math.fsum(halves) if len(halves) == 2 else math.nan,
        replicates=Replicates(tuple(refits)),
    )


def _refits(
    sides: Sequence[Tokens], groups: Sequence[Int64[Tensor, " _"]], count: int
) -> list[float]:
    """The distance without each group of samples; none where a modality hangs on one of them."""
    stay = [[own != g for own in groups] for g in range(count)]
    if _few_samples(*sides) or min(int(keep.sum()) for keeps in stay for keep in keeps) < 2:
        return []
    whole = [Scatter.of(side.x) for side in sides]
    norms = sides[1].x.square().sum(1).sqrt()
    refits = []
    for keeps in stay:
        left = [
            all_ if bool(keep.all()) else all_ - Scatter.of(side.x[~keep])
            for all_, side, keep in zip(whole, sides, keeps, strict=True)
        ]
        unit = float(norms[keeps[1]].mean() / norms.mean())  # the text's norm is another, too
        refits.append(frechet_distance(*left) / unit**2)
    return refits


def _without_outliers(tokens: Tokens, unit: float) -> Tokens:
    """In units of `unit`, without the tokens whose norm is 3 standard deviations off."""
    x = tokens.x.double() / unit
    norms = x.square().sum(1).sqrt()
    rounding = 8 * torch.finfo(norms.dtype).eps * norms.max()  # where all norms are equal
    keep = (norms - norms.mean()).abs() <= 3 * norms.std() + rounding
    return replace(tokens, x=x).take(keep)


def _few_samples(*sides: Tokens) -> bool:
    """Whether a modality is in so few samples that those of the other would make the interval."""
    return any(len(side.sample.unique()) < MIN_SAMPLES for side in sides)


def _require(*sides: Tokens) -> None:
    for side in sides:
        if len(side) < 3:
            raise UndefinedError(f"fewer than 3 tokens ({len(side)}) of one modality")


def _apart(tokens: Tokens, seed: int) -> tuple[Tokens, Tokens, int]:
    return *split_modalities(tokens), seed


KIND = Kind("gap", arity=1, prepare=_apart, given="modalities")
DISTANCE = Kind("integration", arity=1, prepare=_apart, given="modalities")


@KIND.metric(
    "modality_gap",
    label="gap between the modalities",
    presets=("between",),
    headline=("between",),
    without_massive=True,
)
def gap_at_hook(sides: tuple[Tokens, Tokens, int]) -> Estimate:
    """Distance of the centroids over the root mean square spread within a modality."""
    return _gap(*sides)


@DISTANCE.metric(
    "integration_distance",
    label="Fréchet distance of the modalities",
    unit="squared text norms",
    presets=("between",),
    headline=("between",),
)
def distance_at_hook(sides: tuple[Tokens, Tokens, int]) -> Estimate:
    """Squared Fréchet distance in units of the text's mean norm: a layer's term of the Modality
    Integration Rate."""
    return _integration(*sides)
