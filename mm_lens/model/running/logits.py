"""Logits of the positions that somebody reads, and of no others.

At 7B, eight copies of 2,349 positions over 32,064 words are 1.2 GB in 16 bit, of which a metric of
the answer reads eight rows. Native models compute logits of chosen positions (`logits_to_keep`):
the same for all rows of a batch, so that of rows padded on the right a few more are computed.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Float32, Int
from torch import Tensor
from transformer_lens.tools.analysis import logit_readout

from mm_lens.errors import MMLensError


def keep_logits(model: Any, positions: int | Int[Tensor, " kept"]) -> dict[str, Any]:
    """Arguments of a forward pass that asks for logits of so many last positions, or of these.

    None where the native model computes all.
    """
    takes = inspect.signature(model.original_model.forward).parameters
    return {"logits_to_keep": positions} if "logits_to_keep" in takes else {}


@dataclass(frozen=True)
class Kept:
    """One position of each row, whose logits are asked for.

    Attributes:
        model: computes them.
        at: the position in each row.
    """

    model: Any
    at: Int[Tensor, " batch"]

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the forward pass."""
        return keep_logits(self.model, self.at.unique())

    def of(self, logits: Float[Tensor, "rows pos d_vocab"]) -> Float[Tensor, "rows 1 d_vocab"]:
        """The row of each, from what such a pass gives of the inputs, or of copies of them."""
        at = torch.searchsorted(self.at.unique(), self.at) if self.options else self.at
        at = repeat(at, "batch -> (copy batch)", copy=len(logits) // len(at)).to(logits.device)
        chosen = logits[torch.arange(len(logits), device=logits.device), at]
        return rearrange(chosen, "rows d_vocab -> rows 1 d_vocab")


def read_log_probs(
    model: Any, states: Float[Tensor, "n d"], *, grad: bool = False
) -> Float[Tensor, "n d_vocab"]:
    """Log probabilities of all words, through the final norm and unembedding."""
    read = logit_readout(model, states, chunk_size=len(states), enable_grad=grad)
    logits: Tensor = read.values
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def check_path(read: Float32[Tensor, "n d_vocab"], logits: Float32[Tensor, "n d_vocab"]) -> None:
    """Raise if final norm and unembedding are not all there is between last state and logits."""
    worst = float((read - logits).abs().max())
    spread = float((logits - logits.mean(-1, keepdim=True)).abs().max())
    if not worst <= 0.1 * spread:  # rounding in bfloat16 reaches 0.01; NaN is no number
        raise MMLensError(
            f"Read through the final norm and unembedding, the last state gives logits that "
            f"differ from the model's own by {worst:.3g}, which vary by {spread:.3g}: this model "
            "has something else in between, and a logit lens is not defined."
        )
