"""What a metric is, what it returns, and the one call that computes many of them.

A `Kind` turns tokens into *shared intermediates* (one neighbour search, one set of
moments) that are computed when first asked for; a `Metric` is one short function of them
that returns an `Estimate`. Metrics register themselves:

```python
@KIND.metric("linearity_paper", label="R², in sample", presets=("paper",))
def linearity_paper(fit: LinearFit) -> Estimate: ...
```

A metric made of second moments has a twin without the massive tokens (`numerics.massive`), from
`without_massive=True`: the same function of the other tokens, named `…_without_massive`. Where
there are massive tokens, both rows say so, and what the other one says if they disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from mm_lens.arguments import suggest
from mm_lens.errors import InputError
from mm_lens.metrics.numerics.estimates import Estimate, or_nan
from mm_lens.metrics.numerics.massive import KAPPA, massive
from mm_lens.metrics.tokens import Tokens, finite, not_finite

PRESETS = ("paper", "honest", "between", "lens")
Given: TypeAlias = Literal["states", "modalities", "readings"]
"""What the rows of the tokens are that a metric is of: states of one modality, or of whatever there
is; states of two, told apart by `Tokens.modality`; or readings of states as words, three numbers
each (`lens`)."""
TWIN = "_without_massive"
DISAGREE = 0.02, 0.05
"""From which on a value and its twin disagree: a pure number absolutely, a count relatively."""


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
        twin: The metric that leaves massive tokens out; "" if there is none, or it is one.
        leaves_out_massive: Whether it is such a twin.
    """

    name: str
    label: str
    unit: str
    presets: frozenset[str]
    headline: frozenset[str]
    twin: str
    leaves_out_massive: bool
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
    def given(self) -> Given:
        """What it is of."""
        return self._kind.given

    @property
    def equal_n(self) -> bool:
        """Whether a profile gives it as many tokens of every modality; see `Kind`."""
        return self._kind.equal_n and not self.takes_all

    @property
    def takes_all(self) -> bool:
        """Whether it takes all tokens, as the paper does."""
        return "paper" in self.presets

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
        return evaluate(tokens, tokens_next, [self], seed, given=self.given)[self.name]


#: Every metric by name, in the order of registration.
METRICS: dict[str, Metric] = {}


@dataclass(frozen=True)
class Kind:
    """Metrics that are functions of the same intermediates.

    Attributes:
        name: Name of the kind.
        arity: Number of consecutive hooks.
        prepare: `(tokens, seed)` or `(tokens, tokens_next, seed)` to the shared intermediates. If
            these have a method `expect`, it is told the names of the metrics that will follow.
        equal_n: Whether its values depend on the number of tokens so much that a profile gives it
            the same number for every hook and modality.
        given: What its tokens are.
    """

    name: str
    arity: int
    prepare: Callable[..., Any]
    equal_n: bool = False
    given: Given = "states"

    def metric(
        self,
        name: str,
        *,
        label: str,
        unit: str = "",
        presets: Sequence[str],
        headline: Sequence[str] = (),
        without_massive: bool | str = False,
    ) -> Callable[[Callable[[Any], Estimate]], Callable[[Any], Estimate]]:
        """Decorator that registers a function of the shared intermediates as a metric.

        Args:
            name: Of the metric.
            label: For axes and legends.
            unit: "" for a pure number.
            presets: It belongs to.
            headline: Presets in which it stands for its kind; all but "paper" go to its twin.
            without_massive: Whether to register a twin that leaves massive tokens out; or the name
                of the metric whose twin is its own.

        Raises:
            InputError: The name is taken, or a preset is unknown.
        """
        unknown = {*presets, *headline} - {*PRESETS}
        if name in METRICS or unknown:
            raise InputError(f"metric {name!r}: name taken or preset unknown {sorted(unknown)}.")
        twins = without_massive is True
        twin = f"{without_massive if isinstance(without_massive, str) else name}{TWIN}"

        def register(function: Callable[[Any], Estimate]) -> Callable[[Any], Estimate]:
            own = frozenset(headline)
            stands = own & {"paper"} if twins else own
            METRICS[name] = Metric(
                name,
                label,
                unit,
                frozenset(presets),
                stands,
                twin if without_massive else "",
                False,
                self,
                function,
            )
            if twins:
                METRICS[twin] = Metric(
                    twin,
                    f"{label}, no massive tokens",
                    unit,
                    frozenset(presets) - {"paper"} or frozenset({"honest"}),
                    own - {"paper"},
                    "",
                    True,
                    self,
                    function,
                )
            return function

        return register


