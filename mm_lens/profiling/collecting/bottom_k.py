"""The tokens with the smallest keys of all that were offered: which to take, and their slots."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor


class BottomK:
    """The `k` tokens with the smallest keys of all that were offered, in whatever order.

    Attributes:
        k: most tokens kept.
        size: tokens kept so far.
        seen: tokens offered so far.
        key, sample, position, token_id: of the tokens kept, by slot.
    """

    def __init__(self, k: int) -> None:
        self.k, self.size, self.seen = k, 0, 0
        self.key, self.sample, self.position, self.token_id = torch.zeros(4, k, dtype=torch.int64)

    def offer(
        self,
        key: Int64[Tensor, " n"],
        sample: Int64[Tensor, " n"],
        position: Int64[Tensor, " n"],
        token_id: Int64[Tensor, " n"],
    ) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"]]:
        """Take in what belongs to the sample.

        Returns:
            Which of the offered tokens are taken, and the slot that each one goes to. A slot may be
            taken over from a token with a larger key, which then is out of the sample for good.
        """
        self.seen += len(key)
        kept, taken = self.choose(key)
        free = torch.ones(self.k, dtype=torch.bool)
        free[kept[kept < self.size]] = False
        slots = free.nonzero().squeeze(1)[: len(taken)]
        for mine, offered in (
            (self.key, key),
            (self.sample, sample),
            (self.position, position),
            (self.token_id, token_id),
        ):
            mine[slots] = offered[taken]
        self.size = len(kept)
        return taken, slots

    def choose(self, key: Int64[Tensor, " n"]) -> tuple[Int64[Tensor, " s"], Int64[Tensor, " m"]]:
        """What would be kept of the tokens kept so far and those offered, and taken of the latter.

        Nothing is changed.
        """
        keys = torch.cat([self.key[: self.size], key])
        kept = keys.argsort(stable=True)[: self.k]
        return kept, (kept[kept >= self.size] - self.size).sort().values

    def entries(self) -> Int64[Tensor, "4 size"]:
        """Key, sample, position and token id of the tokens kept, by slot."""
        columns = (self.key, self.sample, self.position, self.token_id)
        return torch.stack(columns)[:, : self.size]

    def restore(self, entries: Int64[Tensor, "4 size"], seen: int) -> None:
        """Take over what `entries` gave."""
        self.size, self.seen = entries.shape[1], seen
        columns = (self.key, self.sample, self.position, self.token_id)
        for mine, kept in zip(columns, entries, strict=True):
            mine[: self.size] = kept

    @property
    def used(self) -> tuple[Int64[Tensor, " size"], Int64[Tensor, " size"]]:
        """The slots in use, and their keys."""
        return torch.arange(self.size), self.key[: self.size]

    @property
    def order(self) -> Int64[Tensor, " size"]:
        """The slots in use by ascending key: the first n of them are a smaller sample."""
        order: Tensor = self.key[: self.size].argsort(stable=True)
        return order
