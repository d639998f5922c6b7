"""Cutting keys off from queries, pass by pass, and seeing that something is cut and something left.

What is cut is said of the prompt and, by `mm_lens.model.running.writing.reach`, of what is written
behind it. A decoding step computes the latest positions alone, and may keep the latest keys alone
(a sliding window): what is cut there are those rows and columns of the whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional

from mm_lens.arguments import resolve_numbers
from mm_lens.errors import InputError, MMLensWarning
from mm_lens.layout.layout import TokenLayout
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.running.frames import Frame
from mm_lens.model.running.masks import hide_keys
from mm_lens.model.running.writing import Place, reach

Cut: TypeAlias = "Callable[[Frame], Bool[Tensor, 'rows head query key']]"
"""What is cut in a pass: of its queries, among all keys of the text. The head axis may be 1."""

MADE = "The knock-out"


class Edges:
    """Which queries of the prompt, and of what is written behind it, lose which keys.

    Attributes:
        layout: of the prompt.
    """

    layout: TokenLayout

    def __init__(
        self,
        layout: TokenLayout,
        query: Any,
        key: Any,
        keep_self: bool = False,
        heads: Bool[Tensor, " head"] | None = None,
    ) -> None:
        """Take note of two groups.

        Args:
            layout: of the prompt.
            query: group of the queries, as `reach` takes it.
            key: group of the keys.
            keep_self: leave each query the key of its own position.
            heads: that lose them; None: all.
        """
        self.layout, self.query, self.key, self.keep_self = layout, query, key, keep_self
        self.heads = heads
        self._last: tuple[Frame, Tensor] | None = None

    def __call__(self, frame: Frame) -> Bool[Tensor, "rows head query key"]:
        """What is cut in a pass.

        Raises:
            InputError: it is a pass of other inputs.
        """
        if self._last is None or self._last[0] is not frame:  # once for all blocks
            self._last = frame, self.at(frame.place(self.layout, MADE))
        return self._last[1]

    def at(self, place: Place) -> Bool[Tensor, "rows head query key"]:
        """What is cut at a place."""
        rows = place.rows.to(self.layout.device)
        queries = reach(self.layout, self.query, place.total)[rows, place.start :]
        keys = reach(self.layout, self.key, place.total)[rows]
        cut = queries[:, :, None] & keys[:, None, :]
        if self.keep_self:
            own = torch.eye(place.total, dtype=torch.bool, device=cut.device)
            cut = cut & ~own[place.start :]
        if self.heads is None:
            return cut[:, None]
        return cut[:, None] & self.heads.to(cut.device)[:, None, None]


def same_for_copies(edges: Bool[Tensor, "batch head query key"], layout: TokenLayout) -> Cut:
    """The same in passes of inputs with `layout`, or of copies of them, one after the other."""

    def cut(frame: Frame) -> Bool[Tensor, "rows head query key"]:
        frame.require(layout, MADE)
        return edges.repeat(frame.shape[0] // len(edges), 1, 1, 1)

    return cut


class Check:
    """Whether a knock-out takes away something, and leaves something, block by block."""

    def __init__(self, layout: TokenLayout, what: str, blocks: Sequence[int]) -> None:
        """Begin.

        Args:
            layout: of the prompt.
            what: names the knock-out in messages.
            blocks: that are told of.
        """
        self.layout, self.what, self.blocks = layout, what, sorted(blocks)
        self.cut = torch.zeros(layout.shape[0], dtype=torch.bool)
        self.open = False

    def __call__(self, block: int, frame: Frame, allowed: Tensor, edges: Tensor) -> None:
        """Take note of one block of a running pass; the last of them gives the verdict.

        While a text is written there is one verdict for all its passes, from `close`.

        Raises:
            InputError: a query is left without keys; or nothing was cut.
        """
        place = frame.place(self.layout, MADE)
        real = place.of(reach(self.layout, "all", place.total))
        cut = self.block(block, allowed, edges, real, place.start)
        several = frame.writing or frame.decoding
        if block == self.blocks[0] and not several:
            self.cut[:] = False
        self.cut[place.rows[cut]] = True
        self.open = self.open or several
        if block == self.blocks[-1] and not several:
            self.verdict(self.cut, self._where())

    def close(self) -> None:
        """The verdict on a text that was written.

        Raises:
            InputError: nothing was cut in any pass.
        """
        if self.open:
            self.verdict(self.cut, self._where())

    def _where(self) -> str:
        return "any of the blocks" if len(self.blocks) > 1 else f"block {self.blocks[-1]}"

    def block(
        self,
        block: int,
        allowed: Bool[Tensor, "rows heads query key"],
        edges: Bool[Tensor, "batch head query key"],
        real: Bool[Tensor, "batch query"],
        start: int = 0,
    ) -> Bool[Tensor, " batch"]:
        """In which rows a block's attention loses something.

        Args:
            block: its number.
            allowed: which keys its queries see; of one row where all see the same.
            edges: what they lose.
            real: which queries are no padding.
            start: position of the first query.

        Raises:
            InputError: a query is left without keys.
        """
        edges = edges.to(allowed.device)
        left = allowed & ~edges
        alone = (allowed.any(-1) & ~left.any(-1)).any(1) & real.to(allowed.device)
        if bool(alone.any()):
            row, position = alone.nonzero()[0].tolist()
            raise InputError(
                f"Position {position + start} of row {row} would be left without any key to attend "
                f"to at block {block}, so nothing could be renormalised. Leave it out of query=, "
                "leave a key that it sees out of key=, or pass keep_self=True."
            )
        cut: Tensor = (allowed & edges).flatten(1).any(1)
        return cut.cpu()

    def verdict(self, cut: Bool[Tensor, " batch"], where: str) -> None:
        """Refuse a knock-out that takes nothing away in some row.

        Raises:
            InputError: naming the row.
        """
        if not bool(cut.all()):
            row = int((~cut).nonzero()[0])
            raise InputError(
                f"There is nothing to knock out in row {row}: of {self.what}, no query sees a key "
                f"at {where}. A query sees what the model's attention mask shows it: mostly what "
                "comes before it, with a sliding window only the latest of that."
            )


@contextmanager
def mask_keys(
    model: VisionLanguageBridge, blocked: Mapping[int, Cut], check: Check | None = None
) -> Iterator[None]:
    """Mask keys in some blocks.

    `check` is told of each block the keys that its queries see, and those that are to be masked.

    Raises:
        InputError: a block has no attention; other inputs are run.
    """

    def hidden(states: Tensor, layer: int, cut: Cut) -> Tensor:
        frame = model.context.frame
        return kept_keys(frame, layer, cut(frame))

    def told(seen: Tensor, edges: Tensor, layer: int) -> None:
        assert check is not None
        check(layer, model.context.frame, seen, edges)

    with ExitStack() as stack:
        for layer, cut in blocked.items():
            told_of = None if check is None else partial(told, layer=layer)
            hide = partial(hidden, layer=layer, cut=cut)
            stack.enter_context(hide_keys(attention_of(model, layer), hide, told_of))
        yield


def kept_keys(
    frame: Frame, layer: int, edges: Bool[Tensor, "rows head query key"]
) -> Bool[Tensor, "rows head query kept"]:
    """Edges of those keys that a block's cache has when it attends: a window keeps the latest, a
    cache of fixed length has room behind them."""
    past = frame.inputs.get("past_key_values")
    if past is None or not hasattr(past, "get_mask_sizes"):
        return edges
    length, offset = past.get_mask_sizes(edges.shape[2], layer)
    kept = edges[..., offset : offset + length]
    return functional.pad(kept, (0, length - kept.shape[-1]))


def attention_of(model: VisionLanguageBridge, layer: int) -> Any:
    """The attention of a block.

    Raises:
        InputError: it has none.
    """
    attention = getattr(model.blocks[layer], "attn", None)
    if attention is None:
        raise InputError(
            f"Block {layer} has no attention to knock out (it mixes positions in another way). "
            "Name blocks that have some in layers=."
        )
    return attention


def with_attention(model: VisionLanguageBridge) -> list[int]:
    """Blocks that have attention to knock out.

    Raises:
        InputError: none has.

    Warns:
        MMLensWarning: some have none, and let pass what is knocked out elsewhere.
    """
    without = [k for k, block in enumerate(model.blocks) if getattr(block, "attn", None) is None]
    if len(without) == model.cfg.n_layers:
        attention_of(model, 0)
    if without:
        named = ", ".join(map(str, without))
        warnings.warn(
            f"Blocks {named} have no attention to knock out: they mix positions in another way, "
            "and let pass there what is knocked out in the others.",
            MMLensWarning,
            stacklevel=3,
        )
    return [k for k in range(model.cfg.n_layers) if k not in without]


def choose_heads(
    model: VisionLanguageBridge, heads: Sequence[int] | None
) -> Bool[Tensor, " head"] | None:
    """Which heads are meant; None for all.

    Raises:
        InputError: no head, or none of this number.
    """
    if heads is None:
        return None
    n = model.cfg.n_heads
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[list(resolve_numbers("heads=", "head", heads, n))] = True
    return chosen
