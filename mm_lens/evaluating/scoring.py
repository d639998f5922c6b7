"""Log-probabilities of given answers: the model's own `generate`, made to write each of them.

So positions, caches and masks are the model's own at every step. One pass over a prompt serves all
answers of one token; each longer one costs a pass of its own.
"""

from __future__ import annotations

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

    An answer is tokenised alone, as the tokenizer has it at the beginning of a text. Its end is not
    scored.

    Args:
        model: from `mm_lens.load`.
        inputs: one prompt for each row, padded on the left.
        answers: those of each row.
        mean: divide by the number of tokens.

    Raises:
        InputError: an answer has no tokens.
    """
    tokenizer = model.tokenizer
    tokens = [
        [tokenizer(text, add_special_tokens=False)["input_ids"] for text in row] for row in answers
    ]
    for row, texts in zip(tokens, answers, strict=True):
        if [] in row:
            raise InputError(f"The answer {texts[row.index([])]!r} has no tokens to be scored.")
    first = _write(model, inputs, [[0]] * len(tokens))[:, 0]
    found = [[float(first[i, ids[0]]) for ids in row] for i, row in enumerate(tokens)]
    for k in range(max(map(len, tokens), default=0)):
        dictated = [row[k] if k < len(row) else row[0][:1] for row in tokens]
        if max(map(len, dictated)) == 1:
            continue
        logs = _write(model, inputs, dictated)
        for i, ids in enumerate(dictated):
            if k < len(tokens[i]) and len(ids) > 1:
                found[i][k] = sum(float(logs[i, step, token]) for step, token in enumerate(ids))
    if not mean:
        return found
    return [
        [value / len(ids) for value, ids in zip(values, row, strict=True)]
        for values, row in zip(found, tokens, strict=True)
    ]


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
