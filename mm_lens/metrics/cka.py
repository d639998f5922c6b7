"""Centred kernel alignment: do two sets of states arrange the same things in the same way?

Linear CKA (Kornblith et al. 2019) compares the n × n matrices of inner products `K = X Xᵀ` and
`L = Y Yᵀ` of the same n rows: one if they agree up to rotation and scale, zero if unrelated. The
plain form is biased: unrelated states of many dimensions score near one at n <= d. Here all parts
of the quotient use the unbiased HSIC (Song et al. 2012, eq. 5), so that unrelated rows score zero
*on average* at any n, and a single value may be below it.

Which rows: layers × layers compares the same tokens at two hooks; modality × modality compares the
means of each sample's visual and text tokens (`paired_means`), since single tokens have no
partner in the other modality.

In a profile, `modality_cka` stands at modality "visual-text", from the preset "between"; its
`n_tokens` counts means. A mean of few tokens holds noise of its own, which lowers the value: below
`FEW` tokens a warning says so.

Limits. The correction takes rows for independent: tokens of one image are not, so for tokens the
floor is somewhat above zero, for sample means it is zero. A massive token or two decide the whole
value, as in every second moment. Cost: 2 n² d operations per state and n² per pair, or 2 n d² per
pair where n > 4 d; memory n² per state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from mm_lens.errors import InputError
from mm_lens.metrics.core import Kind
from mm_lens.metrics.intervals import Replicates, jackknife_error, left_out, margin
from mm_lens.metrics.numerics.estimates import Estimate, UndefinedError, estimate, or_nan
from mm_lens.metrics.tokens import Tokens, centre, finite, not_finite, split_modalities

FEW = 8
"""Tokens, below which a sample's mean is noisy."""


def cka_matrix(states: Sequence[Float[Tensor, "n _"]]) -> Float64[Tensor, "k k"]:
    """Debiased linear CKA of every pair of states of the same rows.

    Args:
        states: States at several hooks; the widths may differ, the rows are the same tokens.

    Returns:
        Symmetric, with ones on the diagonal; NaN where a state is the same for all rows.

    Raises:
        InputError: The numbers of rows differ, or are fewer than 4.
    """
    rows = {len(x) for x in states}
    if len(rows) != 1 or min(rows) < 4:
        raise InputError(
            f"CKA compares states of the same tokens, at least 4 of them; given are {sorted(rows)}."
        )
    kernels = [_Kernel(x) for x in states]
    result = torch.eye(len(kernels), dtype=torch.float64, device=states[0].device)
    norms = [_hsic(a, a) for a in kernels]
    for i, a in enumerate(kernels):
        for j, b in enumerate(kernels[:i]):
            result[i, j] = result[j, i] = _ratio(_hsic(a, b), norms[i], norms[j])
        result[i, i] = _ratio(norms[i], norms[i], norms[i])
    return result


def cka(x: Float[Tensor, "n c"], y: Float[Tensor, "n d"]) -> float:
    """Debiased linear CKA of two states of the same rows; NaN if one is the same for all.

    Raises:
        InputError: The numbers of rows differ, or are fewer than 4.
    """
    return float(cka_matrix([x, y])[0, 1])


def cka_estimate(a: Tokens, b: Tokens, seed: int = 0) -> Estimate:
    """`cka` with a 95 % interval: the value without each of 16 groups of samples.

    Raises:
        InputError: The two do not hold rows of the same samples in the same order.
    """
    if not torch.equal(a.sample, b.sample):
        raise InputError("CKA needs the same rows on both sides: see paired_means for modalities.")
    (a, b), dropped = finite(a, b)
    return or_nan(a, _estimate, a, b, seed).warn(not_finite(dropped, dropped + len(a)))


