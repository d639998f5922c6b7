"""Which images a row of the batch holds, and which part of its text each position is in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Int16
from torch import Tensor

from mm_lens.errors import InputError
from mm_lens.layout.geometry import ImageGeometry

SEGMENTS = ("pad", "special", "text only", "text before", "text after")
MARKER = "marker"
"""What a processor writes in and around an image. Only layouts that have it name it."""


def share_images(
    placeholders: list[int], images: Sequence[ImageGeometry]
) -> list[list[ImageGeometry]]:
    """Give each row of the batch the next images, as many as its placeholders take."""
    remedy = (
        "Use input_ids and image_sizes from one and the same processor call, with the processor "
        "that belongs to this model and without truncation."
    )
    waiting = list(reversed(images))
    shares: list[list[ImageGeometry]] = []
    for i, count in enumerate(placeholders):
        share: list[ImageGeometry] = []
        while waiting and sum(map(len, share)) < count:
            share.append(waiting.pop())
        if (tokens := sum(map(len, share))) != count:
            sizes = (
                ", ".join(f"{g.size[1]}×{g.size[0]} px = {len(g)}" for g in share) or "none left"
            )
            raise InputError(
                f"Row {i} has {count} image placeholders, but its images make {tokens} tokens "
                f"({sizes}). {remedy}"
            )
        shares.append(share)
    if waiting:
        raise InputError(
            f"{len(images)} images were given, but the placeholders of the batch "
            f"take only {len(images) - len(waiting)}. {remedy}"
        )
    return shares


def inside_images(image: Int16[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Positions from the first placeholder of an image to its last."""
    before = image.cummax(1).values
    behind = image.masked_fill(image < 0, torch.iinfo(image.dtype).max).flip(1).cummin(1).values
    return (before >= 0) & (before == behind.flip(1))


def find_segments(
    image: Int16[Tensor, "batch pos"], n_images: list[int]
) -> tuple[Int16[Tensor, "batch pos"], tuple[str, ...]]:
    """Segment of every position and the segments' names, leaving out special tokens and padding."""
    names = list(SEGMENTS)
    for k in range(max(n_images, default=0)):
        names += [f"text between {k - 1} and {k}"] * (k > 0) + [f"image {k}"]
    per_row = rearrange(torch.tensor(n_images, device=image.device), "batch -> batch 1")
    latest = image.long().cummax(dim=1).values  # the image seen last, -1 before the first
    first = len(SEGMENTS)  # the images stand at first, first + 2, …, the texts between them
    segment = torch.where(image >= 0, first + 2 * latest, first + 2 * latest + 1)
    segment[(image < 0) & (latest == per_row - 1)] = names.index("text after")
    segment[latest < 0] = names.index("text before")
    alone = repeat(per_row == 0, "batch 1 -> batch pos", pos=image.shape[1])
    segment[alone] = names.index("text only")
    return segment.to(torch.int16), tuple(names)
