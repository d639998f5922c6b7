"""What a metric is, what it returns, and the one call that computes many of them.

A `Kind` turns tokens into *shared intermediates* (one neighbour search, one set of
moments) that are computed when first asked for; a `Metric` is one short function of them
that returns an `Estimate`. Metrics register themselves:

```python
@KIND.metric("linearity_paper", label="R², in sample", presets=("paper",))
def linearity_paper(fit: LinearFit) -> Estimate: ...
```

Degenerate inputs (fewer than three tokens, constant states) make the value NaN with the reason in
`warning`, and so does a metric that fails. They never raise: the metrics run for hours inside a
profile, and one empty modality must not end it. Wrong use and a lack of memory are raised.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from mm_lens.errors import InputError, MMLensError, MMLensWarning
from mm_lens.metrics.intervals import Replicates
from mm_lens.metrics.tokens import Tokens, finite, not_finite

PRESETS = ("paper", "honest")
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
) -> Estimate:
    """An `Estimate` resting on the given tokens.

    Raises:
        UndefinedError: The value is not finite.
    """
    if not math.isfinite(value):
        raise UndefinedError("not computable in float64: the states are too large or too small")
    notes = [*warnings]
    if math.isnan(low):
        notes.append("no interval: too few samples")
    n_over_d = len(tokens) / tokens.d
    numbers = (value, low, high, len(tokens), n_over_d, chance)
    return Estimate(*numbers, replicates=replicates or Replicates()).warn(*notes)


@dataclass(frozen=True)
class Metric:
    """One number about the tokens at one hook, or at two hooks, one leading to the other.

    Attributes:
        name: Key in `METRICS` and in the `metric` column of a profile.
        label: For axes and legends.
        unit: "" for a pure number.
        kind: Metrics of one kind share intermediates and a figure.
        arity: 1: one hook. 2: two consecutive hooks.
        presets: The presets it belongs to.
        headline: The presets in which it stands for its kind.
    """

    name: str
    label: str
    unit: str
    presets: frozenset[str]
    headline: frozenset[str]
    _kind: Kind = field(repr=False, compare=False)
    _function: Callable[[Any], Estimate] = field(repr=False, compare=False)

    @property
    def kind(self) -> str:
        """Name of the kind, as "linearity", "dimension" or "anisotropy"."""
        return self._kind.name

    @property
    def arity(self) -> int:
        """Number of consecutive hooks the metric needs."""
        return self._kind.arity

    @property
    def equal_n(self) -> bool:
        """Whether a profile gives it as many tokens of every modality; see `Kind`."""
        return self._kind.equal_n

    @property
    def description(self) -> str:
        """The definition, from the docstring."""
        return self._function.__doc__ or ""

    def compute(
        self, tokens: Tokens, tokens_next: Tokens | None = None, *, seed: int = 0
    ) -> Estimate:
        """The estimate for these tokens.

        Args:
            tokens: Tokens at a hook.
            tokens_next: The same tokens at the next hook; needed by metrics of arity 2.
            seed: Of everything random inside (groups of samples, subsets, null draws).

        Raises:
            InputError: `tokens_next` is missing, or holds other tokens.
        """
        if self.arity == 2 and tokens_next is None:
            raise InputError(
                f"{self.name} compares two consecutive hooks: give tokens_next, the same tokens "
                "at the next hook."
            )
        return evaluate(tokens, tokens_next, [self], seed)[self.name]


#: Every metric by name, in the order of registration.
METRICS: dict[str, Metric] = {}


@dataclass(frozen=True)
class Kind:
    """Metrics that are functions of the same intermediates.

    Attributes:
        name: Name of the kind.
        arity: Number of consecutive hooks.
        prepare: `(tokens, seed)` or `(tokens, tokens_next, seed)` to the shared intermediates.
        equal_n: Whether its values depend on the number of tokens so much that a profile gives it
            the same number for every hook and modality.
    """

    name: str
    arity: int
    prepare: Callable[..., Any]
    equal_n: bool = False

    def metric(
        self,
        name: str,
        *,
        label: str,
        unit: str = "",
        presets: Sequence[str],
        headline: Sequence[str] = (),
    ) -> Callable[[Callable[[Any], Estimate]], Callable[[Any], Estimate]]:
        """Decorator that registers a function of the shared intermediates as a metric.

        Raises:
            InputError: The name is taken, or a preset is unknown.
        """
        unknown = {*presets, *headline} - {*PRESETS}
        if name in METRICS or unknown:
            raise InputError(f"metric {name!r}: name taken or preset unknown {sorted(unknown)}.")

        def register(function: Callable[[Any], Estimate]) -> Callable[[Any], Estimate]:
            METRICS[name] = Metric(
                name, label, unit, frozenset(presets), frozenset(headline), self, function
            )
            return function

        return register


def preset(name: str) -> tuple[Metric, ...]:
    """The metrics of a preset: "paper" (the paper's own definitions) or "honest".

    Raises:
        InputError: No such preset.
    """
    if name not in PRESETS:
        raise InputError(f"No preset {name!r}: use one of {', '.join(PRESETS)}.")
    return tuple(metric for metric in METRICS.values() if name in metric.presets)


def evaluate(
    tokens: Tokens,
    tokens_next: Tokens | None = None,
    metrics: Iterable[Metric | str] | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Every given metric of these tokens, sharing all intermediate results.

    Args:
        tokens: Tokens at a hook. Half precision is computed on in float64; a GPU is kept.
        tokens_next: The same tokens at the next hook. Without it, metrics of arity 2 are left out.
        metrics: Metrics or their names; the honest preset by default.
        seed: Of everything random inside; the same seed gives the same numbers.

    Returns:
        Estimates by name of the metric, in the order given.

    Raises:
        InputError: A metric does not exist, or the two sets of tokens are not the same tokens.
    """
    chosen = [_lookup(m) for m in (preset("honest") if metrics is None else metrics)]
    if tokens_next is not None:
        _check_pair(tokens, tokens_next)
    results: dict[str, Estimate] = {}
    for kind in dict.fromkeys(metric._kind for metric in chosen):
        if kind.arity > 1 and tokens_next is None:
            continue
        given = [tokens] if kind.arity == 1 or tokens_next is None else [tokens, tokens_next]
        members = [metric for metric in chosen if metric._kind is kind]
        # Autocast would turn the float32 products below into bfloat16 without a word.
        with torch.no_grad(), torch.autocast(tokens.x.device.type, enabled=False):
            kept, dropped = finite(*given)
            shared = or_nan(kept[0], kind.prepare, *kept, seed)
            note = not_finite(dropped, len(tokens))
            for metric in members:
                failed = isinstance(shared, Estimate)
                found = shared if failed else or_nan(kept[0], metric._function, shared)
                results[metric.name] = found.warn(note)
    return {metric.name: results[metric.name] for metric in chosen if metric.name in results}


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
        if isinstance(error, MMLensError) or _lacks_memory(error):
            raise
        name = getattr(function, "__name__", "a metric")
        message = f"{name} failed: {type(error).__name__}: {error}"
        warnings.warn(f"{message}. Its value is NaN.", MMLensWarning, stacklevel=3)
    n = len(tokens)
    return Estimate(math.nan, math.nan, math.nan, n, n / tokens.d, warning=message)


def _lacks_memory(error: Exception) -> bool:
    """Whether memory ran out; on a CPU torch says so in the message alone."""
    kinds = MemoryError, torch.OutOfMemoryError
    return isinstance(error, kinds) or "allocate memory" in str(error)


def _lookup(metric: Metric | str) -> Metric:
    if isinstance(metric, Metric):
        return metric
    if metric not in METRICS:
        raise InputError(f"No metric {metric!r}: use one of {', '.join(METRICS)}.")
    return METRICS[metric]


def _check_pair(tokens: Tokens, tokens_next: Tokens) -> None:
    same = len(tokens) == len(tokens_next) and all(
        torch.equal(getattr(tokens, name), getattr(tokens_next, name))
        for name in ("sample", "position", "token_id")
    )
    if not same:
        raise InputError(
            "tokens and tokens_next are not the same tokens in the same order: take both hooks "
            "from one cache or one sample of positions."
        )
