"""What an intervention does to the answer, of each row.

- `accuracy`: 1 where the right option has the highest logit of all options, else 0.
- `log_probability`: of the right answer's token, in nats, among the whole vocabulary.
- `kl`: Kullback-Leibler divergence of the next token, in nats, from the model without the
  intervention: 0 where nothing changed, whether or not the answer was right.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mm_lens.arguments import describe_value
from mm_lens.causal.answers import Answers
from mm_lens.errors import InputError
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs
from mm_lens.model.running.logit_metrics import LogitMetrics
from mm_lens.model.running.logits import Kept


class Outcomes:
    """The outcomes of one batch; its `metrics` are for tables of effects.

    Attributes:
        answers: which options there are, and which is right.
        reference: log-probabilities of the next token without an intervention.
    """

    def __init__(self, answers: Answers, reference: Float[Tensor, "batch d_vocab"]) -> None:
        self.answers, self.shape = answers, answers.shape
        self.reference = reference.float().log_softmax(-1)

    def at_positions(self) -> tuple[Int[Tensor, " batch"], Outcomes]:
        """As of `Answers`."""
        alone = copy.copy(self)
        at, alone.answers = self.answers.at_positions()
        alone.shape = alone.answers.shape
        return at, alone

    def accuracy(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        """1 where the right option is ahead of all others."""
        return self.answers.accuracy(logits)

    def log_probability(
        self, logits: Float[Tensor, "batch pos d_vocab"]
    ) -> Float[Tensor, " batch"]:
        """Of the right answer's token."""
        told = self.answers.tokens[self.answers.right].to(logits.device)
        rows = torch.arange(len(told), device=logits.device)
        return self._read(logits)[rows, told]

    def kl(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        """Of the next token, from `reference`."""
        before = self.reference.to(logits.device)
        share = before.exp()
        apart = torch.where(share > 0, share * (before - self._read(logits)), 0.0)
        return apart.sum(-1)

    def _read(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, "batch d_vocab"]:
        found: Tensor = self.answers._read(logits).float().log_softmax(-1)
        return found

    @property
    def metrics(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """All of them by name."""
        return {
            "accuracy": self.accuracy,
            "log_probability": self.log_probability,
            "kl": self.kl,
        }


def watch(
    model: VisionLanguageBridge, samples: Sequence[tuple[Inputs, Any]]
) -> list[tuple[Inputs, LogitMetrics]]:
    """Samples with the outcomes of their answers; metrics of the user's are left as they are.

    Cost: a forward pass of each sample with `Answers`.

    Raises:
        InputError: samples are no pairs of inputs and what they are judged by.
    """
    found: list[tuple[Inputs, LogitMetrics]] = []
    for pair in samples:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], Inputs):
            raise InputError(
                "Samples are a list of pairs (inputs, answers), as [(model.prepare(…), "
                f"Answers(…))]; {describe_value(pair)} is none."
            )
        inputs, answers = pair
        if isinstance(answers, Answers):
            kept = Kept(model, answers.last)
            with torch.no_grad():
                logits = kept.of(model(inputs, **kept.options))
            found.append((inputs, Outcomes(answers, logits[:, 0].cpu()).metrics))
        else:
            found.append((inputs, answers))
    return found
