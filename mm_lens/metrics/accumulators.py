"""Metrics over a stream: update with batches, merge shards, compute at any time.

Two kinds, both independent of the order and the size of batches and of the number of shards:

- *exact* ones add up second moments (`numerics.moments`): every token counts, memory
  d² per hook (use them up to d ≈ 2,000), values equal to 1e-13, no intervals;
- `Sampled` keeps the k tokens with the smallest keys and computes anything from them,
  intervals included: memory k·d per hook, results identical bit for bit.

```python
shards = [LinearityMoments(), LinearityMoments()]
for shard, (x, y) in zip(shards, batches):
    shard.update(x, y)                         # states at two consecutive hooks, [n, d]
shards[0].merge(shards[1])
shards[0].compute()["linearity_paper"]
```

An accumulator is its `state` (None before the first update), a plain value that can be saved,
sent and added, and the number of rows it `dropped` because they were not finite. A shard without
any token merges as nothing.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from mm_lens.errors import InputError, MMLensWarning
from mm_lens.metrics import anisotropy, gap, linearity, spectrum
from mm_lens.metrics.numerics.moments import Moments, Scatter
from mm_lens.metrics.numerics.regression import jacobi, least_squares
from mm_lens.metrics.tokens import Tokens, concatenate, finite, finite_rows, not_finite

_FAST_PIVOT = 3e-6  # above it, the split float32 mode was within 1e-6 on every input tried
S = TypeVar("S")
R = TypeVar("R")


class Accumulator(ABC, Generic[S, R]):
    """A state that grows by addition, and a function of it."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.state: S | None = None
        self.dropped = 0

    @abstractmethod
    def part(self, *batch: Any) -> S | None:
        """The state of one batch of finite rows; None if it holds no token."""

    def finite(self, *batch: Any) -> tuple[Sequence[Any], int, int]:
        """The finite rows of a batch, how many were dropped, and of how many."""
        keep = finite_rows(*batch)
        if keep is None:
            return batch, 0, len(batch[0])
        return [rows[keep] for rows in batch], int((~keep).sum()), len(keep)

    @abstractmethod
    def result(self, state: S) -> R:
        """The metrics, from the state of everything."""

    def update(self, *batch: Any) -> None:
        """Take in one batch; rows that are not finite are counted and left out."""
        kept, dropped, n = self.finite(*batch)
        if dropped:
            warnings.warn(not_finite(dropped, n), MMLensWarning, stacklevel=2)
        self.dropped += dropped
        self._add(self.part(*kept))

    def merge(self, other: Accumulator[S, R]) -> None:
        """Take in what another accumulator has seen.

        Raises:
            InputError: It is of another kind, or made with other settings.
        """
        if type(self) is not type(other) or self.settings != other.settings:
            raise InputError(f"{self} and {other} do not merge: make all shards alike.")
        self.dropped += other.dropped
        self._add(other.state)

    def compute(self) -> R:
        """The metrics of everything seen so far.

        Raises:
            InputError: Nothing was.
        """
        if self.state is None:
            raise InputError(f"{type(self).__name__} has seen no token: update it first.")
        return self.result(self.state)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{type(self).__name__}({settings})"

    def _add(self, part: S | None) -> None:
        if self.state is None or part is None:
            self.state = part if self.state is None else self.state
        else:
            self.state = self.state + part  # type: ignore[operator]


