"""Exact distances to the nearest neighbours, at the price of one float32 matrix product.

`|x|² + |y|² - 2 x·y` turns all pairs into one product, but loses everything below `eps |x|²`: a
pair closer than 3e-4 of its norm comes out wrong, or at distance zero. So the product only
nominates. The k + 1 nearest of each row have their distances computed again from the differences in
float64, and the result is kept only if it is *certain*: no other row, at best as near as the next
in order, can be nearer, given the rounding bound of the product. Rows that cannot be certified
(tight clusters far from the mean) are searched again with a float64 product, and the rest by plain
differences. The result is that of the plain loop in float64 for every row.

The bound: with machine epsilon `eps` the product's squared distance errs by at most
`(d + 10) eps (|x| + |y|)²`. A row `y` with `|y| > |x| + r` is farther than `r` whatever its
computed distance, so that `|y| <= |x| + r` may be assumed: one outlier of enormous norm does not
spoil the certificate of the others.

Cost: 2 n² d operations in float32 and a selection that reads every distance once; memory 512 rows
of distances. Exploiting the symmetry was measured and is slower below d ≈ 1,000, since selection
along both axes costs what half of the product saves. Where float32 products are rounded to TF32 or
bfloat16 the float64 product is used from the start.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from mm_lens.metrics.numerics.products import keeps_float32

SPARE = 2
_BLOCK = 512
_STRIDE = 16
_SHORT = 1024


@dataclass(frozen=True)
class Neighbours:
    """The k nearest neighbours of each row, the nearest first.

    Attributes:
        distance: To each of them.
        index: Which rows they are.
    """

    distance: Float64[Tensor, "n k"]
    index: Int64[Tensor, "n k"]

    @property
    def r1(self) -> Float64[Tensor, " n"]:
        """Distance to the nearest other row."""
        return self.distance[:, 0]

    @property
    def r2(self) -> Float64[Tensor, " n"]:
        """Distance to the second nearest."""
        return self.distance[:, 1]


def nearest(
    x: Float64[Tensor, "n d"], k: int = 2, rows: Int64[Tensor, " m"] | None = None
) -> Neighbours:
    """The `k` nearest neighbours of every row of `x`, with exact float64 distances.

    Args:
        x: More than k rows; centred and scaled to a norm near one, so that float32 can hold it.
        k: How many neighbours.
        rows: Only of these rows, among all.
    """
    rows = torch.arange(len(x), device=x.device) if rows is None else rows
    distance = x.new_empty(len(rows), k)
    index = rows.new_empty(len(rows), k)
    left = torch.arange(len(rows), device=x.device)
    ladder = [torch.float32, torch.float64] if keeps_float32(x.device) else [torch.float64]
    for dtype in ladder:
        if len(left) == 0:
            break
        distance[left], index[left], certain = _by_product(x, rows[left], k, dtype)
        left = left[~certain]
    if len(left):
        distance[left], index[left] = _by_difference(x, rows[left], k)
    return Neighbours(distance, index)


def _by_product(
    x: Float64[Tensor, "n d"], rows: Int64[Tensor, " m"], k: int, dtype: torch.dtype
) -> tuple[Float64[Tensor, "m k"], Int64[Tensor, "m k"], Bool[Tensor, " m"]]:
    """Distances and indices of the nearest candidates, and whether no other row is nearer."""
    n, d = x.shape
    norms = torch.linalg.vector_norm(x, dim=1)
    # |y|² - 2 x·y as one product: |x|² does not change the order within the row of x.
    right = x.new_empty(n, d + 1, dtype=dtype)
    right[:, :d], right[:, d] = x, norms.square()
    # Rows in their order need no gathering.
    all_in_order = len(rows) == n and bool((rows == torch.arange(n, device=x.device)).all())
    own, left = (x, right) if all_in_order else (x[rows], right[rows])
    # The last one nominated is the bound for all that are not candidates.
    n_nominated = min(k + SPARE, n - 1)
    n_candidates = n_nominated if n_nominated == n - 1 else n_nominated - 1
    # Blocks write to the same memory: fresh pages would cost as much as a fifth of the product.
    scores = x.new_empty(min(_BLOCK, len(rows)), n, dtype=dtype)
    found = x.new_empty(len(scores) * n_candidates, d)
    distance, bound = x.new_empty(len(rows), k), x.new_empty(len(rows))
    index = rows.new_empty(len(rows), k)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        m, part = len(block), slice(start, start + len(block))
        factors = left[part] * -2
        factors[:, d] = 1
        torch.mm(factors, right.T, out=scores[:m])
        scores[:m].scatter_(1, block[:, None], torch.inf)
        values, nominated = _smallest(scores[:m], n_nominated)
        bound[part], candidates = values[:, -1], nominated[:, :n_candidates]
        flat = rearrange(candidates, "row candidate -> (row candidate)")
        torch.index_select(x, 0, flat, out=found[: m * n_candidates])
        near = rearrange(found[: m * n_candidates], "(row candidate) d -> row candidate d", row=m)
        differences = near.sub_(own[part, None])  # of memory that is there: no copy
        exact = torch.linalg.vector_norm(differences, dim=2)
        distance[part], best = exact.topk(k, largest=False)
        index[part] = candidates.gather(1, best)
    if n_nominated == n - 1:
        return distance, index, torch.ones_like(rows, dtype=torch.bool)
    rounding, farthest = torch.finfo(dtype), distance[:, -1]
    reach = 2 * norms[rows] + farthest
    error = (d + 10) * (rounding.eps * reach.square() + rounding.tiny)
    certain = farthest.square() <= bound + norms[rows].square() - error
    return distance, index, certain | (farthest == 0)


def _smallest(
    scores: Float[Tensor, "b n"], k: int
) -> tuple[Float[Tensor, "b k"], Int64[Tensor, "b k"]]:
    """The `k` smallest of each row, ascending.

    The k smallest lie in the k strided groups of columns with the smallest minima; finding those
    minima is a vectorised pass over the row, and only 16 k columns are sorted.
    """
    b, n = scores.shape
    groups = n // _STRIDE
    if n <= _SHORT or groups <= k:
        return scores.topk(k, largest=False)
    strided = rearrange(
        scores[:, : groups * _STRIDE], "row (member group) -> row member group", member=_STRIDE
    )
    _, group = _smallest(strided.amin(1), k)
    members = torch.arange(0, groups * _STRIDE, groups, device=scores.device)
    columns = rearrange(group, "row k -> row k 1") + members
    columns = rearrange(columns, "row k member -> row (k member)")
    rest = torch.arange(groups * _STRIDE, n, device=scores.device)
    columns = torch.cat([columns, repeat(rest, "column -> row column", row=b)], 1)
    values, order = scores.gather(1, columns).topk(k, largest=False)
    return values, columns.gather(1, order)


def _by_difference(
    x: Float64[Tensor, "n d"], rows: Int64[Tensor, " m"], k: int
) -> tuple[Float64[Tensor, "m k"], Int64[Tensor, "m k"]]:
    """Distances and indices of the nearest `k` from all differences: exact, and slow."""
    results = []
    for block in rows.split(_BLOCK):
        distances = torch.cdist(x[block], x, compute_mode="donot_use_mm_for_euclid_dist")
        distances.scatter_(1, block[:, None], torch.inf)
        results.append(distances.topk(k, largest=False))
    values, indices = zip(*results, strict=True)
    return torch.cat(values), torch.cat(indices)
