"""Which of the sampled tokens a metric is computed from: what its preset says.

The paper takes all tokens, however many each modality has. So do its definitions here, as far as
the sample goes, and a row says where the sample ends before the data do. The honest preset takes 12
per dimension, and as many of every modality for what depends on their number. Tokens come in the
order of their keys, so that the first n of them are a smaller sample of the same kind.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mm_lens.metrics import Estimate, Metric, Tokens, evaluate

PAPER_TOKENS = 8_192
"""Sampled for the paper's definitions by default: one search among their neighbours takes seconds
on a CPU, and its cost grows with the square."""
PAPER_BYTES = 2**30
"""Memory for the states of these tokens by default."""


def default_number(d_model: int) -> int:
    """Tokens per modality for the honest preset."""
    return max(12 * d_model, 2048)


def sample_size(
    tokens: int | None, metrics: Sequence[Metric], d_model: int, bytes_per_token: int
) -> int:
    """Most tokens to sample per modality.

    Args:
        tokens: As asked for.
        metrics: What will be computed.
        d_model: Width of the states.
        bytes_per_token: Of the states of one token of both modalities, at all hooks and streams.
    """
    most = tokens or default_number(d_model)
    if tokens or not any(metric.takes_all for metric in metrics):
        return most
    return max(most, min(PAPER_TOKENS, PAPER_BYTES // bytes_per_token))


def measure(
    tokens: Tokens,
    tokens_next: Tokens | None,
    metrics: Sequence[Metric],
    seed: int,
    *,
    most: int,
    equal: int,
    seen: int,
) -> dict[str, Estimate]:
    """Metrics of the tokens at a hook, or two, each from the tokens that its preset takes.

    Args:
        tokens: The sample, by ascending key.
        tokens_next: The same at the next hook.
        metrics: Of one arity.
        seed: Of everything random in them.
        most: Tokens for the honest preset.
        equal: Tokens for those of its metrics that need equal numbers.
        seen: Tokens in the data.
    """
    limits = {m: len(tokens) if m.takes_all else equal if m.equal_n else most for m in metrics}
    numbers = {metric: min(limit, len(tokens)) for metric, limit in limits.items()}
    found: dict[str, Estimate] = {}
    for number in dict.fromkeys(numbers.values()):
        given = [tokens] if tokens_next is None else [tokens, tokens_next]
        if number < len(tokens):
            first = torch.arange(number, device=tokens.x.device)
            given = [each.take(first) for each in given]
        chosen = [metric for metric in metrics if numbers[metric] == number]
        found |= evaluate(given[0], given[1] if len(given) > 1 else None, chosen, seed)
    note = f"{len(tokens):,} of {seen:,} tokens sampled; the paper takes all: raise their number"
    return {
        m.name: found[m.name].warn(note * (m.takes_all and len(tokens) < seen))
        for m in metrics
        if m.name in found
    }
