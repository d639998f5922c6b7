"""What states are read as, as if the model stopped there (the logit lens), over all tokens.

The rows that these metrics are of are no states but three numbers of each token, which whoever has
the model makes of its state and of its last state (`mm_lens.profiling.points.readings`):

- `lens_entropy`: entropy of the distribution over the vocabulary, in nats. The logarithm of the
  number of words: nothing in particular.
- `lens_kl`: `KL(end || here)` in nats, from the distribution that the last state is read as. Zero
  at the last state.
- `lens_rank`: how many words stand before the one that the last state puts first.

Each is a mean over tokens, with an interval over samples by its influence function. An image token
predicts the token after it, which in training nobody asked for; and states before the end may not
be written as the end's are. `mm_lens.looking.lens_curves` weighs pictures alike instead.
"""

from __future__ import annotations

from mm_lens.metrics.core import Kind
from mm_lens.metrics.intervals import Replicates, clustered_error, margin
from mm_lens.metrics.numerics.estimates import Estimate, UndefinedError, estimate
from mm_lens.metrics.tokens import Tokens

KIND = Kind("lens", arity=1, prepare=lambda *shared: shared, given="readings")


def _mean(readings: tuple[Tokens, int], column: int) -> Estimate:
    """Mean over tokens of one of their numbers, none of which is negative."""
    tokens, seed = readings
    if not len(tokens):
        raise UndefinedError("no tokens")
    values = tokens.x[:, column].double()
    value = float(values.mean())
    influence = (values - values.mean()) / len(values)
    half = margin(*clustered_error(influence, tokens.sample))  # NaN: too few samples
    replicates = Replicates.of(value, influence, tokens.sample, seed)
    return estimate(tokens, value, max(value - half, 0.0), value + half, replicates=replicates)


@KIND.metric(
    "lens_entropy",
    label="entropy of the logit lens",
    unit="nats",
    presets=("lens",),
    headline=("lens",),
)
def lens_entropy(readings: tuple[Tokens, int]) -> Estimate:
    """Mean entropy of the words that a state is read as."""
    return _mean(readings, 0)


@KIND.metric("lens_kl", label="KL from the end, logit lens", unit="nats", presets=("lens",))
def lens_kl(readings: tuple[Tokens, int]) -> Estimate:
    """Mean divergence, from the words that the last state is read as to those of this one."""
    return _mean(readings, 1)


@KIND.metric(
    "lens_rank", label="rank of the final word, logit lens", unit="words", presets=("lens",)
)
def lens_rank(readings: tuple[Tokens, int]) -> Estimate:
    """Mean number of words before the one that the last state puts first."""
    return _mean(readings, 2)
