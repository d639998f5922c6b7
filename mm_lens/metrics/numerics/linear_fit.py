"""Every linear fit between two hooks, each made when first asked for.

One pass over the tokens makes the moments of 16 groups of samples. Their sum gives the fit to all;
the sum without one, a refit for the interval; sums of four, the folds that are held out together.

Held out: ridge regression, its strength chosen by cross-validation over samples inside the training
folds, "no map at all" among the choices. Generalised cross-validation would be cheaper, but takes
the tokens of a sample for independent: it scored noise shared within samples at -0.5.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import get_args

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from mm_lens.metrics.intervals import (
    GROUPS,
    MIN_SAMPLES,
    Replicates,
    effective_freedom,
    error_of_sums,
    jackknife_error,
    margin,
    sample_groups,
    shares_of,
)
from mm_lens.metrics.numerics.estimates import UndefinedError
from mm_lens.metrics.numerics.moments import Moments
from mm_lens.metrics.numerics.regression import (
    N_CHOICES,
    Fitted,
    InSample,
    Ridge,
    Target,
    fit_ridge,
    jacobi,
    least_squares,
    varies,
)
from mm_lens.metrics.tokens import Tokens, centre, rounded, rounding

FOLDS = 4
TARGETS: tuple[Target, ...] = get_args(Target)
_FLOOR = 1e-15  # of 1 - R²: what float64 can tell from a perfect fit
Score = Callable[[InSample, Target], float]
Scored = tuple[float, float, float, Replicates]  # value, interval, replicates


@dataclass(frozen=True)
class HeldOut:
    """Squared errors by the maps of the other folds, and by their means.

    Attributes:
        tokens: Of each token.
        trained: What each group adds to the sums over all tokens by being trained on.
    """

    tokens: Float64[Tensor, "2 n"]
    trained: Float64[Tensor, "2 groups"]


class LinearFit:
    """Every fit of one pair of hooks, made when first asked for."""

    def __init__(self, tokens: Tokens, tokens_next: Tokens, seed: int) -> None:
        self.tokens = tokens
        self.tokens_next = tokens_next
        self.seed = seed

    @cached_property
    def rows(self) -> tuple[Float64[Tensor, "n c"], Float64[Tensor, "n d"]]:
        """Centred X and Y; columns constant up to rounding are exactly zero."""
        if len(self.tokens) < 3:
            raise UndefinedError(f"fewer than 3 tokens ({len(self.tokens)})")
        x, y = centre(self.tokens.x.double()), centre(self.tokens_next.x.double())
        for name, rows in (("first", x), ("second", y)):
            if not bool(rows.any()):
                raise UndefinedError(f"all tokens have the same state at the {name} hook")
        return x, y

    def require(self, target: Target) -> None:
        """Refuse an update that is constant up to rounding, or does not exist."""
        if target == "update" and self.tokens.d != self.tokens_next.d:
            widths = f"{self.tokens.d} and {self.tokens_next.d}"
            raise UndefinedError(f"hooks of different width ({widths}) have no update")
        if target == "update" and not varies(self.moments, target):
            raise UndefinedError("the update is the same for all tokens")

    @property
    def _targets(self) -> tuple[Target, ...]:
        """What can be predicted."""
        return TARGETS if self.tokens.d == self.tokens_next.d else ("state",)

    @cached_property
    def moments(self) -> Moments:
        """Moments of all tokens."""
        return reduce(operator.add, self.parts)

    @cached_property
    def group(self) -> tuple[Int64[Tensor, " n"], int]:
        """Group of samples of each token, and how many: what intervals leave out one by one."""
        return sample_groups(self.tokens.sample, GROUPS, self.seed)

    @cached_property
    def sizes(self) -> Int64[Tensor, " groups"]:
        """Number of tokens of each group."""
        group, count = self.group
        return group.bincount(minlength=count)

    @property
    def freedom(self) -> float:
        """Degrees of freedom of what the groups say of an error."""
        return effective_freedom(self.sizes)

    @cached_property
    def parts(self) -> list[Moments]:
        """Moments of each group: one pass over the tokens, from which all else follows."""
        x, y = self.rows
        group, count = self.group
        return [Moments.of(x[group == g], y[group == g]) for g in range(count)]

    @cached_property
    def folds(self) -> list[tuple[Bool[Tensor, " n"], Moments]]:
        """Tokens and moments of groups that are held out together."""
        group, count = self.group
        n_folds = min(FOLDS, count)
        fold_of = torch.arange(count, device=group.device) * n_folds // count
        sums = [
            reduce(operator.add, (p for g, p in enumerate(self.parts) if int(fold_of[g]) == f))
            for f in range(n_folds)
        ]
        return [(fold_of[group] == f, total) for f, total in enumerate(sums)]

    @cached_property
    def scale(self) -> Float64[Tensor, " d"]:
        """One over the norm of each input column; zero for constant columns."""
        return jacobi(self.moments)

    @cached_property
    def in_sample(self) -> InSample:
        """The fit to all tokens."""
        fit = least_squares(self.moments, self.scale)
        if fit.rank == 0:
            raise UndefinedError("squares of the states underflow float64")
        return fit

    @cached_property
    def refits(self) -> list[InSample]:
        """The fits without each group of samples; none if samples are too few."""
        parts = self.parts if len(self.parts) >= MIN_SAMPLES else []
        return [least_squares(self.moments - part, self.scale) for part in parts]

    def require_enough(self) -> None:
        """Refuse so few tokens that a map fitted to others says nothing of them."""
        n, rank = len(self.tokens), self.in_sample.rank
        if n < 3 * rank:
            raise UndefinedError(f"{n} tokens are fewer than 3 per rank of the input ({rank})")

    def fold_map(self, fold: int, target: Target) -> Fitted:
        """The map that a fold is scored by: fitted to the others, its strength chosen in them."""
        _, part = self.folds[fold]
        return fit_ridge(self.moments - part, target, int(self._scores[target][fold].argmin()))

    @cached_property
    def _scores(self) -> dict[Target, Float64[Tensor, "folds choices"]]:
        """What each ridge strength is worth within the training folds of each fold."""
        count = len(self.folds)
        if count < 3:
            raise UndefinedError(
                f"held-out linearity needs 3 samples (to fit, to choose, to score), not {count}"
            )
        return self._choices([moments for _, moments in self.folds])

    @cached_property
    def _held_out(self) -> dict[Target, HeldOut]:
        """Errors of each target."""
        scores = self._scores
        x, y = self.rows
        held = {
            t: HeldOut(x.new_empty(2, len(x)), x.new_zeros(2, len(self.parts)))
            for t in self._targets
        }
        group, _ = self.group
        for f, (test, part) in enumerate(self.folds):
            train = self.moments - part
            inputs, states = x[test] - train.x, y[test] - train.y
            others = sorted({*range(len(self.parts))} - {*group[test].unique().tolist()})
            for target, errors in held.items():
                fitted = fit_ridge(train, target, int(scores[target][f].argmin()))
                outputs = states if target == "state" else states - inputs
                left = outputs - inputs @ fitted.map
                errors.tokens[:, test] = torch.stack(
                    [left.square().sum(1), outputs.square().sum(1)]
                )
                effects = fitted.effects(inputs, outputs, left)
                for g in others:
                    errors.trained[:, g] += effects(self.parts[g])
        return held

    def token_errors(self, target: Target) -> Float64[Tensor, "2 n"]:
        """Held-out squared error of each token: by the map, and by the mean, of the other folds."""
        self.require(target)
        return self._held_out[target].tokens

    def _choices(self, parts: list[Moments]) -> dict[Target, Float64[Tensor, "folds choices"]]:
        """Error of each ridge strength within the training folds of each test fold."""
        scores: dict[Target, Tensor] = {
            t: self.scale.new_zeros(len(parts), N_CHOICES) for t in self._targets
        }
        for f, g in itertools.combinations(range(len(parts)), 2):
            # One map without both folds: scored on either, it helps to choose for the other.
            ridge = Ridge(self.moments - parts[f] - parts[g])
            for chosen_for, scored_on in ((f, g), (g, f)):
                for target, errors in ridge.errors(parts[scored_on]).items():
                    scores[target][chosen_for] += errors
        return scores

    def held_out(self, target: Target) -> Scored:
        """Held-out R², its interval and replicates, whatever the number of tokens.

        A group moves the score where it is tested and where it is trained on. The second is half
        of the error at 30 tokens per dimension: refits in sample, which know nothing of it, gave
        intervals that contained the mean in 85 % of repetitions.
        """
        self.require(target)
        held = self._held_out[target]
        residual, total = held.tokens.sum(1)
        left = float(residual / total)
        group, count = self.group
        tested = held.tokens.new_zeros(2, count).index_add_(1, group, held.tokens)
        residuals, totals = tested + held.trained
        pulls = (residuals - left * totals) / (max(left, _FLOOR) * total)
        half = margin(*error_of_sums(pulls, self.sizes))
        replicates = Replicates()
        if count >= MIN_SAMPLES:
            logs = -pulls / (1 - shares_of(self.sizes))
            replicates = self._replicates(left, logs.tolist())
        return 1 - left, *_interval(left, half), replicates

    def holders(self, target: Target) -> int:
        """How many tokens make half of the held-out error.

        Where nearly all states coincide, a map fitted to other samples may miss a few by any
        multiple of their spread: then the score is about those.
        """
        errors = self._held_out[target].tokens[0].sort(descending=True).values
        return int((errors.cumsum(0) < errors.sum() / 2).sum()) + 1

    def scored_in_sample(self, target: Target, score: Score) -> Scored:
        """A score of the fit to all tokens, its interval and replicates."""
        self.require(target)
        value = score(self.in_sample, target)
        logs = self._refitted(target, score)
        error, _ = jackknife_error(logs)
        half = margin(error, self.freedom if logs else 0.0)
        return value, *_interval(1 - value, half), self._replicates(1 - value, logs)

    def _replicates(self, left: float, logs: list[float]) -> Replicates:
        """Replicates of R² that spread about the unexplained share as the refits do."""
        middle = math.fsum(logs) / max(len(logs), 1)
        values = tuple(1 - left * math.exp(log - middle) for log in logs)
        return Replicates(values, freedom=self.freedom if logs else 0.0)

    def _refitted(self, target: Target, score: Score) -> list[float]:
        """log(1 - score) of each refit."""
        return [math.log(max(1 - score(fit, target), _FLOOR)) for fit in self.refits]

    def warnings(self, target: Target) -> list[str]:
        """Too few tokens for the rank of the input; an update of rounded states."""
        notes = []
        ratio = len(self.tokens) / self.in_sample.rank
        if ratio < 10:
            notes.append(f"only {ratio:.1f} tokens per rank of the input (10 wanted)")
        dtype = self.tokens.x.dtype
        if target == "update" and dtype.itemsize < 4:
            notes.append(f"update taken from states rounded to {str(dtype).removeprefix('torch.')}")
        n, outputs = len(self.tokens), self._outputs(target)
        squares = outputs.square().sum(1)
        error = rounding(self.tokens_next) + (rounding(self.tokens) if target == "update" else 0)
        notes += rounded(self.tokens, error, float(squares.sum()) / n, "the variance")
        if float(squares.max()) > float(squares.sum()) / 2:
            notes.append("one token makes more than half of the variance")
        return notes

    def _outputs(self, target: Target) -> Float64[Tensor, "n d"]:
        """What is predicted, centred."""
        x, y = self.rows
        return y if target == "state" else y - x


def _interval(left: float, half: float) -> tuple[float, float]:
    """Interval of R² from the unexplained share and the half width of its logarithm."""
    return 1 - left * math.exp(half), 1 - left * math.exp(-half)
