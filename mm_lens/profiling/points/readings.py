"""States read as words: through the final norm and unembedding, as if the model stopped there.

`read` of a token gives what metrics of kind "lens" are means of, in the order of `READ`: entropy of
the distribution over the vocabulary; divergence `KL(end || here)` to it from that of the last state
of the same token; rank of the word that the last state puts first, 0 for the top.

Memory: `ROWS` tokens times the vocabulary, a few times over. Cost: of each state one product with
the unembedding, `width x vocabulary` per token, and in `read` one more for the last state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from transformer_lens.tools.analysis import logit_readout

from mm_lens.model.check import PROMPT
from mm_lens.model.running.logits import check_path, keep_logits, read_log_probs
from mm_lens.model.streams import state_names
from mm_lens.profiling.points.point import Point, Spot

READ = ("entropy", "kl", "rank")
ROWS = 64
"""Tokens that are read at a time."""


class Readout:
    """Reads states of one model.

    Args:
        model: the model, in eval mode.

    Raises:
        MMLensError: the last state read like this does not give the model's logits.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.states = frozenset(state_names(model.cfg.n_layers))
        self.last = last_state(model)
        self._check()

    def reads(self, stream: str, hook: str, head: int) -> bool:
        """Whether it makes sense of this hook: a state of the stream that the model reads."""
        return stream == "residual" and hook in self.states and head < 0

    @torch.no_grad()
    def entropy(self, states: Float[Tensor, "n d"]) -> Float32[Tensor, " n"]:
        """Entropy of each token's words, in nats, on the CPU."""
        return logit_readout(self.model, states, top_k=1, chunk_size=ROWS).entropy.cpu()

    @torch.no_grad()
    def read(
        self, states: Float[Tensor, "n d"], last: Float[Tensor, "n d"]
    ) -> Float32[Tensor, "n 3"]:
        """`READ` of each token, from this state and its last one, on the CPU."""
        found = []
        for here, there in zip(states.split(ROWS), last.split(ROWS), strict=True):
            own, end = self._read(here), self._read(there)
            of_best = own.gather(-1, end.argmax(-1, keepdim=True))
            kl = (end.exp() * (end - own)).sum(-1)
            rank = (own > of_best).sum(-1)
            found.append(torch.stack([_entropy(own), kl, rank.float()], 1).cpu())
        return torch.cat(found)

    def _read(self, states: Float[Tensor, "n d"]) -> Float32[Tensor, "n d_vocab"]:
        return read_log_probs(self.model, states).float()

    @torch.no_grad()
    def _check(self) -> None:
        """One pass of a small prompt: its last token as the model reads it, and as this does."""
        held: dict[str, Tensor] = {}

        def keep(state: Tensor, hook: Any) -> None:
            held["last"] = state[:, -1].detach()

        inputs = self.model.prepare(PROMPT, self.model.family.probe_image())
        hooks = [(self.last, keep)]
        logits = self.model.run_with_hooks(inputs, fwd_hooks=hooks, **keep_logits(self.model, 1))
        read = self._read(held["last"]).cpu()
        check_path(read, logits[:, -1].float().log_softmax(-1).cpu())


def last_state(model: Any) -> str:
    """The hook of the last state."""
    return state_names(model.cfg.n_layers)[-1]


def keep_last(model: Any, points: Sequence[Point], spots: Sequence[Spot]) -> tuple[Spot, ...]:
    """The same spots; those at states of the stream have the last one beside them."""
    states, hooks = state_names(model.cfg.n_layers), [point.hook for point in points]
    if states[-1] not in hooks:
        return tuple(spots)
    last = (hooks.index(states[-1]),)
    return tuple(
        replace(spot, beside=last) if spot.alone and hooks[spot.point] in states else spot
        for spot in spots
    )


def _entropy(log_probs: Float32[Tensor, "n d_vocab"]) -> Float32[Tensor, " n"]:
    return -(log_probs.exp() * log_probs).sum(-1)
