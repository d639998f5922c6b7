"""A bounded sample of tokens, with their states at every hook.

Which tokens are kept follows from a hash of (seed, sample id, position) alone: the `k` smallest
("bottom-k", METRICS §4). So the sample is uniform without replacement, the same at every hook and
in every stream, the same for any batch size and order, and known *before* the forward pass: only
the rows that are kept are ever copied.

Samples of parts of the data (`TokenSample`) merge to that of the whole (`MergedSample`): what is
among the `k` smallest of all is among the `k` smallest of its part.

The vision tower's tokens are patches (`mm_lens.profiling.points.patches`), a group of their own,
of which those that become a token of the language model have its key.

Memory: `streams x states x k x width` numbers per modality and process, however large the data
set; or as much on disk (`mm_lens.profiling.stores`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from mm_lens._storage.hashing import digest, sampling_key
from mm_lens.layout.layout import VISUAL, TokenLayout
from mm_lens.metrics.tokens import Tokens
from mm_lens.profiling.collecting.bottom_k import BottomK
from mm_lens.profiling.collecting.staging import Staging
from mm_lens.profiling.points.patches import Patches
from mm_lens.profiling.points.point import Point
from mm_lens.profiling.stores import MemoryStore, Store

Modality: TypeAlias = Literal["visual", "text", "all"]
PATCH: Literal["patch"] = "patch"
Group: TypeAlias = Literal["visual", "text", "all", "patch"]
"""A modality, or the patches that the vision tower sees."""
MODALITIES: tuple[Modality, ...] = ("visual", "text", "all")
BETWEEN: Literal["visual-text"] = "visual-text"
"""Where a table has what compares the two, as if it were a modality."""


@dataclass(frozen=True)
class Offer:
    """The tokens of one group in a batch: where they lie, and what they are.

    `rows` and `columns` are indices into the first two axes of a hook's tensor; `per_tile` is 0 for
    tokens of the language model, for patches how many a tile has: a tensor of the tower with one
    column more has a class token in front of them.
    """

    rows: Int64[Tensor, " n"]
    columns: Int64[Tensor, " n"]
    key: Int64[Tensor, " n"]
    sample: Int64[Tensor, " n"]
    position: Int64[Tensor, " n"]
    token_id: Int64[Tensor, " n"]
    per_tile: int = 0

    def take(self, which: Int64[Tensor, " m"] | Bool[Tensor, " n"]) -> Offer:
        """Some of them."""
        names = ("rows", "columns", "key", "sample", "position", "token_id")
        return replace(self, **{name: getattr(self, name)[which] for name in names})


def offer_tokens(
    group: Modality,
    layout: TokenLayout,
    input_ids: Int[Tensor, "batch pos"],
    samples: Int64[Tensor, " batch"],
    documents: Int64[Tensor, " batch"],
    seed: int,
    start: Int64[Tensor, " batch"] | None = None,
) -> Offer:
    """The tokens of a group in a batch.

    A token's position counts from the first attended one: padding does not shift it. `start` is
    how many came before this forward pass.
    """
    mask = layout.mask(group)
    position = (layout.mask("all").cumsum(1) - 1)[mask].cpu()
    rows, columns = (index.cpu() for index in mask.nonzero(as_tuple=True))
    if start is not None:
        position = position + start[rows]
    key = sampling_key(samples[rows], position, seed)
    return Offer(rows, columns, key, documents[rows], position, input_ids[mask].cpu().long())


def offer_patches(
    patches: Patches,
    image_token_id: int,
    samples: Int64[Tensor, " batch"],
    documents: Int64[Tensor, " batch"],
    seed: int,
) -> Offer:
    """The patches that the tower sees of a batch."""
    p = patches
    key = sampling_key(samples[p.row], p.position, seed)
    token_id = torch.full_like(key, image_token_id)
    return Offer(p.tile, p.patch, key, documents[p.row], p.position, token_id, p.per_tile)


class Reservoir:
    """A `BottomK` of one group, and a store of the states of its tokens.

    Attributes:
        limit: tokens with larger keys are not taken in; None: any.
        staging: takes rows to the store; None: they are put at once.
    """

    def __init__(self, k: int, store: Store) -> None:
        self.bottom, self.store = BottomK(k), store
        self.limit: int | None = None
        self.staging: Staging | None = None
        self._offer: Offer | None = None
        self._places: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._slots = torch.zeros(0, dtype=torch.int64)

    def plan(self, offer: Offer) -> int:
        """Decide which tokens of a batch `write` will keep, and return how many."""
        if self.limit is not None:
            few = offer.take(offer.key <= self.limit)
            self.bottom.seen += len(offer.key) - len(few.key)
            offer = few
        taken, self._slots = self.bottom.offer(
            offer.key, offer.sample, offer.position, offer.token_id
        )
        self._offer = offer.take(taken)
        self._places = {torch.device("cpu"): (self._offer.rows, self._offer.columns)}
        return len(taken)

    def look(self, offer: Offer) -> int:
        """As `plan`, but nothing is taken in yet: `rows` then gives what `put` will keep."""
        self._offer = offer.take(self.bottom.choose(offer.key)[1])
        self._places = {torch.device("cpu"): (self._offer.rows, self._offer.columns)}
        return len(self._offer.key)

    def rows(self, x: Float[Tensor, "batch pos *rest"]) -> Float[Tensor, "n width"]:
        """The planned rows of `x`, the states at one hook, all heads together, on its device."""
        assert self._offer is not None, "planned before"
        if x.device not in self._places:  # the indices move once, not once for each hook
            rows, columns = self._places[torch.device("cpu")]
            self._places[x.device] = rows.to(x.device), columns.to(x.device)
        rows, columns = self._places[x.device]
        if self._offer.per_tile:
            columns = columns + (x.shape[1] - self._offer.per_tile)  # behind the class token
        return rearrange(x[rows, columns].detach(), "n ... -> n (...)")

    def write(self, stream: str, state: int, x: Float[Tensor, "batch pos *rest"]) -> None:
        """Keep the planned rows of `x`, the states at one hook."""
        if len(self._slots):
            if self.staging is None:
                self.put(stream, state, self.rows(x).cpu())
            else:
                self.staging.take(self.rows(x), self._putting(stream, state))

    def put(self, stream: str, state: int, rows: Float[Tensor, "n width"]) -> None:
        """Keep these rows, which are the planned ones."""
        assert self._offer is not None, "planned before"
        self._putting(stream, state)(rows)

    def _putting(self, stream: str, state: int) -> Callable[[Tensor], None]:
        """Puts rows where the planned ones belong, also when others have been planned since."""
        assert self._offer is not None, "planned before"
        return partial(self.store.write, stream, state, self._slots, self._offer.key)


class TokenSample:
    """The sample of visual and of text tokens of some data, collected batch by batch.

    Args:
        k: most tokens per group.
        modalities: those that will be asked for, "patch" among them for hooks of the tower; all
            tokens are sampled as a part of both.
        seed: of the choice of tokens.
        store: makes the store of a group; by default in memory.
    """

    def __init__(
        self,
        k: int,
        modalities: Sequence[Group],
        seed: int,
        store: Callable[[Group], Store] | None = None,
    ) -> None:
        self.k, self.seed = k, seed
        groups: list[Group] = ["visual", "text"] if "all" in modalities else [*modalities]
        if PATCH in modalities and PATCH not in groups:
            groups.append(PATCH)
        self.reservoirs = {
            group: Reservoir(k, store(group) if store else MemoryStore(k)) for group in groups
        }

    def speed_up(self, limits: Mapping[Group, int], staging: Staging) -> None:
        """Leave out what cannot stay, and have rows copied beside the forward pass.

        Args:
            limits: the largest key that can be in the sample of all the data, where it is known.
            staging: to be drained before the states are read.
        """
        for group, reservoir in self.reservoirs.items():
            reservoir.limit, reservoir.staging = limits.get(group), staging

    def plan(
        self,
        layout: TokenLayout,
        input_ids: Int[Tensor, "batch pos"],
        samples: Sequence[str],
        documents: Sequence[int],
        patches: Patches | None = None,
    ) -> int:
        """Decide which tokens of a batch to keep, and return how many.

        Args:
            layout: of the batch.
            input_ids: of the batch.
            samples: id of the sample in each row.
            documents: id of what the row shares with others (its image): what intervals resample
                and folds hold out.
            patches: that the tower sees of the batch.
        """
        keys = torch.tensor([digest(name) for name in samples])
        offers = self.offers(layout, input_ids, keys, torch.tensor(documents), patches)
        return sum(self.reservoirs[group].plan(offer) for group, offer in offers.items())

    def offers(
        self,
        layout: TokenLayout,
        input_ids: Int[Tensor, "batch pos"],
        samples: Int64[Tensor, " batch"],
        documents: Int64[Tensor, " batch"],
        patches: Patches | None,
        start: Int64[Tensor, " batch"] | None = None,
    ) -> dict[Group, Offer]:
        """The tokens of every group in a batch; `samples` are digests of ids."""
        none = torch.zeros(0, dtype=torch.int64)
        found: dict[Group, Offer] = {}
        for group in self.reservoirs:
            if group != PATCH:
                more = (input_ids, samples, documents, self.seed, start)
                found[group] = offer_tokens(group, layout, *more)
            elif patches is None:
                found[group] = Offer(none, none, none, none, none, none, 1)
            else:
                image = int(input_ids[layout.modality == VISUAL][:1].sum())
                found[group] = offer_patches(patches, image, samples, documents, self.seed)
        return found

    def groups(self, point: Point) -> list[Group]:
        """The groups whose tokens a hook sees."""
        return [group for group in self.reservoirs if (group == PATCH) == point.tower]

    def write(self, stream: str, state: int, x: Tensor, point: Point | None = None) -> None:
        """Keep the planned rows of `x`."""
        groups = self.groups(point) if point else [g for g in self.reservoirs if g != PATCH]
        for group in groups:
            self.reservoirs[group].write(stream, state, x)

    def hooks(
        self, stream: str, points: Iterable[tuple[int, Point]]
    ) -> list[tuple[str, Callable[..., None]]]:
        """Forward hooks that write the states at these points, each with its index."""

        def capture(state: int, point: Point) -> Callable[..., None]:
            def keep(x: Tensor, hook: Any) -> None:
                self.write(stream, state, x, point)

            return keep

        return [(point.hook, capture(state, point)) for state, point in points]


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

    def count(self, modality: Group) -> int:
        """Number of tokens in the sample of a modality."""
        return min(self.k, sum(r.bottom.size for _, r in self._reservoirs(modality)))

    def seen(self) -> dict[str, int]:
        """Number of tokens in the data, by modality."""
        groups = self.parts[0].reservoirs
        return {group: sum(p.reservoirs[group].bottom.seen for p in self.parts) for group in groups}

    def tokens(self, stream: str, state: int, modality: Group) -> Tokens | None:
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
        mixed = None
        if modality == "all":
            kinds = torch.tensor([("visual", "text").index(group) for group, _ in groups])
            mixed = kinds[owner[first]]
        return Tokens(x, sample, position, token_id, key, mixed)

    def _reservoirs(self, modality: Group) -> list[tuple[Group, Reservoir]]:
        wanted = ("visual", "text") if modality == "all" else (modality,)
        return [
            (group, reservoir)
            for part in self.parts
            for group, reservoir in part.reservoirs.items()
            if group in wanted
        ]
