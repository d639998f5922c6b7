"""95 % intervals: the sample (image, document) is the unit, never the token.

Tokens of one image are correlated, and a resampled point sits at distance zero from itself, so
neither tokens nor points are ever drawn again. Two routes, both deterministic:

- `clustered_error`: the statistic has an influence function; its values are summed within
  each sample, and the samples are independent. A sample with the share w of the tokens pulls the
  statistic towards itself; its sum is divided by 1 - w, as a jackknife over samples would have it
  (CR3, MacKinnon, Nielsen & Webb 2023). Costs one pass.
- `jackknife_error`: the statistic is refitted without each of `GROUPS` groups of
  samples. Costs that many refits; needed where the fit adapts to the data, because holding the fit
  fixed gives intervals up to two times too small.

`Replicates` are the same error in a form that can be combined: what the value would be
without each of the groups. Groups follow from the ids of the samples alone, so that any function of
several values (a difference between two models, a trend over layers) has its interval from the
replicates of the function, with whatever correlation there is between the values.

An interval is about the choice of samples at this number of tokens. It does not contain the bias of
few tokens: where an estimator is biased, as most counts are, it misses the value of infinitely many
tokens far more often than one time in 20. The tables of bias are in docs/metrics.

Few and unequal samples: Student's t with as many degrees of freedom as samples of one size would
have that estimate a variance as well, `(sum n)² / sum n² - 1` (Satterthwaite; the tokens of a
sample hang together, but not wholly). Chosen by measurement: docs/metrics/coverage.md.

Limits: fewer than `MIN_SAMPLES` samples give no interval (NaN).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from scipy import special
from torch import Tensor

from mm_lens._storage.hashing import sampling_key

GROUPS = 16
MIN_SAMPLES = 4


def sample_groups(
    sample: Int64[Tensor, " n"], n_groups: int, seed: int = 0
) -> tuple[Int64[Tensor, " n"], int]:
    """Group of each token: whole samples, cut into equal parts in the order of their hash.

    A sample more or less moves only those beside a boundary: two models that were shown the same
    samples have the same groups, or nearly so where the few tokens drawn of a sample may be none.

    Returns:
        The group of each token, and the number of groups (fewer than asked if samples are fewer).
    """
    ids, inverse = sample.unique(return_inverse=True)
    n_groups = max(1, min(n_groups, len(ids)))
    order = sampling_key(ids, torch.zeros_like(ids), seed).argsort(stable=True)
    part = torch.empty_like(order)
    part[order] = torch.arange(len(ids), device=ids.device) * n_groups // max(len(ids), 1)
    return part[inverse], n_groups


def left_out(sample: Int64[Tensor, " n"], seed: int = 0) -> list[Bool[Tensor, " n"]]:
    """Masks of the tokens that stay when each group is left out; none if samples are too few."""
    group, count = sample_groups(sample, GROUPS, seed)
    return [group != g for g in range(count)] if count >= MIN_SAMPLES else []


def clustered_error(
    influence: Float64[Tensor, " n"], sample: Int64[Tensor, " n"]
) -> tuple[float, float]:
    """Standard error from influence values that sum to the statistic's error, and its freedom."""
    _, inverse, sizes = sample.unique(return_inverse=True, return_counts=True)
    sums = influence.new_zeros(len(sizes)).index_add_(0, inverse, influence)
    return error_of_sums(sums, sizes)


def error_of_sums(sums: Float64[Tensor, " s"], sizes: Int64[Tensor, " s"]) -> tuple[float, float]:
    """The same from the sum over each sample, or group of samples, and its number of tokens."""
    count = len(sums)
    if count < MIN_SAMPLES:
        return math.nan, 0.0
    sums = sums / (1 - shares_of(sizes))
    spread = float((sums - sums.mean()).square().sum())
    return math.sqrt(spread * (count - 1) / count), effective_freedom(sizes)


def effective_freedom(sizes: Int64[Tensor, " s"]) -> float:
    """Degrees of freedom of a variance from samples with so many tokens; at least one."""
    return max(1 / float(shares_of(sizes).square().sum()) - 1, 1.0)


def shares_of(sizes: Int64[Tensor, " s"]) -> Float64[Tensor, " s"]:
    """Each number of tokens as a share of all."""
    return sizes.double() / sizes.sum()


def jackknife_error(refits: Sequence[float]) -> tuple[float, float]:
    """Standard error from the values for each of `left_out`, and its degrees of freedom."""
    count = len(refits)
    if not count:
        return math.nan, 0.0
    mean = math.fsum(refits) / count
    spread = math.fsum((value - mean) ** 2 for value in refits)
    return math.sqrt(spread * (count - 1) / count), float(count - 1)


@dataclass(frozen=True)
class Replicates:
    """What a value would be without each group of samples (delete-a-group jackknife).

    Attributes:
        values: One per group, in the order of `sample_groups`; none if samples are too few.
        rest: Standard error that the groups do not show, since it lies between samples.
        freedom: Degrees of freedom of the spread of the values.
    """

    values: tuple[float, ...] = ()
    rest: float = 0.0
    freedom: float = 0.0

    @property
    def hang_on_one(self) -> bool:
        """Whether one group makes half of the variance; of few groups one always may."""
        mean = math.fsum(self.values) / max(len(self.values), 1)
        parts = [(value - mean) ** 2 for value in self.values]
        return len(parts) == GROUPS and max(parts) > math.fsum(parts) / 2

    @staticmethod
    def of(
        value: float,
        influence: Float64[Tensor, " n"],
        sample: Int64[Tensor, " n"],
        seed: int = 0,
        rest: float = 0.0,
    ) -> Replicates:
        """To first order, from influence values that sum to the error of the value."""
        group, count = sample_groups(sample, GROUPS, seed)
        if count < MIN_SAMPLES:
            return Replicates()
        sums = influence.new_zeros(count).index_add_(0, group, influence)
        sizes = group.bincount(minlength=count)
        pulls = sums / (1 - shares_of(sizes))
        values = tuple((value - (pulls - pulls.mean())).tolist())
        return Replicates(values, rest, effective_freedom(sizes))


def margin(error: float, freedom: float) -> float:
    """Half width of the 95 % interval: Student's t quantile times the standard error."""
    return student_quantile(freedom) * error if freedom else math.nan


def student_quantile(freedom: float, share: float = 0.975) -> float:
    """Quantile of Student's t."""
    return float(special.stdtrit(freedom, share))
