"""A bounded sample of tokens, with their states at every hook.

Which tokens are kept follows from a hash of (seed, sample id, position) alone: the `k` smallest
("bottom-k", METRICS §4). So the sample is uniform without replacement, the same at every hook and
in every stream, the same for any batch size and order, and known *before* the forward pass: only
the rows that are kept are ever copied.

Memory: ``streams x states x k x d_model`` numbers per modality, however large the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from mm_lens.layout import TokenLayout
from mm_lens.metrics.tokens import Tokens, sampling_key

Modality: TypeAlias = Literal["visual", "text", "all"]
MODALITIES: tuple[Modality, ...] = ("visual", "text", "all")


def digest(content: str | bytes) -> int:
    """A 63-bit id of some content: the same in every run and on every machine."""
    data = content.encode() if isinstance(content, str) else content
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big") >> 1


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

    @property
    def order(self) -> Int64[Tensor, " size"]:
        """The slots in use by ascending key: the first n of them are a smaller sample."""
        order: Tensor = self.key[: self.size].argsort(stable=True)
        return order


class Reservoir:
    """A `BottomK` of one modality and the states of its tokens: per stream ``[states, k, d]``.

    The states have the dtype of the model's activations and live in the CPU's memory.
    """

    def __init__(self, k: int, n_states: int) -> None:
        self.bottom, self.n_states = BottomK(k), n_states
        self.buffers: dict[str, Float[Tensor, "states k d"]] = {}
        self._rows = self._columns = self._slots = torch.zeros(0, dtype=torch.int64)

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
        self._rows, self._columns = rows[taken], columns[taken]
        return len(taken)

    def write(self, stream: str, state: int, x: Float[Tensor, "batch pos d"]) -> None:
        """Keep the planned rows of `x`, the states at one hook."""
        if stream not in self.buffers:
            shape = (self.n_states, self.bottom.k, x.shape[-1])
            self.buffers[stream] = torch.zeros(shape, dtype=x.dtype)
        rows = x[self._rows.to(x.device), self._columns.to(x.device)]
        self.buffers[stream][state, self._slots] = rows.detach().cpu()


class TokenSample:
    """The sample of visual and of text tokens, and of all tokens as a part of both.

    Args:
        k: most tokens per modality.
        n_states: number of states (hooks) per stream.
        modalities: those that will be asked for.
        seed: of the choice of tokens.
    """

    def __init__(self, k: int, n_states: int, modalities: Sequence[Modality], seed: int) -> None:
        self.k, self.n_states, self.seed = k, n_states, seed
        groups: Sequence[Modality] = ("visual", "text") if "all" in modalities else modalities
        self.reservoirs = {group: Reservoir(k, n_states) for group in groups}
        self.modalities = tuple(modalities)

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

    def count(self, modality: Modality) -> int:
        """Number of tokens in the sample of a modality."""
        if modality != "all":
            return self.reservoirs[modality].bottom.size
        return min(self.k, sum(r.bottom.size for r in self.reservoirs.values()))

    def seen(self) -> dict[str, int]:
        """Number of tokens in the data, by modality."""
        return {group: reservoir.bottom.seen for group, reservoir in self.reservoirs.items()}

    def tokens(
        self, stream: str, state: int, modality: Modality, limit: int | None = None
    ) -> Tokens | None:
        """The sample at one hook by ascending key, cut to the first `limit`; None if empty."""
        chosen = self.reservoirs.values() if modality == "all" else [self.reservoirs[modality]]
        parts = [part for part in chosen if part.bottom.size]
        if not parts:
            return None
        orders = [part.bottom.order for part in parts]
        merged = torch.cat([p.bottom.key[o] for p, o in zip(parts, orders, strict=True)])
        first = merged.argsort(stable=True)[: self.k][:limit]

        def gather(column: Callable[[Reservoir], Tensor]) -> Tensor:
            return torch.cat([column(p)[o] for p, o in zip(parts, orders, strict=True)])[first]

        return Tokens(
            x=gather(lambda p: p.buffers[stream][state]),
            sample=gather(lambda p: p.bottom.sample),
            position=gather(lambda p: p.bottom.position),
            token_id=gather(lambda p: p.bottom.token_id),
        )
