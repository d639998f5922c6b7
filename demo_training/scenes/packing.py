"""Questions packed behind an image in even rooms, and the attention that makes use of that.

`demo_training.packing` lays rows out as tight as can be and masks the rest: for a dozen questions
nine in ten scores are computed in vain. Here every question has a room of its own, all of one
length, and is compared with the image and with itself alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import AttentionInterface

from demo_training.packing import Packed

NAME = "demo_rooms"
"""Of the attention, for `set_attn_implementation`."""


@dataclass(frozen=True)
class Rooms:
    """How rows are laid out.

    Attributes:
        prefix: positions of the image and what stands before it, with padding behind.
        length: of a room.
        real: which positions of the prefix are no padding.
        ends: of each question, its last position in its room.
        shares: filled by a pass: of each layer, how much of its attention every head pays to each
            position of the prefix, at every position of the rooms.
    """

    prefix: int
    length: int
    real: Bool[Tensor, "batch prefix"]
    ends: Int[Tensor, "batch room"]
    shares: dict[int, Tensor] = field(default_factory=dict)


current: ContextVar[Rooms] = ContextVar("rooms")


def pack(
    prefixes: Sequence[Sequence[int]],
    turns: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]],
    pad_id: int,
) -> Packed:
    """As `demo_training.packing.pack`, as many turns for each; sets what the attention goes by."""
    first = max(map(len, prefixes))
    length = max(len(q) + len(a) for row in turns for q, a in row)
    ids = torch.full((len(turns), first + length * len(turns[0])), pad_id)
    positions = torch.zeros_like(ids)
    labels, asked = torch.full_like(ids, -100), torch.full_like(ids, -100)
    for b, (prefix, row) in enumerate(zip(prefixes, turns, strict=True)):
        ids[b, : len(prefix)] = torch.tensor(prefix)
        positions[b, :first] = torch.arange(first)
        for k, (question, answer) in enumerate(row):
            start = first + k * length
            stop = start + len(question) + len(answer)
            ids[b, start:stop] = torch.tensor([*question, *answer])
            positions[b, start : start + length] = torch.arange(length) + len(prefix)
            labels[b, stop - len(answer) - 1 : stop - 1] = torch.tensor([*answer])
            asked[b, start : start + len(question) - 1] = torch.tensor([*question[1:]])
    real = torch.arange(first) < torch.tensor([[len(prefix)] for prefix in prefixes])
    ends = torch.tensor([[len(question) - 1 for question, _ in row] for row in turns])
    current.set(Rooms(first, length, real, ends))
    # Never looked at; it stands for what transformers would make.
    mask = torch.ones(len(ids), 1, 1, 1, dtype=torch.bool)
    return Packed(ids, positions, mask, labels, asked)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention of transformers' language models, for rows with `Rooms`."""
    rooms = current.get()
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (repeat(x, "b h ... -> b (h s) ...", s=shared) for x in (key, value))
    query = query * (scaling or query.shape[-1] ** -0.5)
    first, n = rooms.prefix, rooms.length
    (q_image, q_asked), (k_image, k_asked), (v_image, v_asked) = (
        (x[:, :, :first], x[:, :, first:]) for x in (query, key, value)
    )
    real = rooms.real[:, None, None].to(query.device)
    behind = torch.ones(first, first, dtype=torch.bool, device=query.device).triu(1)
    scores = (q_image @ k_image.mT).masked_fill(behind | ~real, float("-inf"))
    image = scores.softmax(-1) @ v_image
    q, k, v = (
        rearrange(x, "b h (room pos) d -> b h room pos d", pos=n)
        for x in (q_asked, k_asked, v_asked)
    )
    outside = (q_asked @ k_image.mT).masked_fill(~real, float("-inf"))
    later = torch.ones(n, n, dtype=torch.bool, device=query.device).triu(1)
    inside = rearrange((q @ k.mT).masked_fill(later, float("-inf")), "b h r pos k -> b h (r pos) k")
    shares = torch.cat([outside, inside], -1).softmax(-1)
    rooms.shares[getattr(module, "layer_idx", 0)] = shares[..., :first]
    own = rearrange(shares[..., first:], "b h (room pos) key -> b h room pos key", pos=n) @ v
    asked = shares[..., :first] @ v_image + rearrange(own, "b h room pos d -> b h (room pos) d")
    return rearrange(torch.cat([image, asked], 2), "b h pos d -> b pos h d").contiguous(), None


AttentionInterface.register(NAME, attend)
