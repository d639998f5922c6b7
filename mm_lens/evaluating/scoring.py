"""Log-probabilities of given answers: the model's own `generate`, made to write each of them.

So positions, caches and masks are the model's own at every step. One pass over a prompt serves all
answers of one token; each longer one costs a pass of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from mm_lens.errors import InputError
from mm_lens.model.inputs import Inputs


class _Dictated(LogitsProcessor):
    """Leaves of each row's scores only that of the token that is to be written next."""

    def __init__(self, tokens: Int[Tensor, "batch step"], begin: int) -> None:
        self.tokens, self.begin = tokens, begin

    def __call__(
        self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch d_vocab"]
    ) -> Float[Tensor, "batch d_vocab"]:
        step = input_ids.shape[1] - self.begin
        wanted = self.tokens[:, step : step + 1].to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, wanted, 0.0)


def score_answers(
    model: Any, inputs: Inputs, answers: Sequence[Sequence[str]], mean: bool = False
) -> list[list[float]]:
    """Log-probability of each answer behind its prompt, in nats: of all its tokens together.

    Whether a model begins its answer with a space is a matter of its template and its tokenizer. So
    an answer is tokenised alone and with a space before it, and the probabilities of the two are
    added. Its end is not scored.

    Args:
        model: from `mm_lens.load`.
        inputs: one prompt for each row, padded on the left.
        answers: those of each row.
        mean: divide by the number of tokens of the more probable way to write it.

    Raises:
        InputError: an answer has no tokens.
    """
    tokens = [[_spell(model.tokenizer, text) for text in row] for row in answers]
    flat = [[ids for ways in row for ids in ways] for row in tokens]
    logs = [iter(values) for values in _score(model, inputs, flat)]
    return [
        [_join([next(values) for _ in ways], ways, mean) for ways in row]
        for values, row in zip(logs, tokens, strict=True)
    ]


def _spell(tokenizer: Any, text: str) -> list[list[int]]:
    """The ways to write an answer."""
    ways = [
        tokenizer(f"{space}{text}", add_special_tokens=False)["input_ids"] for space in ("", " ")
    ]
    if not ways[0]:
        raise InputError(f"The answer {text!r} has no tokens to be scored.")
    return ways if ways[1] != ways[0] else ways[:1]


def _join(logs: list[float], ways: list[list[int]], mean: bool) -> float:
    best = max(range(len(logs)), key=logs.__getitem__)
    if not math.isfinite(logs[best]):
        return logs[best]
    total = logs[best] + math.log(math.fsum(math.exp(value - logs[best]) for value in logs))
    return total / len(ways[best]) if mean else total


def _score(
    model: Any, inputs: Inputs, tokens: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """Log-probability of each list of tokens behind the prompt of its row."""
    first = _write(model, inputs, [[0]] * len(tokens))[:, 0]
    found = [[float(first[i, ids[0]]) for ids in row] for i, row in enumerate(tokens)]
    for k in range(max(map(len, tokens), default=0)):
        dictated = [row[k] if k < len(row) else row[0][:1] for row in tokens]
        if max(map(len, dictated)) == 1:
            continue
        logs = _write(model, inputs, dictated)
        for i, ids in enumerate(dictated):
            if k < len(tokens[i]) and len(ids) > 1:
                found[i][k] = math.fsum(float(logs[i, step, t]) for step, t in enumerate(ids))
    return found


def _write(
    model: Any, inputs: Inputs, tokens: Sequence[Sequence[int]]
) -> Float[Tensor, "batch step d_vocab"]:
    """Log-probabilities at each step of writing these tokens."""
    steps = max(map(len, tokens))
    padded = torch.tensor([[*ids, *[ids[-1]] * (steps - len(ids))] for ids in tokens])
    dictated = _Dictated(padded, inputs.input_ids.shape[1])
    written = model.generate(
        inputs,
        max_new_tokens=steps,
        do_sample=False,
        stop_at_eos=False,
        output_logits=True,
        verbose=False,
        logits_processor=LogitsProcessorList([dictated]),
    )
    return torch.stack(list(written.logits), 1).float().cpu().log_softmax(-1)
