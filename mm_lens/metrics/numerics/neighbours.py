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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from mm_lens.metrics.numerics.products import keeps_float32

Rows: TypeAlias = "slice | Int64[Tensor, ' m']"
"""Some rows: those from one to another, or by their numbers."""

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
    ladder = [torch.float32, torch.float64] if keeps_float32(x.device) else [torch.float64]
    return _search(x, k, rows, ladder)


def _search(
    x: Float64[Tensor, "n d"], k: int, rows: Int64[Tensor, " m"], ladder: Sequence[torch.dtype]
) -> Neighbours:
    """By products of these types, each for what the one before leaves uncertain."""
    distance = x.new_empty(len(rows), k)
    index = rows.new_empty(len(rows), k)
    left = torch.arange(len(rows), device=x.device)
    for dtype in ladder:
        if len(left) == 0:
            break
        distance[left], index[left], certain = _by_product(x, rows[left], k, dtype)
        left = left[~certain]
    if len(left):
        distance[left], index[left] = _by_difference(x, rows[left], k)
    return Neighbours(distance, index)


@dataclass(frozen=True)
class Search:
    """The `k` nearest of each of the first `rows` rows, among the first `among`."""

    rows: int
    among: int
    k: int = 2


def nearest_of_first(x: Float64[Tensor, "n d"], searches: Sequence[Search]) -> list[Neighbours]:
    """Several searches among the first rows of `x`, from one product of all pairs.

    Each gives what `nearest` gives of the rows that it is about.
    """
    if not keeps_float32(x.device):
        return [_one(x, search) for search in searches]
    frame = _Frame.of(x, torch.float32)
    last = max(search.rows for search in searches)
    width = max(search.among for search in searches)
    scores = x.new_empty(min(_BLOCK, last), width, dtype=torch.float32)
    found = [_Found.empty(x, search) for search in searches]
    for start in range(0, last, _BLOCK):
        open_ = [each for each in found if each.search.rows > start]
        end = min(start + _BLOCK, last)
        frame.score(slice(start, end), scores, max(each.search.among for each in open_))
        for each in open_:
            rows = slice(start, min(end, each.search.rows))
            each.take(rows, frame, rows, scores)
    return [each.finished(x, frame) for each in found]


def _one(x: Float64[Tensor, "n d"], search: Search) -> Neighbours:
    rows = torch.arange(search.rows, device=x.device)
    return nearest(x[: search.among], search.k, rows)


def _by_product(
    x: Float64[Tensor, "n d"], rows: Int64[Tensor, " m"], k: int, dtype: torch.dtype
) -> tuple[Float64[Tensor, "m k"], Int64[Tensor, "m k"], Bool[Tensor, " m"]]:
    """Distances and indices of the nearest candidates, and whether no other row is nearer."""
    frame, found = _Frame.of(x, dtype), _Found.empty(x, Search(len(rows), len(x), k))
    # Blocks write to the same memory: fresh pages would cost as much as a fifth of the product.
    scores = x.new_empty(min(_BLOCK, len(rows)), len(x), dtype=dtype)
    # Rows in their order need no gathering.
    in_order = len(rows) == len(x) and bool((rows == torch.arange(len(x), device=x.device)).all())
    for start in range(0, len(rows), _BLOCK):
        at = slice(start, min(start + _BLOCK, len(rows)))
        block = at if in_order else rows[at]
        frame.score(block, scores, len(x))
        found.take(at, frame, block, scores)
    return found.distance, found.index, found.certain(frame, rows)


