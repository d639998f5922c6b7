"""Answer metrics over a set of options: logit difference, probability, accuracy.

Read at the last attended position of each row, where the model writes its first answer token. All
take logits [batch, pos, d_vocab] and return one value for each row [batch], for `mm_lens.patching`,
knock-out and ablation tables. TransformerLens's tools that want a scalar, such as
`attribution_patch`, take `lambda logits: answers.logit_diff(logits).sum()`.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mm_lens._notebook import make_table
from mm_lens.arguments import require_kind, require_whole
from mm_lens.errors import InputError
from mm_lens.layout.groups import last_index
from mm_lens.model.inputs import Inputs
from mm_lens.model.running.asking import spell_options


def option_tokens(tokenizer: Any, options: Sequence[str]) -> Int[Tensor, " option"]:
    """The token of each option, all as written or all with a space before.

    Raises:
        InputError: an option is several tokens either way, or two options are the same token.
    """
    spelled = spell_options(tokenizer, options)
    if long := next((o for o, tokens in spelled.items() if len(tokens) != 1), ""):
        pieces = tokenizer.convert_ids_to_tokens(spelled[long])
        raise InputError(
            f"The option {long!r} is not one token but {pieces}: a metric at one position would "
            "compare beginnings of words. Choose other words, or pass token ids of your choice to "
            "Answers(tokens=...)."
        )
    return torch.tensor([tokens[0] for tokens in spelled.values()])


def _check_different(tokens: Tensor, options: Sequence[Any]) -> Tensor:
    if len(tokens.unique()) != len(tokens):
        same = [options[i] for i in range(len(tokens)) if (tokens == tokens[i]).sum() > 1]
        raise InputError(f"The options {same} are the same token: they cannot be told apart.")
    return tokens


class Answers:
    """LogitMetrics of one batch: which options there are, and which is right in each row.

    Attributes:
        tokens: token of each option.
        right: index of the right option in each row.
        wrong: index of the option it is compared with in each row, or None.
    """

    tokens: Int[Tensor, " option"]
    right: Int[Tensor, " batch"]
    wrong: Int[Tensor, " batch"] | None

    def __init__(
        self,
        model: Any,
        inputs: Inputs,
        options: Sequence[str],
        right: str | Sequence[str],
        wrong: str | Sequence[str] | None = None,
        tokens: Sequence[int] | None = None,
    ) -> None:
        """Check the options and find where the answer is read.

        Args:
            model: whose tokenizer is used.
            inputs: the batch that the metric is for.
            options: possible answers, each one token.
            right: the right one, for all rows or for each.
            wrong: the one it is compared with; None compares it with the mean of all others.
            tokens: token ids of the options, where their words are not single tokens.

        Raises:
            InputError: see `option_tokens`; or right or wrong are not among the options, or equal.
        """
        if not hasattr(model, "tokenizer"):
            raise InputError(f"model is what has the tokenizer, not a {type(model).__name__}.")
        require_kind("inputs", inputs, Inputs, "what model.prepare(text, images) returns")
        self.options = tuple(options)
        if tokens is None:
            self.tokens = option_tokens(model.tokenizer, options)
        else:
            ids = [require_whole("Each of tokens=", token, 0) for token in tokens]
            self.tokens = _check_different(torch.tensor(ids), options)
        if len(self.tokens) != len(self.options):
            raise InputError(f"{len(self.tokens)} tokens were given for {len(options)} options.")
        batch = inputs.layout.shape[0]
        self.right = self._index(right, batch)
        self.wrong = None if wrong is None else self._index(wrong, batch)
        if self.wrong is not None and bool((self.right == self.wrong).any()):
            raise InputError("In some row the right and the wrong answer are the same option.")
        self.last, self.shape = last_index(inputs.layout), inputs.layout.shape

    def at_positions(self) -> tuple[Int[Tensor, " batch"], Answers]:
        """Where the answer is read, and the same metrics of logits of these positions alone.

        Those take logits [batch, 1, d_vocab].
        """
        alone = copy.copy(self)
        alone.last, alone.shape = torch.zeros_like(self.last), (self.shape[0], 1)
        return self.last, alone

    def __repr__(self) -> str:
        pairs = Counter(zip(self._names(self.right), self._names(self.wrong), strict=True))
        listed = "; ".join(
            f"{right} rather than {wrong}" + f" in {n} rows" * (n > 1)
            for (right, wrong), n in pairs.items()
        )
        return f"Answers({', '.join(self.options)}: {listed})"

    def _repr_html_(self) -> str:
        """The options with their tokens, and which is right in each row."""
        options = zip(self.options, self.tokens.tolist(), strict=True)
        rows = zip(count(), self._names(self.right), self._names(self.wrong))
        return make_table(["option", "token"], options) + make_table(
            ["row", "right", "compared with"], rows
        )

    def _names(self, chosen: Int[Tensor, " batch"] | None) -> list[str]:
        if chosen is None:
            return ["the mean of the others"] * len(self.right)
        return [self.options[i] for i in chosen.tolist()]

    def _index(self, answers: str | Sequence[str], batch: int) -> Tensor:
        rows = [answers] * batch if isinstance(answers, str) else list(answers)
        if unknown := [a for a in rows if a not in self.options]:
            raise InputError(f"{unknown[0]!r} is not among the options {', '.join(self.options)}.")
        if len(rows) != batch:
            raise InputError(f"{len(rows)} answers were given for {batch} row(s).")
        return torch.tensor([self.options.index(a) for a in rows])

    def logits(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, "batch option"]:
        """Logits of the options where the answer is read.

        Raises:
            InputError: the logits are of other inputs, or have no such token.
        """
        return self._read(logits)[:, self.tokens.to(logits.device)]

    def _read(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, "batch d_vocab"]:
        """Logits of the whole vocabulary where the answer is read."""
        if logits.ndim != 3 or tuple(logits.shape[:2]) != self.shape:
            raise InputError(
                f"These answers are of inputs of shape {self.shape} [batch, pos], and the logits "
                f"are {tuple(logits.shape)}. Make Answers for the inputs that are run."
            )
        if int(self.tokens.max()) >= logits.shape[-1]:
            raise InputError(
                f"There is no token {int(self.tokens.max())} among {logits.shape[-1]} logits."
            )
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, self.last.to(logits.device)]

    def logit_diff(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        """Logit of the right option less that of the wrong one (or the mean of all others)."""
        found = self.logits(logits)
        rows = torch.arange(len(found), device=found.device)
        right = found[rows, self.right.to(found.device)]
        if self.wrong is not None:
            return right - found[rows, self.wrong.to(found.device)]
        return right - (found.sum(1) - right) / (found.shape[1] - 1)

    def probability(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        """Probability of the right option among the options (softmax over these alone)."""
        found = self.logits(logits).softmax(-1)
        rows = torch.arange(len(found), device=found.device)
        return found[rows, self.right.to(found.device)]

    def accuracy(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        """1 where the right option has the highest logit of all options, else 0."""
        return self.correct(logits).to(logits.dtype)

    def correct(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Bool[Tensor, " batch"]:
        """Whether the right option has the highest logit of all options; ties are wrong."""
        found = self.logits(logits)
        rows = torch.arange(len(found), device=found.device)
        right = found[rows, self.right.to(found.device)]
        return (found >= rearrange(right, "batch -> batch 1")).sum(1) == 1

    def mass(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        """Probability of all options together in the whole vocabulary: small, and the model says
        something else."""
        return self._read(logits).softmax(-1)[:, self.tokens.to(logits.device)].sum(-1)

    @property
    def metrics(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """All of them by name, for a sweep."""
        return {
            "logit_diff": self.logit_diff,
            "probability": self.probability,
            "accuracy": self.accuracy,
        }
