"""One forward pass: what it was called with, what its positions are, where in a text it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from mm_lens.errors import HookError, InputError
from mm_lens.layout.layout import TokenLayout
from mm_lens.layout.matching import describe_difference
from mm_lens.model.families import Family
from mm_lens.model.families.known import recall
from mm_lens.model.running.generation import with_answer
from mm_lens.model.running.writing import Place, find_place, first_positions


@dataclass
class Selection:
    """The rows of one group in one forward pass: `positions` where `valid`, row by row.

    The tensors follow the activations to their devices (a model may be split over several).
    """

    positions: Int[Tensor, "batch n_max"]
    valid: Bool[Tensor, "batch n_max"]
    full: bool = field(init=False)
    batch: Int[Tensor, "batch 1"] = field(init=False)
    run: int | None = field(init=False)

    def __post_init__(self) -> None:
        self.full = bool(self.valid.all())
        batch = torch.arange(len(self.positions), device=self.positions.device)
        self.batch = rearrange(batch, "batch -> batch 1")
        # Where the rows of the group are next to each other, and the same in all of the batch.
        first = int(self.positions[0, 0])
        there = torch.arange(first, first + self.positions.shape[1], device=batch.device)
        self.run = first if self.full and bool((self.positions == there).all()) else None

    def on(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Batch index, positions and validity on the device of `x`."""
        if self.positions.device != x.device:
            there = (part.to(x.device) for part in (self.batch, self.positions, self.valid))
            self.batch, self.positions, self.valid = there
        return self.batch, self.positions, self.valid

    def gather(self, x: Shaped[Tensor, "batch pos *rest"]) -> Shaped[Tensor, "batch n_max *rest"]:
        """The rows of the group, zero where a row of the batch has fewer than `n_max`: a copy."""
        rows, n = self.positions.shape
        if self.run is not None and x.shape[0] == rows and x.shape[1] >= self.run + n:
            piece = x[:, self.run : self.run + n]  # copied as a whole, not number by number
            return piece.clone(memory_format=torch.contiguous_format)
        batch, positions, valid = self.on(x)
        found = x[batch, positions]
        if self.full:
            return found
        missing = rearrange(~valid, f"batch n -> batch n {'1 ' * (x.ndim - 2)}")
        return found.masked_fill(missing, 0)

    def scatter(
        self, x: Shaped[Tensor, "batch pos *rest"], rows: Shaped[Tensor, "batch n_max *rest"]
    ) -> Shaped[Tensor, "batch pos *rest"]:
        """A copy of `x` with the rows of the group replaced; padding in `rows` is ignored."""
        batch, positions, valid = self.on(x)
        if self.full:  # a mask would have the GPU wait
            return x.index_put((batch, positions), rows.to(x.dtype))
        batch = repeat(batch, "batch 1 -> batch n", n=positions.shape[1])
        at = (batch[valid], positions[valid])
        return x.index_put(at, rows[valid].to(x.dtype))


