"""What a metric returns: a value, how far it can be trusted, and why where it is missing.

Degenerate inputs (fewer than three tokens, constant states) make the value NaN with the reason in
`warning`, and so does a metric that fails. They never raise: the metrics run for hours inside a
profile, and one empty modality must not end it. Wrong use and a lack of memory are raised.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from mm_lens.errors import MMLensError, MMLensWarning, lacks_memory
from mm_lens.metrics.intervals import Replicates
from mm_lens.metrics.tokens import Tokens

T = TypeVar("T")


class UndefinedError(MMLensError):
    """Inside a metric: the data do not determine the value. Becomes a NaN with this reason."""


@dataclass(frozen=True)
class Estimate:
    """A value and how far it can be trusted.

    Attributes:
        value: The statistic; NaN where the data do not determine it.
        low: Lower end of the 95 % interval over samples; NaN where there is none.
        high: Upper end.
        n_tokens: Number of tokens the value rests on.
        n_over_d: The same, per dimension of the hidden state.
        chance: What data without the structure in question would score; NaN where no such
            reference exists.
        warning: Why the value is missing or what to know before using it; "" if nothing.
        replicates: What the value would be without each group of samples.
    """

    value: float
    low: float
    high: float
    n_tokens: int
    n_over_d: float
    chance: float = math.nan
    warning: str = ""
    replicates: Replicates = field(default_factory=Replicates, repr=False)

    def without_interval(self, reason: str) -> Estimate:
        """The same estimate without its interval and replicates, for a reason."""
        if math.isnan(self.low):
            return self
        bare = replace(self, low=math.nan, high=math.nan, replicates=Replicates())
        return bare.warn(f"no interval: {reason}")

    def warn(self, *messages: str) -> Estimate:
        """The same estimate with more warnings."""
        return replace(self, warning="; ".join(m for m in (self.warning, *messages) if m))


def estimate(
    tokens: Tokens,
    value: float,
    low: float = math.nan,
    high: float = math.nan,
    *,
    chance: float = math.nan,
    warnings: Iterable[str] = (),
    replicates: Replicates | None = None,
    no_interval: str = "too few samples",
) -> Estimate:
    """An `Estimate` resting on the given tokens; `no_interval` says why `low` is NaN, if it is.

    Raises:
        UndefinedError: The value is not finite.
    """
    if not math.isfinite(value):
        raise UndefinedError("not computable in float64: the states are too large or too small")
    notes = [*warnings]
    if math.isnan(low) and no_interval:
        notes.append(f"no interval: {no_interval}")
    n_over_d = len(tokens) / tokens.d
    numbers = (value, low, high, len(tokens), n_over_d, chance)
    return Estimate(*numbers, replicates=replicates or Replicates()).warn(*notes)


def or_nan(tokens: Tokens, function: Callable[..., T], *arguments: Any) -> T | Estimate:
    """What the function returns; NaN with the reason where the data do not determine it.

    Raises:
        MMLensError: The function was used wrongly.
        MemoryError: Or what torch raises in its place.
    """
    try:
        return function(*arguments)
    except UndefinedError as reason:
        message = str(reason)
    except ArithmeticError as error:
        message = f"not computable in float64: {error}"
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        message = f"linear algebra did not converge: {error}"
    except Exception as error:
        if isinstance(error, MMLensError) or lacks_memory(error):
            raise
        name = getattr(function, "__name__", "a metric")
        message = f"{name} failed: {type(error).__name__}: {error}"
        warnings.warn(f"{message}. Its value is NaN.", MMLensWarning, stacklevel=3)
    n = len(tokens)
    return Estimate(math.nan, math.nan, math.nan, n, n / tokens.d, warning=message)
