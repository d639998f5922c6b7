"""A bounded sample of tokens, with their states at every hook.

Which tokens are kept follows from a hash of (seed, sample id, position) alone: the `k` smallest
("bottom-k", METRICS §4). So the sample is uniform without replacement, the same at every hook and
in every stream, the same for any batch size and order, and known *before* the forward pass: only
the rows that are kept are ever copied.

Samples of parts of the data (`TokenSample`) merge to that of the whole (`MergedSample`): what is
among the `k` smallest of all is among the `k` smallest of its part.

Memory: `streams x states x k x d_model` numbers per modality and process, however large the data
set; or as much on disk (`mm_lens.profiling.stores`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from mm_lens._storage.hashing import digest, sampling_key
from mm_lens.layout.layout import TokenLayout
from mm_lens.metrics.tokens import Tokens
from mm_lens.profiling.stores import MemoryStore, Store

Modality: TypeAlias = Literal["visual", "text", "all"]
MODALITIES: tuple[Modality, ...] = ("visual", "text", "all")


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
        keys = torch.cat([self.key[: self.size], key])
        kept = keys.argsort(stable=True)[: self.k]
        taken = (kept[kept >= self.size] - self.size).sort().values
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
    def order(self) -> Int64[Tensor, " size"]:
        """The slots in use by ascending key: the first n of them are a smaller sample."""
        order: Tensor = self.key[: self.size].argsort(stable=True)
        return order


class Reservoir:
    """A `BottomK` of one modality, and a store of the states of its tokens."""

    def __init__(self, k: int, store: Store) -> None:
        self.bottom, self.store = BottomK(k), store
        self._places: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._slots = self._keys = torch.zeros(0, dtype=torch.int64)

    def plan(
        self,
        group: Modality,
        layout: TokenLayout,
        input_ids: Int[Tensor, "batch pos"],
        samples: Int64[Tensor, " batch"],
        documents: Int64[Tensor, " batch"],
        seed: int,
    ) -> int:
        """Decide which tokens of a batch `write` will keep, and return how many.

        A token's position counts from the first attended one: padding does not shift it.
        """
        mask = layout.mask(group)
        position = (layout.mask("all").cumsum(1) - 1)[mask].cpu()
        rows, columns = (index.cpu() for index in mask.nonzero(as_tuple=True))
        key = sampling_key(samples[rows], position, seed)
        token_id = input_ids[mask].cpu().long()
        taken, self._slots = self.bottom.offer(key, documents[rows], position, token_id)
        self._keys = key[taken]
        self._places = {torch.device("cpu"): (rows[taken], columns[taken])}
        return len(taken)

    def write(self, stream: str, state: int, x: Float[Tensor, "batch pos d"]) -> None:
        """Keep the planned rows of `x`, the states at one hook."""
        if not len(self._slots):
            return
        if x.device not in self._places:  # the indices move once, not once for each hook
            rows, columns = self._places[torch.device("cpu")]
            self._places[x.device] = rows.to(x.device), columns.to(x.device)
        kept = x[self._places[x.device]].detach().cpu()
        self.store.write(stream, state, self._slots, self._keys, kept)


class TokenSample:
    """The sample of visual and of text tokens of some data, collected batch by batch.

    Args:
        k: most tokens per modality.
        modalities: those that will be asked for; all tokens are sampled as a part of both.
        seed: of the choice of tokens.
        store: makes the store of a modality; by default in memory.
    """

    def __init__(
        self,
        k: int,
        modalities: Sequence[Modality],
        seed: int,
        store: Callable[[Modality], Store] | None = None,
    ) -> None:
        self.k, self.seed = k, seed
        groups: Sequence[Modality] = ("visual", "text") if "all" in modalities else modalities
        self.reservoirs = {
            group: Reservoir(k, store(group) if store else MemoryStore(k)) for group in groups
        }

    def plan(
        self,
        layout: TokenLayout,
        input_ids: Int[Tensor, "batch pos"],
        samples: Sequence[str],
        documents: Sequence[int],
    ) -> int:
        """Decide which tokens of a batch to keep, and return how many.

        Args:
            layout: of the batch.
            input_ids: of the batch.
            samples: id of the sample in each row.
            documents: id of what the row shares with others (its image): what intervals resample
                and folds hold out.
        """
        keys = torch.tensor([digest(name) for name in samples])
        groups = torch.tensor(documents)
        return sum(
            reservoir.plan(group, layout, input_ids, keys, groups, self.seed)
            for group, reservoir in self.reservoirs.items()
        )

    def write(self, stream: str, state: int, x: Float[Tensor, "batch pos d"]) -> None:
        """Keep the planned rows of `x`."""
        for reservoir in self.reservoirs.values():
            reservoir.write(stream, state, x)

    def hooks(self, stream: str, names: Iterable[str]) -> list[tuple[str, Callable[..., None]]]:
        """Forward hooks that write the states at `names`, in the order of the states."""

        def capture(state: int) -> Callable[..., None]:
            def keep(x: Tensor, hook: Any) -> None:
                self.write(stream, state, x)

            return keep

        return [(name, capture(state)) for state, name in enumerate(names)]


class MergedSample:
    """The sample of tokens of all the data, from those of its parts.

    Args:
        k: most tokens per modality; that of the parts.
        modalities: those that can be asked for.
        parts: the sample of each part.
    """

    def __init__(
        self, k: int, modalities: Sequence[Modality], parts: Sequence[TokenSample]
    ) -> None:
        self.k, self.modalities, self.parts = k, tuple(modalities), tuple(parts)

    def count(self, modality: Modality) -> int:
        """Number of tokens in the sample of a modality."""
        return min(self.k, sum(r.bottom.size for _, r in self._reservoirs(modality)))

    def seen(self) -> dict[str, int]:
        """Number of tokens in the data, by modality."""
        groups = self.parts[0].reservoirs
        return {group: sum(p.reservoirs[group].bottom.seen for p in self.parts) for group in groups}

    def tokens(self, stream: str, state: int, modality: Modality) -> Tokens | None:
        """The sample at one hook by ascending key; None if it is empty.

        Raises:
            DataError: a file of states is damaged.
        """
        groups = [(g, r) for g, r in self._reservoirs(modality) if r.bottom.size]
        if not groups:
            return None
        found = [reservoir for _, reservoir in groups]
        entries = torch.cat([r.bottom.entries() for r in found], 1)
        slots = torch.cat([torch.arange(r.bottom.size) for r in found])
        owner = torch.cat([torch.full((r.bottom.size,), i) for i, r in enumerate(found)])
        first = entries[0].argsort(stable=True)[: self.k]
        key, sample, position, token_id = entries[:, first]
        x: Tensor | None = None
        for i, reservoir in enumerate(found):
            mine = (owner[first] == i).nonzero().squeeze(1)
            if len(mine):
                rows = reservoir.store.read(stream, state, slots[first[mine]], key[mine])
                x = rows.new_empty(len(first), rows.shape[1]) if x is None else x
                x[mine] = rows
        assert x is not None, "a sample that is not empty has a first token"
        kinds = torch.tensor([MODALITIES.index(group) for group, _ in groups])
        mixed = kinds[owner[first]] if modality == "all" else None
        return Tokens(x, sample, position, token_id, key, mixed)

    def _reservoirs(self, modality: Modality) -> list[tuple[Modality, Reservoir]]:
        return [
            (group, reservoir)
            for part in self.parts
            for group, reservoir in part.reservoirs.items()
            if modality in (group, "all")
        ]