def preset(name: str) -> tuple[Metric, ...]:
    """The metrics of a preset.

    "paper": the paper's own definitions; "honest": corrected for what is known to mislead;
    "between": how the modalities lie to each other; "lens": what states are read as.

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
    *,
    given: Given = "states",
) -> dict[str, Estimate]:
    """Every given metric of these tokens, sharing all intermediate results.

    Args:
        tokens: Tokens at a hook. Half precision is computed on in float64; a GPU is kept.
        tokens_next: The same tokens at the next hook. Without it, metrics of arity 2 are left out.
        metrics: Metrics or their names; the honest preset by default.
        seed: Of everything random inside; the same seed gives the same numbers.
        given: What the rows of the tokens are. Metrics of anything else are left out.

    Returns:
        Estimates by name of the metric, in the order given.

    Raises:
        InputError: A metric does not exist, or the two sets of tokens are not the same tokens.
    """
    asked = [_lookup(m) for m in (preset("honest") if metrics is None else metrics)]
    chosen = [metric for metric in asked if metric.given == given]
    if tokens_next is not None:
        _check_pair(tokens, tokens_next)
    results: dict[str, Estimate] = {}
    for kind in dict.fromkeys(metric._kind for metric in chosen):
        if kind.arity > 1 and tokens_next is None:
            continue
        ends = [tokens] if kind.arity == 1 or tokens_next is None else [tokens, tokens_next]
        members = [metric for metric in chosen if metric._kind is kind]
        # Autocast would turn the float32 products below into bfloat16 without a word.
        with torch.no_grad(), torch.autocast(tokens.x.device.type, enabled=False):
            kept, dropped = finite(*ends)
            note = not_finite(dropped, len(tokens))
            found = _of_kind(kind, members, kept, seed)
            results |= {name: each.warn(note) for name, each in found.items()}
    return {metric.name: results[metric.name] for metric in chosen if metric.name in results}


def _of_kind(
    kind: Kind, chosen: Sequence[Metric], tokens: Sequence[Tokens], seed: int
) -> dict[str, Estimate]:
    """The chosen metrics of one kind, and the twins of those if there are massive tokens."""
    plain = [metric for metric in chosen if not metric.leaves_out_massive]
    twins = [metric for metric in chosen if metric.leaves_out_massive]
    heavy = massive(*tokens) if twins or any(metric.twin for metric in plain) else None
    if heavy is None or not bool(heavy.any()):  # the same tokens, the same numbers
        return _from_shared(kind, chosen, tokens, seed)
    found = _from_shared(kind, plain, tokens, seed)
    twins += [METRICS[metric.twin] for metric in plain if metric.twin]
    rest = [each.take(~heavy) for each in tokens]
    found |= _from_shared(kind, list(dict.fromkeys(twins)), rest, seed)
    return _told_apart(found, heavy, tokens[0].sample)


def _from_shared(
    kind: Kind, chosen: Sequence[Metric], tokens: Sequence[Tokens], seed: int
) -> dict[str, Estimate]:
    """The chosen metrics of one kind, all of them from the same intermediates."""
    if not chosen:
        return {}
    shared = or_nan(tokens[0], kind.prepare, *tokens, seed)
    if isinstance(shared, Estimate):
        return {metric.name: shared for metric in chosen}
    if callable(expect := getattr(shared, "expect", None)):
        expect([metric.name for metric in chosen])
    return {metric.name: or_nan(tokens[0], metric._function, shared) for metric in chosen}


def _told_apart(
    found: dict[str, Estimate], heavy: Bool[Tensor, " n"], sample: Int64[Tensor, " n"]
) -> dict[str, Estimate]:
    """Estimates that say how many tokens are massive, and where leaving them out matters.

    Where only some samples have such tokens, how many of these a draw holds decides the value: no
    interval knows that (measured: 95 % intervals contain the mean in 0 to 60 %).
    """
    count, n = int(heavy.sum()), len(heavy)
    holders, samples = (len(ids.unique()) for ids in (sample[heavy], sample))
    told = dict(found)
    for name in found:
        metric = METRICS[name]
        if metric.leaves_out_massive:
            note = f"{count} of {n} tokens left out as massive (norm over {KAPPA:g} × the median)"
            told[name] = told[name].warn(note)
        if not metric.twin:
            continue
        note = f"{count} of {n} tokens are massive (norm over {KAPPA:g} × the median)"
        value, without = found[name].value, found[metric.twin].value
        if _disagree(metric, value, without):
            note += f" and decide: {without:.3g} without them"
            if metric.twin == f"{name}{TWIN}":
                told[metric.twin] = told[metric.twin].warn(f"with the massive tokens {value:.3g}")
        if holders < samples / 2:
            told[name] = told[name].without_interval(
                f"massive tokens are in {holders} of {samples} samples"
            )
        told[name] = told[name].warn(note)
    return told


def _disagree(metric: Metric, value: float, without: float) -> bool:
    absolute, relative = DISAGREE
    if metric.unit:
        return abs(value - without) > relative * abs(without)
    return abs(value - without) > absolute


def _lookup(metric: Metric | str) -> Metric:
    if isinstance(metric, Metric):
        return metric
    if metric not in METRICS:
        raise InputError(
            f"No metric {metric!r}: use one of {', '.join(METRICS)}.{suggest(metric, METRICS)}"
        )
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
