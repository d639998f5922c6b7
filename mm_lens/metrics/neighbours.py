"""Exact distances to the two nearest neighbours, at the price of one float32 matrix product.

``|x|² + |y|² - 2 x·y`` turns all pairs into one product, but loses everything below ``eps |x|²``: a
pair closer than 3e-4 of its norm comes out wrong, or at distance zero. So the product only
nominates. The :data:`CANDIDATES` nearest of each row have their distances computed again from the
differences in float64, and the result is kept only if it is *certain*: no row outside the
candidates can be nearer, given the rounding bound of the product. Rows that cannot be certified
(tight clusters far from the mean) are searched again with a float64 product, and the rest by plain
differences. The result is that of the plain loop in float64 for every row.

The bound: with machine epsilon ``eps`` the product's squared distance errs by at most
``(d + 10) eps (|x| + |y|)²``. A row ``y`` with ``|y| > |x| + r`` is farther than ``r`` whatever its
computed distance, so that ``|y| <= |x| + r`` may be assumed: one outlier of enormous norm does not
spoil the certificate of the others.

Cost: 2 n² d operations in float32 and a selection that reads every distance once; memory 256 rows
of distances. Exploiting the symmetry was measured and is slower below d ≈ 1,000, since selection
along both axes costs what half of the product saves. Where float32 products are rounded to TF32 or
bfloat16 the float64 product is used from the start.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

CANDIDATES = 4
_BLOCK = 256
_STRIDE = 16


@dataclass(frozen=True)
class Neighbours:
    """The two nearest neighbours of each row.

    Attributes:
        r1: Distance to the nearest other row.
        r2: Distance to the second nearest.
        index: Rows of the nearest and the second nearest.
    """

    r1: Float64[Tensor, " n"]
    r2: Float64[Tensor, " n"]
    index: Int64[Tensor, "n 2"]


def nearest(x: Float64[Tensor, "n d"], first: int | None = None) -> Neighbours:
    """The two nearest neighbours of every row of ``x``, with exact float64 distances.

    Args:
        x: At least three rows; centred and scaled to a norm near one, so that float32 can hold it.
        first: Only for so many rows from the start, among all rows.
    """
    rows = torch.arange(len(x), device=x.device)[:first]
    distances = x.new_empty(len(rows), 2)
    index = rows.new_empty(len(rows), 2)
    ladder = [torch.float32, torch.float64] if _keeps_float32(x.device) else [torch.float64]
    for dtype in ladder:
        if len(rows) == 0:
            break
        distances[rows], index[rows], certain = _by_product(x, rows, dtype)
        rows = rows[~certain]
    if len(rows):
        distances[rows], index[rows] = _by_difference(x, rows)
    return Neighbours(distances[:, 0], distances[:, 1], index)


def _keeps_float32(device: torch.device) -> bool:
    """Whether float32 products keep all 24 bits here (TF32 and bfloat16 modes drop the last)."""
    probe = torch.full((64, 64), 1 + 2.0**-20, device=device)
    return torch.equal(probe @ torch.eye(64, device=device), probe)


def _by_product(
    x: Float64[Tensor, "n d"], rows: Int64[Tensor, " m"], dtype: torch.dtype
) -> tuple[Float64[Tensor, "m 2"], Int64[Tensor, "m 2"], Bool[Tensor, " m"]]:
    """Distances and indices of the nearest two candidates, and whether no other row is nearer."""
    n, d = x.shape
    squares = x.square().sum(1)
    # |y|² - 2 x·y as one product: |x|² does not change the order within the row of x.
    right = torch.cat([x.to(dtype), squares[:, None].to(dtype)], 1)
    rounding = torch.finfo(dtype)
    results = []
    for block in rows.split(_BLOCK):
        left = right[block] * -2
        left[:, -1] = 1
        scores = left @ right.T
        scores.scatter_(1, block[:, None], torch.inf)
        bound, candidate = _smallest(scores, min(CANDIDATES, n - 1))
        differences = x[candidate].sub_(x[block, None])
        exact, best = torch.linalg.vector_norm(differences, dim=2).topk(2, largest=False)
        index, r2 = candidate.gather(1, best), exact[:, 1]

        reach = 2 * squares[block].sqrt() + r2
        error = (d + 10) * (rounding.eps * reach.square() + rounding.tiny)
        others = bound[:, -1].double() + squares[block] - error
        all_are_candidates = candidate.shape[1] == n - 1
        certain = (r2.square() <= others) | (r2 == 0) | all_are_candidates
        results.append((exact, index, certain))
    distances, indices, certainty = zip(*results, strict=True)
    return torch.cat(distances), torch.cat(indices), torch.cat(certainty)


def _smallest(
    scores: Float[Tensor, "b n"], k: int
) -> tuple[Float[Tensor, "b k"], Int64[Tensor, "b k"]]:
    """The ``k`` smallest of each row, ascending.

    The k smallest lie in the k strided groups of columns with the smallest minima; finding those
    minima is a vectorised pass over the row, and only 16 k columns are sorted.
    """
    b, n = scores.shape
    groups = n // _STRIDE
    if groups <= k:
        return scores.topk(k, largest=False)
    minima = scores[:, : groups * _STRIDE].view(b, _STRIDE, groups).amin(1)
    group = minima.topk(k, largest=False).indices
    members = torch.arange(0, groups * _STRIDE, groups, device=scores.device)
    columns = (group[:, :, None] + members).flatten(1)
    rest = torch.arange(groups * _STRIDE, n, device=scores.device).expand(b, -1)
    columns = torch.cat([columns, rest], 1)
    values, order = scores.gather(1, columns).topk(k, largest=False)
    return values, columns.gather(1, order)


def _by_difference(
    x: Float64[Tensor, "n d"], rows: Int64[Tensor, " m"]
) -> tuple[Float64[Tensor, "m 2"], Int64[Tensor, "m 2"]]:
    """Distances and indices of the nearest two from all differences: exact, and slow."""
    results = []
    for block in rows.split(_BLOCK):
        distances = torch.cdist(x[block], x, compute_mode="donot_use_mm_for_euclid_dist")
        distances.scatter_(1, block[:, None], torch.inf)
        results.append(distances.topk(2, largest=False))
    values, indices = zip(*results, strict=True)
    return torch.cat(values), torch.cat(indices)
