r"""Intrinsic dimension by TwoNN: how many coordinates the tokens really use, locally.

Theory (Facco et al. 2017). If the density is constant up to the second neighbour, the ratio
`mu = r2 / r1` of the distances to the second and first neighbour follows a Pareto law whose
exponent is the dimension: `-log(1 - F(mu)) = D log mu`. Three estimators of `D` differ only in
how they use the sorted ratios:

- `dimension_mle`: maximum likelihood `(N - 1) / sum(log mu)`, every ratio.
- `dimension_fit90`: line through the origin over the smallest 90 % (scikit-dimension's default).
- `dimension_paper`: the same line over the *first fifth* of the kept ratios, duplicates included,
  as in `llm-microscope`; about twice the standard error of the others.

Farther neighbours than the nearest two: `gride`.

Limits. Repeated states are points at distance zero and wreck every variant (26.9 for a true 10 with
a fifth of copies): all but the paper's are computed on states that are distinct up to rounding
(`numerics.copies`). Near-copies that remain are reported; where they make more than half of what a
value is computed from, there is none. The dimension depends on the number of tokens: compare hooks
at equal `n`, and read `dimension_mle_half` and `_quarter` beside it; a value that moves with `n` is
a statement about a scale, not about a manifold. Above ~20 dimensions all variants underestimate.

The `chance` column is what a Gaussian cloud with the same covariance and as many tokens scores:
linear structure without a curved or clustered one. Real states lie far *below* it.

Intervals: the influence function of each estimator, summed within samples, plus the product of the
influences of each token and its neighbours, because they share distances. Without that term, as in
a bootstrap over samples, 95 % intervals cover 88 %.

Cost: one product of all pairs (`numerics.neighbours`) for all estimators, half and quarter of the
tokens and farther neighbours among them; 2,000 rows of one, and a decomposition of the covariance,
for the null.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from transformer_lens.utilities.statistics import derive_generator

from mm_lens.metrics.core import Kind
from mm_lens.metrics.intervals import Replicates, clustered_error, margin
from mm_lens.metrics.numerics.copies import first_of_copies
from mm_lens.metrics.numerics.estimates import Estimate, UndefinedError, estimate
from mm_lens.metrics.numerics.neighbours import (
    Neighbours,
    Search,
    nearest,
    nearest_of_first,
)
from mm_lens.metrics.numerics.ratios import Fit, fit_line, fit_mle, log_ratios
from mm_lens.metrics.tokens import Tokens, rounded, rounding, unique_rows

_NULL_ROWS = 2000  # enough for the null's value to 3 %, whatever the number of tokens around
_FAR_ROWS = 1000  # enough for 3 %: 16 neighbours average over more than the nearest two
FAR = 16
PARTS = {"dimension_mle_half": 2, "dimension_mle_quarter": 4}
"""Metrics of a part of the tokens, and the part."""
_WANTED = 100  # distinct states: below, the standard error of the estimate is over 10 %
_EPS = 1e-8  # the paper's threshold on r1 and on mu - 1


class Neighbourhood:
    """Distinct tokens with their neighbour distances, for every estimator of the family."""

    def __init__(self, tokens: Tokens, seed: int) -> None:
        self.tokens = tokens
        self.seed = seed
        self._parts: tuple[int, ...] = ()
        self._wants_far = False

    def expect(self, names: Sequence[str]) -> None:
        """Told which metrics will be asked for: one product then serves all of them."""
        self._parts = tuple(d for name, d in PARTS.items() if name in names)
        self._wants_far = any(name.startswith("dimension_gride") for name in names)

    @cached_property
    def unique(self) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"]]:
        """Where each state that differs by any bit first stands, and how many tokens share it."""
        first, counts = unique_rows(self.tokens.x)
        if len(first) < 3:
            raise UndefinedError(
                f"fewer than 3 distinct states ({len(first)} among {len(self.tokens)} tokens)"
            )
        return first, counts

    @cached_property
    def index(self) -> Int64[Tensor, " m"]:
        """Where each state that is distinct up to rounding first stands among the tokens."""
        first, _ = self.unique
        kept = first[first_of_copies(self.tokens.take(first), self.seed)]
        if len(kept) < 3:
            raise UndefinedError(
                f"fewer than 3 distinct states ({len(kept)} among {len(self.tokens)} tokens)"
            )
        return kept

    @cached_property
    def distinct(self) -> Tokens:
        """One token of every set of states that are equal up to rounding."""
        return self.tokens if len(self.index) == len(self.tokens) else self.tokens.take(self.index)

    @cached_property
    def scaled(self) -> Float64[Tensor, "n d"]:
        """All states, centred and divided by their mean norm (the paper's)."""
        x = self.tokens.x.double()
        x = x - x.mean(0)
        return x / self._unit

    @cached_property
    def _unit(self) -> Float64[Tensor, ""]:
        x = self.tokens.x.double()
        norm: Tensor = torch.linalg.vector_norm(x - x.mean(0), dim=1).mean()
        return norm

    @cached_property
    def points(self) -> Float64[Tensor, "m d"]:
        """Distinct states, in the same units."""
        return self.scaled if len(self.index) == len(self.scaled) else self.scaled[self.index]

    @cached_property
    def _order(self) -> Int64[Tensor, " m"]:
        """Distinct states by their keys: the first of them are smaller samples."""
        return self.distinct.keys(self.seed).argsort(stable=True)

    @property
    def _sorted(self) -> Float64[Tensor, "m d"]:
        """Distinct states in this order; that of a profile's sample as it is."""
        order = self._order
        sorted_ = torch.equal(order, torch.arange(len(order), device=order.device))
        return self.points if sorted_ else self.points[order]

    @cached_property
    def _searched(self) -> dict[str | int, Neighbours]:
        """All searches that are expected, in this order of the states."""
        n = len(self.index)
        searches: dict[str | int, Search] = {"all": Search(n, n)}
        searches |= {d: Search(n // d, n // d) for d in self._parts if n // d >= 3}
        if self._wants_far:
            searches["far"] = self._far_search
        if len(searches) == 1:
            return {"all": nearest(self._sorted)}
        found = nearest_of_first(self._sorted, [*searches.values()])
        return dict(zip(searches, found, strict=True))

    @property
    def _far_search(self) -> Search:
        n = len(self.index)
        return Search(min(_FAR_ROWS, n), n, min(FAR, n - 1))

    @cached_property
    def neighbours(self) -> Neighbours:
        """The two nearest distinct states of every distinct state."""
        order, found = self._order, self._searched["all"]
        distance, index = torch.empty_like(found.distance), torch.empty_like(found.index)
        distance[order], index[order] = found.distance, order[found.index]
        return Neighbours(distance, index)

    @cached_property
    def neighbours_of_unequal(self) -> Neighbours:
        """The same among states that differ by any bit, as the paper takes them."""
        first, _ = self.unique
        return self.neighbours if len(first) == len(self.index) else nearest(self.scaled[first])

    @cached_property
    def far(self) -> tuple[Int64[Tensor, " m"], Neighbours]:
        """Some distinct states, drawn by their keys, and their 16 nearest among all of them."""
        found = self._searched.get("far")
        if found is None:
            (found,) = nearest_of_first(self._sorted, [self._far_search])
        return self._order[: len(found.index)], Neighbours(found.distance, self._order[found.index])

    def part(self, divisor: int) -> Neighbourhood:
        """The same for one in `divisor` of the distinct tokens."""
        tokens = self.distinct.take(self._order[: len(self.index) // divisor])
        part = Neighbourhood(tokens, self.seed)
        if (found := self._searched.get(divisor)) is not None:
            # What is distinct in the whole is distinct in a part of it; lengths are in units of
            # the mean norm.
            own = torch.arange(len(tokens), device=tokens.x.device)
            known = {"unique": (own, torch.ones_like(own)), "index": own}
            distance = found.distance * (self._unit / part._unit)
            part.__dict__.update(known, neighbours=Neighbours(distance, found.index))
        return part

    @cached_property
    def null(self) -> Float64[Tensor, " m"]:
        """`log mu` of a Gaussian cloud with the covariance and the number of the points."""
        x = self.points - self.points.mean(0)
        n, d = x.shape
        generator = derive_generator(self.seed, "dimension_null")
        if x.is_cuda:  # drawn there: from the CPU it would take ten times all else
            generator = torch.Generator(x.device).manual_seed(generator.initial_seed())

        def draw(columns: int) -> Tensor:
            return torch.randn(n, columns, generator=generator, dtype=x.dtype, device=x.device)

        if n <= d:
            weights = draw(n)
            cloud = weights @ x / math.sqrt(n)
        else:
            # Along the principal axes: where these lie does not change a distance.
            values = torch.linalg.eigvalsh(x.T @ x / n)
            cloud = draw(d).mul_(values.clamp(min=0).sqrt())
        rows = torch.arange(min(n, _NULL_ROWS), device=x.device)
        return log_ratios(nearest(cloud, rows=rows))

    @cached_property
    def near_copies(self) -> Bool[Tensor, " m"]:
        """Which distinct states have another one within 1 % of common distances."""
        return near_copies(self.neighbours)

    @cached_property
    def warnings(self) -> list[str]:
        """Copies and near-copies, which no estimator of the family survives unharmed."""
        notes = []
        n, unequal, distinct = len(self.tokens), len(self.unique[0]), len(self.index)
        if unequal < n:
            notes.append(f"{n - unequal} of {n} tokens dropped as exact copies")
        if distinct < unequal:
            notes.append(f"{unequal - distinct} of {n} tokens dropped as copies up to rounding")
        if distinct < _WANTED:
            notes.append(f"only {distinct} distinct states ({_WANTED} wanted)")
        found, neighbour = self.neighbours, self.neighbours.index[:, 0]
        close = float(self.near_copies.double().mean())
        if close > 0.01:
            notes.append(f"{close:.0%} of tokens have a near-copy (within 1% of common distances)")
        error = 2 * rounding(self.tokens) / float(self._unit) ** 2
        size = float(found.r1.median()) ** 2
        notes += rounded(self.tokens, error, size, "the squared distances to the nearest", 0.01)
        for what in ("token id", "sample"):
            label = self.distinct.token_id if what == "token id" else self.distinct.sample
            share = float((label == label[neighbour]).double().mean())
            expected = float((label.unique(return_counts=True)[1] / len(label)).square().sum())
            if share > 0.5 and share > 2 * expected:
                notes.append(f"nearest neighbour has the same {what} for {share:.0%} of tokens")
        return notes


def near_copies(found: Neighbours, n1: int = 1) -> Bool[Tensor, " m"]:
    """Which rows have their neighbour `n1` within 1 % of common distances to neighbour `2 n1`."""
    return found.distance[:, n1 - 1] < 0.01 * found.distance[:, 2 * n1 - 1].quantile(0.9)


def scale_ratios(found: Neighbours, n1: int = 1) -> Float64[Tensor, " m"]:
    """`log_ratios`, refused where near-copies make more than half of them.

    Raises:
        UndefinedError: They do, or there are no ratios.
    """
    ratios, close = log_ratios(found, n1), near_copies(found, n1)
    if float(ratios[close].sum()) > float(ratios.sum()) / 2:
        raise UndefinedError(
            f"near-copies, {float(close.double().mean()):.0%} of the tokens, make most of the "
            "ratios of distances: no dimension at this scale"
        )
    return ratios


KIND = Kind("dimension", arity=1, prepare=Neighbourhood, equal_n=True)


def interval(
    fit: Fit, sample: Int64[Tensor, " n"], linked: Int64[Tensor, "n k"], seed: int
) -> tuple[tuple[float, float], Replicates]:
    """95 % interval on the logarithm of the dimension, and replicates of the dimension.

    Args:
        fit: The dimension and the influence of each token.
        sample: Of each token.
        linked: The tokens that each one shares a distance with; itself where there is none.
        seed: Of the groups of samples.
    """
    u = fit.influence / fit.value
    error, freedom = clustered_error(u, sample)
    # Each pair once; pairs within a sample are already in its sum.
    n = len(u)
    own = torch.arange(n, device=u.device)[:, None]
    pairs = (torch.minimum(own, linked) * n + torch.maximum(own, linked)).unique()
    one, other = pairs // n, pairs % n
    shared = float((2 * u[one] * u[other] * (sample[one] != sample[other])).sum())
    rest = math.sqrt(max(shared, 0.0))
    half = margin(math.hypot(error, rest), freedom)
    replicates = Replicates.of(fit.value, fit.influence, sample, seed, fit.value * rest)
    return (fit.value * math.exp(-half), fit.value * math.exp(half)), replicates


def _estimate(points: Neighbourhood, fit: Fit, chance: float = math.nan) -> Estimate:
    linked = points.neighbours.index[:, :1]
    ends, replicates = interval(fit, points.distinct.sample, linked, points.seed)
    return estimate(
        points.distinct,
        fit.value,
        *ends,
        chance=chance,
        warnings=points.warnings,
        replicates=replicates,
    )


@KIND.metric(
    "dimension_mle",
    label="Intrinsic dimension",
    unit="dimensions",
    presets=("honest",),
    headline=("honest",),
)
def dimension_mle(points: Neighbourhood) -> Estimate:
    """TwoNN by maximum likelihood on distinct states; chance: a Gaussian of equal covariance."""
    return _estimate(points, _mle(points), fit_mle(points.null).value)


def _mle(points: Neighbourhood) -> Fit:
    return fit_mle(scale_ratios(points.neighbours))


@KIND.metric(
    "dimension_fit90",
    label="Intrinsic dimension, line fit",
    unit="dimensions",
    presets=("honest",),
)
def dimension_fit90(points: Neighbourhood) -> Estimate:
    """TwoNN by a line over the smallest 90 % of the ratios, on distinct states (Facco 2017)."""
    # Fewer near-copies than a tenth are among the ratios left out.
    many = float(points.near_copies.double().mean()) > 0.1
    ratios = (scale_ratios if many else log_ratios)(points.neighbours)
    fit, null = (fit_line(each, int(0.9 * len(each))) for each in (ratios, points.null))
    return _estimate(points, fit, null.value)


@KIND.metric(
    "dimension_mle_half",
    label="Intrinsic dimension, half of the tokens",
    unit="dimensions",
    presets=("honest",),
)
def dimension_mle_half(points: Neighbourhood) -> Estimate:
    """`dimension_mle` on half of the distinct tokens: does the value depend on the scale?"""
    part = points.part(2)
    return _estimate(part, _mle(part))


@KIND.metric(
    "dimension_mle_quarter",
    label="Intrinsic dimension, quarter of the tokens",
    unit="dimensions",
    presets=("honest",),
)
def dimension_mle_quarter(points: Neighbourhood) -> Estimate:
    """`dimension_mle` on a quarter of the distinct tokens."""
    part = points.part(4)
    return _estimate(part, _mle(part))


@KIND.metric(
    "dimension_paper",
    label="Intrinsic dimension (paper)",
    unit="dimensions",
    presets=("paper",),
    headline=("paper",),
)
def dimension_paper(points: Neighbourhood) -> Estimate:
    """TwoNN as in MLLM-Microscope: all tokens, line over the first fifth of the kept ratios."""
    (first, counts), found = points.unique, points.neighbours_of_unequal
    # Equal states are neighbours at distance zero: the second neighbour of a single state is a copy
    # of the first where the first has one, and repeated states have no ratio at all.
    r2 = torch.where(counts[found.index[:, 0]] > 1, found.r1, found.r2)
    mu = r2 / found.r1
    kept = (counts == 1) & (found.r1 >= _EPS) & (mu > 1 + _EPS)
    n, n_kept = len(points.tokens), int(kept.sum())
    if n_kept < 5:
        raise UndefinedError(
            f"only {n_kept} of {n} tokens have two neighbours at positive distance"
        )
    ratios = mu.new_zeros(n)
    ratios[first[kept]] = mu[kept].log()
    neighbour = torch.arange(n, device=mu.device)[:, None]
    neighbour[first[kept], 0] = first[found.index[kept, 0]]

    fit = fit_line(ratios, n - n_kept + n_kept // 5)
    ends, replicates = interval(fit, points.tokens.sample, neighbour, points.seed)
    note = f"{n - n_kept} of {n} tokens without a ratio (copies)" if n_kept < n else ""
    return estimate(points.tokens, fit.value, *ends, warnings=[note], replicates=replicates)
