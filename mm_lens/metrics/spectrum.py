"""Spectrum: over how many directions the variance of the tokens is spread.

Three counts from the eigenvalues `l_1 >= l_2 >= …` of the centred covariance, with shares
`p_k = l_k / sum(l)`:

- `participation_ratio` = (sum l)² / sum l²: directions, if all carried the same. Led by the
  largest eigenvalues.
- `effective_rank` = exp(-sum q_k log q_k) with `q_k` the shares of the *singular* values, the
  square roots (Roy & Vetterli 2007; RankMe, Garrido et al. 2023). RankMe does not centre; here the
  mean is taken out, as everywhere in this family. Led by the long tail.
- `dimensions_95`: the fewest directions that hold 95 % of the variance.

They count *linear* directions: a curve that winds through all of them is one-dimensional to
`dimension` and full here. None exceeds the number of tokens or of dimensions:
few tokens lower all three, and isotropic noise of n tokens has a participation ratio of only
`n d / (n + d)`, which is the `chance` column (a ceiling). A massive token lowers them to one.

Intervals: the influence of a token through the eigenvalues, `(v_k·x)² - l_k` each, summed within
samples. Cost: one eigendecomposition of the smaller side, and the tokens in its basis.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from mm_lens.metrics.anisotropy import KIND, Cloud
from mm_lens.metrics.intervals import Replicates, clustered_error, margin
from mm_lens.metrics.numerics.estimates import Estimate, estimate
from mm_lens.metrics.numerics.moments import Scatter


def participation_ratio(values: Float64[Tensor, " k"]) -> Float64[Tensor, ""]:
    """(sum l)² / sum l² of eigenvalues."""
    ratio: Tensor = values.sum().square() / values.square().sum()
    return ratio


def effective_rank(values: Float64[Tensor, " k"]) -> Float64[Tensor, ""]:
    """exp of the entropy of the singular values, the square roots of eigenvalues."""
    singular = values.clamp(min=0).sqrt()
    rank: Tensor = torch.special.entr(singular / singular.sum()).sum().exp()
    return rank


def dimensions_for(values: Float64[Tensor, " k"], share: float = 0.95) -> int:
    """The fewest eigenvalues, the largest first, that make up this share of their sum."""
    held = values.clamp(min=0).sort(descending=True).values.cumsum(0)
    return int((held < share * held[-1]).sum()) + 1


def from_scatter(scatter: Scatter) -> dict[str, float]:
    """The three counts from the second moment alone; NaN if there is no variance."""
    values = torch.linalg.eigvalsh(scatter.xx).clamp(min=0)
    varies = bool(values[-1] > 0)
    return {
        "participation_ratio": float(participation_ratio(values)),
        "effective_rank": float(effective_rank(values)),
        "dimensions_95": float(dimensions_for(values)) if varies else math.nan,
    }


_WANTED = 4  # tokens per dimension: below, the counts are mostly about the number of tokens


def _notes(cloud: Cloud) -> list[str]:
    """Few tokens, or one that makes the spectrum."""
    n, d = cloud.centred.shape
    notes = [*cloud.notes]
    if n < _WANTED * d:
        notes.append(f"only {n / d:.1f} tokens per dimension ({_WANTED} wanted)")
    values, _ = cloud.eigen
    if float(cloud.centred.square().sum(1).max()) ** 2 > float(values.square().sum()) / 2:
        notes.append("one token makes more than half of the squared eigenvalues")
    return notes


def _estimate(
    cloud: Cloud, value: float, slope: Float64[Tensor, " k"], chance: float = math.nan
) -> Estimate:
    """The estimate of a count, given its derivative by the eigenvalues."""
    values, _ = cloud.eigen
    n, d = cloud.centred.shape
    influence = cloud.along @ slope - (values @ slope) / n
    sample = cloud.tokens.sample
    half = margin(*clustered_error(influence, sample))
    return estimate(
        cloud.tokens,
        value,
        max(value - half, 1.0),
        min(value + half, float(d)),
        chance=chance,
        warnings=_notes(cloud),
        replicates=Replicates.of(value, influence, sample, cloud.seed),
    )


@KIND.metric(
    "participation_ratio",
    label="Participation ratio",
    unit="dimensions",
    presets=("honest",),
    without_massive=True,
)
def _participation_ratio(cloud: Cloud) -> Estimate:
    """Squared trace of the covariance over its squared Frobenius norm."""
    values, _ = cloud.eigen
    value = participation_ratio(values)
    slope = 2 * value * (1 / values.sum() - values / values.square().sum())
    n, d = cloud.centred.shape
    return _estimate(cloud, float(value), slope, chance=n * d / (n + d))


@KIND.metric(
    "effective_rank",
    label="Effective rank",
    unit="dimensions",
    presets=("honest",),
    without_massive=True,
)
def _effective_rank(cloud: Cloud) -> Estimate:
    """Exponential of the entropy of the singular values of the centred tokens."""
    values, _ = cloud.eigen
    value = effective_rank(values)
    singular = values.sqrt()
    shares = singular / singular.sum()
    # d log(value) / d s_k = -(log q_k + entropy) / sum(s), and ds = dl / 2s.
    slope = -value * (shares.log() + value.log()) / singular.sum() / (2 * singular)
    return _estimate(cloud, float(value), torch.where(values > 0, slope, 0.0))


@KIND.metric(
    "dimensions_95",
    label="Dimensions for 95 %",
    unit="dimensions",
    presets=("honest",),
    without_massive=True,
)
def _dimensions_95(cloud: Cloud) -> Estimate:
    """The fewest directions that hold 95 % of the variance."""
    values, _ = cloud.eigen
    count = dimensions_for(values)
    # A whole number hardly moves between samples: no interval contains its mean 95 times in 100.
    return estimate(cloud.tokens, count, warnings=_notes(cloud), no_interval="")
