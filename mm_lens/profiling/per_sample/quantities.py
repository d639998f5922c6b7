"""Numbers about the tokens of one sample at one layer, each a closed form of their states.

- `norm`: median length of a state.
- `update`: median over tokens of how far the block moved a state, over its length before.
- `mean_cosine`: mean cosine between two different tokens.
- `anisotropy`: share of the first principal direction in the variance about the mean.
- `participation_ratio`: how many directions the variance is spread over, (sum l)² / sum l².
- `dimension`: TwoNN by maximum likelihood (`mm_lens.metrics.dimension`), from `ENOUGH` tokens on.
- `massive_share`: share of the squared length in tokens over `KAPPA` times the median length.
- `other_cosine`: cosine between the mean of these tokens and that of the sample's other modality.

What cannot be had is NaN. At most `MOST` tokens of a sample are looked at, those with the smallest
keys, so that a large picture costs no more than a small one; counts of dimensions depend on the
number of tokens, which stands beside them.
"""

from __future__ import annotations

import math
from contextlib import suppress

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mm_lens.metrics.numerics.estimates import UndefinedError
from mm_lens.metrics.numerics.massive import KAPPA
from mm_lens.metrics.numerics.neighbours import nearest
from mm_lens.metrics.numerics.ratios import fit_mle, log_ratios
from mm_lens.metrics.spectrum import participation_ratio

MOST = 512
"""Most tokens of a sample, modality by modality."""
ENOUGH = 50
"""Fewest distinct tokens for a dimension by neighbours."""
QUANTITIES = (
    *("norm", "update", "mean_cosine", "anisotropy"),
    *("participation_ratio", "dimension", "massive_share", "other_cosine"),
)


def describe_tokens(
    x: Float[Tensor, "n d"],
    before: Float[Tensor, "n d"] | None = None,
    other: Float[Tensor, " d"] | None = None,
) -> dict[str, float]:
    """All `QUANTITIES` of these tokens.

    Args:
        x: their states.
        before: the same tokens one state earlier; None at the first.
        other: mean state of the other modality's tokens; None where there are none.
    """
    states = x.double()
    norms = torch.linalg.vector_norm(states, dim=1)
    found = dict.fromkeys(QUANTITIES, math.nan)
    if not len(states) or not bool(norms.isfinite().all()):
        return found
    typical, squares = norms.median(), norms.square()
    found["norm"] = float(typical)
    if before is not None:
        earlier = before.double()
        moved = torch.linalg.vector_norm(states - earlier, dim=1)
        found["update"] = float((moved / torch.linalg.vector_norm(earlier, dim=1)).median())
    if float(squares.sum()):
        massive = squares[norms > KAPPA * typical].sum()
        found["massive_share"] = float(massive / squares.sum())
    if other is not None:
        found["other_cosine"] = _cosine(states.mean(0), other.double())
    if len(states) > 1 and bool((norms > 0).all()):
        n = len(states)
        total = (states / norms[:, None]).sum(0).square().sum()
        found["mean_cosine"] = float((total - n) / (n * (n - 1)))
    if len(states) > 2:
        found |= _spread(states)
    return found


def _cosine(one: Float64[Tensor, " d"], other: Float64[Tensor, " d"]) -> float:
    lengths = float(torch.linalg.vector_norm(one) * torch.linalg.vector_norm(other))
    return float(one @ other) / lengths if lengths else math.nan


def _spread(states: Float64[Tensor, "n d"]) -> dict[str, float]:
    """What follows from distances: spectrum and neighbours."""
    centred = states - states.mean(0)
    n, d = centred.shape
    values = torch.linalg.eigvalsh(centred @ centred.T if n < d else centred.T @ centred)
    values = values.clamp(min=0)
    if not float(values[-1]):
        return {}
    found = {
        "anisotropy": float(values[-1] / values.sum()),
        "participation_ratio": float(participation_ratio(values)),
    }
    distinct = centred.unique(dim=0)
    if len(distinct) >= ENOUGH:
        scale = torch.linalg.vector_norm(distinct, dim=1).mean()
        with suppress(UndefinedError):
            found["dimension"] = fit_mle(log_ratios(nearest(distinct / scale))).value
    return found