class LinearityMoments(Accumulator[Moments, dict[str, float]]):
    """In-sample linearity of two consecutive hooks, exactly, from `update(x, y)`.

    Args:
        fast: Products in float32; see `Moments.of`.
    """

    def __init__(self, *, fast: bool = False) -> None:
        super().__init__(fast=fast)
        self.fast = fast

    def part(self, x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> Moments | None:
        """Moments of a batch: states at both hooks."""
        return Moments.of(x.double(), y.double(), fast=self.fast) if len(x) else None

    def result(self, state: Moments) -> dict[str, float]:
        """`linearity_paper` and `_adjusted`, of state and update, and `chance`."""
        fit = least_squares(state, jacobi(state))
        if self.fast and fit.pivot < _FAST_PIVOT:
            warnings.warn(
                f"float32 moments: one input is explained by the others to {fit.pivot:.0e}, so R² "
                "may be wrong in the fifth digit. Use fast=False.",
                MMLensWarning,
                stacklevel=3,
            )
        return linearity.from_fit(fit, state)


class SpectrumMoments(Accumulator[Scatter, dict[str, float]]):
    """Anisotropy and the counts of directions at one hook, exactly, from `update(x)`.

    Args:
        fast: Products in float32; see `Moments.of`.
    """

    def __init__(self, *, fast: bool = False) -> None:
        super().__init__(fast=fast)
        self.fast = fast

    def part(self, x: Float[Tensor, "n d"]) -> Scatter | None:
        """Second moment of a batch."""
        return Scatter.of(x.double(), fast=self.fast) if len(x) else None

    def result(self, state: Scatter) -> dict[str, float]:
        """`anisotropy`, `participation_ratio`, `effective_rank`, `dimensions_95`."""
        return {"anisotropy": anisotropy.from_scatter(state), **spectrum.from_scatter(state)}


@dataclass(frozen=True)
class _Pair:
    """Second moments of both modalities; either may still be missing."""

    visual: Scatter | None
    text: Scatter | None

    def __add__(self, other: _Pair) -> _Pair:
        def join(a: Scatter | None, b: Scatter | None) -> Scatter | None:
            return a or b if a is None or b is None else a + b

        return _Pair(join(self.visual, other.visual), join(self.text, other.text))


class GapMoments(Accumulator[_Pair, dict[str, float]]):
    """Distance between the modalities at one hook, exactly, from `update(visual, text)`."""

    def finite(self, *batch: Any) -> tuple[Sequence[Any], int, int]:
        """The finite rows of either side: they are no pairs."""
        keeps = [x.isfinite().all(1) for x in batch]
        dropped = sum(int((~keep).sum()) for keep in keeps)
        rows = [x[keep] if dropped else x for x, keep in zip(batch, keeps, strict=True)]
        return rows, dropped, sum(map(len, batch))

    def part(self, visual: Float[Tensor, "n d"], text: Float[Tensor, "m d"]) -> _Pair | None:
        """Second moments of a batch; one of the two may have no rows."""
        sides = (Scatter.of(x.double()) if len(x) else None for x in (visual, text))
        return _Pair(*sides)

    def result(self, state: _Pair) -> dict[str, float]:
        """`modality_gap` and `frechet_distance` (in the units of the states, squared).

        Raises:
            InputError: A modality has fewer than two tokens.
        """
        if state.visual is None or state.text is None or min(state.visual.n, state.text.n) < 2:
            raise InputError("The gap needs at least two tokens of each modality.")
        return {
            "modality_gap": gap.modality_gap(state.visual, state.text),
            "frechet_distance": gap.frechet_distance(state.visual, state.text),
        }


@dataclass(frozen=True)
class Drawn:
    """The same tokens at some hooks: those `k` with the smallest keys, in the order of the keys.

    Attributes:
        hooks: Tokens at each hook.
        k: Most tokens kept.
        seed: Of the choice.
    """

    hooks: tuple[Tokens, ...]
    k: int
    seed: int

    def __add__(self, other: Drawn) -> Drawn:
        joined = [concatenate(a, b) for a, b in zip(self.hooks, other.hooks, strict=True)]
        return Drawn(tuple(joined), self.k, self.seed).cut()

    def cut(self) -> Drawn:
        """Only the `k` with the smallest keys."""
        order = self.hooks[0].keys(self.seed).argsort(stable=True)[: self.k]
        return Drawn(tuple(hook.take(order) for hook in self.hooks), self.k, self.seed)


class Sampled(Accumulator[Drawn, R]):
    """Any function of the same tokens at one or more hooks, from a bounded sample.

    ```python
    Sampled(evaluate, k=2000)                             # every metric of one or two hooks
    Sampled(lambda *hooks: cka_matrix([t.x for t in hooks]), k=2000)      # layers × layers
    ```

    Args:
        function: Of the sampled `Tokens` at each hook.
        k: Most tokens kept.
        seed: Of the choice of tokens.
    """

    def __init__(self, function: Callable[..., R], k: int, seed: int = 0) -> None:
        super().__init__(k=k, seed=seed)
        self.function, self.k, self.seed = function, k, seed

    def finite(self, *hooks: Tokens) -> tuple[Sequence[Any], int, int]:
        """The rows that are finite at every hook.

        Raises:
            InputError: The hooks do not hold the same tokens.
        """
        first = hooks[0]
        for other in hooks[1:]:
            same = torch.equal(first.sample, other.sample)
            if not (same and torch.equal(first.position, other.position)):
                raise InputError("Give the same tokens in the same order at every hook.")
        return *finite(*hooks), len(first)

    def part(self, *hooks: Tokens) -> Drawn | None:
        """The sample of a batch: the same tokens at each hook."""
        return Drawn(hooks, self.k, self.seed).cut() if len(hooks[0]) else None

    def result(self, state: Drawn) -> R:
        """What the function makes of the sample."""
        return self.function(*state.hooks)