class Frame:
    """One forward pass: its keyword arguments and, worked out when asked for, its layout."""

    def __init__(
        self,
        family: Family,
        inputs: Mapping[str, Any],
        explicit: TokenLayout | None,
        writing: bool = False,
        prompt: Frame | None = None,
    ) -> None:
        """Take note of a pass.

        Args:
            family: of the model.
            inputs: its keyword arguments.
            explicit: its layout, where it starts from embeddings.
            writing: whether `generate` runs it.
            prompt: the pass that a decoding step goes on from, if it is known.
        """
        self.family, self.inputs, self.explicit = family, inputs, explicit
        self.writing, self.prompt = writing, prompt
        # Now: the layers fill the cache while the pass runs.
        past = inputs.get("past_key_values")
        self.past = 0 if past is None else int(past.get_seq_length())
        self.decoding = self.past > 0
        self.known = recall(family, inputs)
        self._selections: dict[str, Selection | None] = {}
        self._fits: list[TokenLayout] = []  # found to be that of this pass
        self._begins: list[TokenLayout] = []  # and of what it begins with
        self._places: list[tuple[TokenLayout, Place]] = []

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, pos)."""
        tokens = self.inputs.get("input_ids")
        start: Tensor = self.inputs["inputs_embeds"] if tokens is None else tokens
        return start.shape[0], start.shape[1]

    @cached_property
    def layout(self) -> TokenLayout:
        """Layout of the pass.

        Raises:
            HookError: it starts from embeddings, and no layout was given or one of another shape.
        """
        start = self._start()
        if start is None:
            return self.known.layout_there(self.family, self.inputs)
        if self.explicit is None:
            raise HookError(
                "A modality hook cannot tell visual from text positions in a forward pass that "
                "starts from embeddings (inputs_embeds, start_at_layer) or encoded images. Say "
                "which inputs they come from: `with model.bound(inputs): ...`."
            )
        batch, positions = start.shape[:2]
        layout = self._copied(self.explicit, start)
        if layout.shape != (batch, positions):
            raise HookError(
                f"The forward pass starts from embeddings of shape {(batch, positions)} [batch, "
                f"pos], but the bound inputs have {layout.shape}. Bind the inputs they come from."
            )
        return layout

    def _copied(self, layout: TokenLayout, start: Tensor) -> TokenLayout:
        """The layout of a pass of copies of the bound rows, if they can be told apart."""
        rows, (batch, positions) = layout.shape[0], start.shape[:2]
        if positions > layout.shape[1] and not start.is_floating_point():
            layout = with_answer(layout, positions - layout.shape[1])  # `generate` without cache
        copies, rest = divmod(batch, rows)
        if rest or copies < 2 or layout.shape[1] != positions:
            return layout
        if rows == 1:
            return layout.repeat(copies)
        if start.is_floating_point():
            return layout  # whose copy each row is, embeddings do not say
        # `generate` puts the beams of a row, or the sequences it returns for it, side by side.
        beams = layout.take([row for row in range(rows) for _ in range(copies)])
        there = start[:, : self.explicit.shape[1]] == self.family.image_token_id  # type: ignore[union-attr]
        alike = torch.equal(there, beams.mask("visual")[:, : there.shape[1]])
        return beams if alike else layout

    def _start(self) -> Tensor | None:
        """What the pass starts from, if it is not tokens and pixels."""
        tokens: Tensor | None = self.inputs.get("input_ids")
        if tokens is None:
            embeddings: Tensor = self.inputs["inputs_embeds"]
            return embeddings
        # `generate` of transformers encodes images first, and leaves out what they were.
        encoded = self.inputs.get("mm_encoder_outputs") and self.inputs.get("pixel_values") is None
        holds_images = encoded and bool((tokens == self.family.image_token_id).any())
        return tokens if holds_images else None

    def selection(self, group: str) -> Selection | None:
        """Rows of `group`; None if the pass has none."""
        from_tokens = self._start() is None
        found = self.known.selections if from_tokens else self._selections
        if group not in found:
            layout = self.known.layout(self.family, self.inputs) if from_tokens else self.layout
            valid = layout.valid(group)
            found[group] = Selection(layout.positions(group), valid) if valid.any() else None
        selection: Selection | None = found[group]
        return selection

    def fits(self, layout: TokenLayout) -> bool:
        """Whether this pass is of inputs with `layout`, or of copies of them, or they of it."""
        if not any(layout is known for known in self._fits):
            if describe_difference(self.layout, layout):
                return False
            self._fits.append(layout)
        return True

    def begins(self, layout: TokenLayout, rows: Int[Tensor, " rows"]) -> bool:
        """Whether this pass is of inputs with `layout`, their rows in this order, or, while a text
        is written without a cache, of what it has become."""
        if not any(layout is known for known in self._begins):
            whole, length = self.layout, layout.shape[1]
            if self.writing and whole.shape[1] > length:
                whole = first_positions(whole, length)
            if whole.shape[0] != len(rows):
                return False
            if describe_difference(whole, layout.take(rows.tolist())):
                return False
            self._begins.append(layout)
        return True

    def place(self, layout: TokenLayout, what: str) -> Place:
        """Where this pass stands in a text that begins with inputs of `layout`.

        See `mm_lens.model.running.writing.find_place`.
        """
        for known, place in self._places:
            if known is layout:
                return place
        self._places.append((layout, find_place(self, layout, what)))
        return self._places[-1][1]

    def require(self, layout: TokenLayout, what: str) -> None:
        """Refuse to run what was made for other inputs, whose positions are other things.

        Args:
            layout: of the inputs that it was made for; a pass of copies of them will do.
            what: names it in the message.

        Raises:
            InputError: naming the first position that is not the same.
            HookError: the layout of the pass is unknown.
        """
        if self.shape[0] % layout.shape[0] or not self.fits(layout):
            raise InputError(
                f"{what} was made for other inputs than those of this forward pass: "
                f"{describe_difference(layout, self.layout)}. Make it for the inputs that are run."
            )