@dataclass(frozen=True)
class _Frame:
    """What all products of some rows have in common.

    `|y|² - 2 x·y` as one product: |x|² does not change the order within the row of x.
    """

    x: Float64[Tensor, "n d"]
    norms: Float64[Tensor, " n"]
    right: Float[Tensor, "n d1"]

    @staticmethod
    def of(x: Float64[Tensor, "n d"], dtype: torch.dtype) -> _Frame:
        norms = torch.linalg.vector_norm(x, dim=1)
        right = x.new_empty(len(x), x.shape[1] + 1, dtype=dtype)
        right[:, :-1], right[:, -1] = x, norms.square()
        return _Frame(x, norms, right)

    def score(self, rows: Rows, out: Float[Tensor, "b n"], among: int) -> None:
        """Scores of these rows among the first so many; their own are infinite."""
        factors = self.right[rows] * -2
        factors[:, -1] = 1
        m = len(factors)
        torch.mm(factors, self.right[:among].T, out=out[:m, :among])
        if isinstance(rows, slice):
            out[:m, rows.start : min(rows.stop, among)].fill_diagonal_(torch.inf)
        else:
            out[:m].scatter_(1, rearrange(rows, "row -> row 1"), torch.inf)


@dataclass
class _Found:
    """What one search has found so far.

    The last row that is nominated is the bound for all that are not candidates.
    """

    search: Search
    distance: Float64[Tensor, "m k"]
    index: Int64[Tensor, "m k"]
    bound: Float64[Tensor, " m"]
    buffer: Float64[Tensor, "c d"]

    @staticmethod
    def empty(x: Float64[Tensor, "n d"], search: Search) -> _Found:
        m, k = search.rows, search.k
        index = torch.empty(m, k, dtype=torch.int64, device=x.device)
        found = _Found(search, x.new_empty(m, k), index, x.new_empty(m), x.new_empty(0, 0))
        found.buffer = x.new_empty(min(_BLOCK, m) * found.n_candidates, x.shape[1])
        return found

    @property
    def n_nominated(self) -> int:
        """How many rows are nominated for each."""
        return min(self.search.k + SPARE, self.search.among - 1)

    @property
    def n_candidates(self) -> int:
        """Of how many of them the distance is computed again."""
        n = self.n_nominated
        return n if n == self.search.among - 1 else n - 1

    def take(self, at: slice, frame: _Frame, rows: Rows, scores: Float[Tensor, "b n"]) -> None:
        """The nearest candidates of some rows, by their scores."""
        own = frame.x[rows]
        m, n = len(own), self.n_candidates
        values, nominated = _smallest(scores[:m, : self.search.among], self.n_nominated)
        self.bound[at], candidates = values[:, -1], nominated[:, :n]
        flat = rearrange(candidates, "row candidate -> (row candidate)")
        torch.index_select(frame.x, 0, flat, out=self.buffer[: m * n])
        near = rearrange(self.buffer[: m * n], "(row candidate) d -> row candidate d", row=m)
        differences = near.sub_(own[:, None])  # of memory that is there: no copy
        exact = torch.linalg.vector_norm(differences, dim=2)
        self.distance[at], best = exact.topk(self.search.k, largest=False)
        self.index[at] = candidates.gather(1, best)

    def certain(self, frame: _Frame, rows: Int64[Tensor, " m"]) -> Bool[Tensor, " m"]:
        """Of which rows no other row can be nearer."""
        if self.n_nominated == self.search.among - 1:
            return torch.ones_like(rows, dtype=torch.bool)
        rounding, farthest = torch.finfo(frame.right.dtype), self.distance[:, -1]
        reach = 2 * frame.norms[rows] + farthest
        error = (frame.x.shape[1] + 10) * (rounding.eps * reach.square() + rounding.tiny)
        certain = farthest.square() <= self.bound + frame.norms[rows].square() - error
        return certain | (farthest == 0)

    def finished(self, x: Float64[Tensor, "n d"], frame: _Frame) -> Neighbours:
        """The neighbours; of rows that are not certain, searched again."""
        rows = torch.arange(self.search.rows, device=x.device)
        left = (~self.certain(frame, rows)).nonzero().squeeze(1)
        if len(left):
            again = _search(x[: self.search.among], self.search.k, left, [torch.float64])
            self.distance[left], self.index[left] = again.distance, again.index
        return Neighbours(self.distance, self.index)


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