def _estimate(a: Tokens, b: Tokens, seed: int) -> Estimate:
    if len(a) < 4:
        raise UndefinedError(f"fewer than 4 tokens ({len(a)})")
    value = cka(a.x, b.x)
    if math.isnan(value):
        raise UndefinedError("all tokens have the same state")
    keeps = left_out(a.sample, seed)
    refits = [cka(a.x[keep], b.x[keep]) for keep in keeps if int(keep.sum()) > 3]
    half = margin(*jackknife_error(refits))
    ends = value - half, min(value + half, 1.0)
    return estimate(a, value, *ends, chance=0.0, replicates=Replicates(tuple(refits)))


def sample_means(tokens: Tokens) -> Tokens:
    """The mean state of each sample's tokens in float64, one row per sample, by ascending id."""
    ids, inverse, counts = tokens.sample.unique(return_inverse=True, return_counts=True)
    total = tokens.x.new_zeros(len(ids), tokens.d, dtype=torch.float64)
    total.index_add_(0, inverse, tokens.x.double())
    none = torch.zeros_like(ids)
    return Tokens(total / counts[:, None], ids, none, none)


def paired_means(a: Tokens, b: Tokens) -> tuple[Tokens, Tokens]:
    """Means of the samples that have tokens on both sides, in the same order."""
    first, second = sample_means(a), sample_means(b)
    return (
        first.take(torch.isin(first.sample, second.sample)),
        second.take(torch.isin(second.sample, first.sample)),
    )


class _Kernel:
    """Inner products of centred rows, in whichever form is smaller."""

    def __init__(self, x: Float[Tensor, "n d"]) -> None:
        self.x = centre(x.double())
        self.squares = self.x.square().sum(1)
        n, d = self.x.shape
        self.gram = self.x @ self.x.T if n <= 4 * d else None

    def inner(self, other: _Kernel) -> Float64[Tensor, ""]:
        """Sum of the products of all entries of both matrices of inner products."""
        if self.gram is not None and other.gram is not None:
            return (self.gram * other.gram).sum()
        return (self.x.T @ other.x).square().sum()


def _hsic(a: _Kernel, b: _Kernel) -> Float64[Tensor, ""]:
    """Unbiased HSIC, times n (n - 3): rows are centred, so that sums over them vanish."""
    n = len(a.x)
    shared = (a.squares * b.squares).sum()
    totals = a.squares.sum() * b.squares.sum()
    # Both matrices without their diagonals: the row sums of what is left are minus the diagonals.
    return a.inner(b) - shared + totals / ((n - 1) * (n - 2)) - 2 / (n - 2) * shared


def _ratio(ab: Tensor, aa: Tensor, bb: Tensor) -> Tensor:
    return ab / (aa * bb).sqrt() if bool((aa > 0) & (bb > 0)) else ab.new_tensor(math.nan)


@dataclass(frozen=True)
class _Means:
    """The mean of each sample's tokens on both sides, and of how many it is, in the middle."""

    sides: tuple[Tokens, Tokens]
    typical: float
    seed: int


def _means(tokens: Tokens, seed: int) -> _Means:
    whole = split_modalities(tokens)
    sides = paired_means(*whole)
    numbers = [_typical(side, means.sample) for side, means in zip(whole, sides, strict=True)]
    return _Means(sides, min(numbers), seed)


def _typical(tokens: Tokens, samples: Int64[Tensor, " s"]) -> float:
    """Median number of tokens of these samples; 0 if there are none."""
    _, counts = tokens.sample[torch.isin(tokens.sample, samples)].unique(return_counts=True)
    return float(counts.double().median()) if len(counts) else 0.0


KIND = Kind("cka", arity=1, prepare=_means, given="modalities")


@KIND.metric(
    "modality_cka",
    label="CKA between the modalities",
    presets=("between",),
    headline=("between",),
    without_massive=True,
)
def cka_at_hook(means: _Means) -> Estimate:
    """Debiased linear CKA of the means of each sample's visual and text tokens."""
    note = f"means of {means.typical:g} tokens of a sample hold noise, which lowers it"
    return _estimate(*means.sides, means.seed).warn(note * (means.typical < FEW))
