"""Which positions of a text that is being written a forward pass computes.

`generate` runs the prompt once, then one new position at a time (with a KV cache), or the whole
text again and again (without); beams and several returned sequences put rows of one prompt side
by side. An edit that was made for the prompt finds its positions in all of these by their `Place`,
and what it does to what is written by `reach`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.nn import functional

from mm_lens.errors import HookError, InputError
from mm_lens.layout.groups import LAST, group_mask, last_position
from mm_lens.layout.layout import TokenLayout
from mm_lens.layout.matching import describe_difference
from mm_lens.model.running.generation import with_answer

if TYPE_CHECKING:
    from mm_lens.model.running.frames import Frame

WRITTEN = "written"
"""Group of what the model wrote behind the prompt: no layout of a prompt has it."""


@dataclass(frozen=True)
class Place:
    """What a forward pass computes of a text: `[rows, start:total]`.

    Attributes:
        rows: for each row of the pass the row of the prompt that it goes on from.
        start: the first position that is computed.
        total: length of the text when the pass is over.
    """

    rows: Int[Tensor, " rows"]
    start: int
    total: int

    def of(self, mask: Shaped[Tensor, "batch total *rest"]) -> Shaped[Tensor, "rows pos *rest"]:
        """What is said of every position of the text, at those that the pass computes."""
        return mask[self.rows.to(mask.device)][:, self.start : self.total]


def reach(layout: TokenLayout, what: Any, total: int) -> Bool[Tensor, "batch total"]:
    """Positions of a group of the prompt in a text of `total` positions that goes on behind it.

    What is written is text: `"text"`, `"all"` and the segment behind the image go on in it, boxes,
    masks and groups of the image do not. `"last"`, where the model writes, is the last position of
    the prompt and every one that was written. `"written"` is the latter alone.

    Raises:
        InputError: there is no such group.
    """
    length = layout.shape[1]
    if isinstance(what, str) and what == WRITTEN:
        inside, more = torch.zeros_like(layout.newline), True
    elif isinstance(what, str) and what != LAST and total > length:
        return group_mask(with_answer(layout, total - length), what)
    elif isinstance(what, str) and what == LAST:
        inside, more = last_position(layout), True
    else:
        inside, more = group_mask(layout, what), False
    if total <= length:
        return inside[:, :total]
    return functional.pad(inside, (0, total - length), value=more)


def find_place(frame: Frame, layout: TokenLayout, what: str) -> Place:
    """Where a forward pass stands in a text that begins with inputs of `layout`.

    Args:
        frame: the pass: of the inputs, of copies of them, or of what is written behind them.
        layout: of the inputs.
        what: names in a message what was made for them.

    Raises:
        InputError: it is a pass of other inputs.
        HookError: which prompt a decoding step goes on from is unknown.
    """
    prompt = frame.prompt if frame.decoding else frame
    if prompt is None:
        raise HookError(
            f"{what} was made for a prompt, and which prompt this decoding step goes on from is "
            "unknown: its cache was filled by no pass of this model that was seen. Run the prompt "
            "and the steps behind it with this model, or use model.generate."
        )
    rows, length = layout.shape
    copies, rest = divmod(frame.shape[0], rows)
    numbers = torch.arange(rows)
    # `generate` puts what it makes of one row side by side.
    spread = numbers.repeat_interleave(copies) if frame.writing else numbers.repeat(copies)
    if rest or not copies or not prompt.begins(layout, spread):
        whole = prompt.layout
        if frame.writing and whole.shape[1] > length:
            whole = first_positions(whole, length)
        mine = layout.take(spread.tolist()) if copies and not rest else layout
        raise InputError(
            f"{what} was made for other inputs than those of this forward pass: "
            f"{describe_difference(mine, whole)}. Make it for the inputs that are run."
        )
    return Place(spread, frame.past, frame.past + frame.shape[1])


def first_positions(layout: TokenLayout, n: int) -> TokenLayout:
    """The layout of the first `n` positions."""
    cut: dict[str, Any] = {
        f.name: value[:, :n]
        for f in fields(layout)
        if isinstance(value := getattr(layout, f.name), Tensor)
    }
    return replace(layout, **cut)
