"""Which position of another input stands for the same thing: by segment in text, by pixel box in
images.

*Text*: the j-th token of a segment matches the j-th token of the segment of the same name, if the
segments are of the same length.

*Images*: a token matches the nearest one of the other input's image, by the centres of their pixel
boxes in fractions of width and height: among overview tokens for an overview token, among tile
tokens for a tile token, among all if there is none of its kind. A newline matches the newline at
the nearest height. Where both images make the same tokens (tile, row, column) at the same place, to
half a patch, they match one by one. Of several that are as near, the first in the sequence.

What has no match is -1, and an error only where it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mm_lens.errors import InputError
from mm_lens.layout.groups import (
    Box,
    Rect,
    check_box,
    find_in_box,
    find_under,
    group_mask,
    which_image,
)
from mm_lens.layout.layout import TEXT, TokenLayout
from mm_lens.layout.regions import Axis, Regions, find_regions

SAME_DISTANCE = 1e-6
"""Squared distances, in fractions of the image, that boxes of 32 bits cannot tell apart."""


def match_positions(
    layout: TokenLayout,
    other: TokenLayout,
    boxes: tuple[Rect, Rect, int] | None = None,
) -> Int[Tensor, "batch pos"]:
    """For every position of `layout` the position of `other` that it matches, -1 if none does.

    Args:
        layout: the input that is edited (corrupted).
        other: the input that is read (clean), with as many rows.
        boxes: (box in `layout`'s image, box in `other`'s image, image index), in pixels: match by
            fractions of these boxes instead of the whole images, for things that moved.

    Raises:
        InputError: the batches differ in size, or a box is empty or outside of its image.
    """
    if boxes is not None:
        for side, rect, its in (("", boxes[0], layout), ("clean ", boxes[1], other)):
            check_box(its, rect, which_image(its, boxes[2]), side)
    if layout.shape[0] != other.shape[0]:
        raise InputError(
            f"One input has {layout.shape[0]} row(s), the other {other.shape[0]}. Clean and "
            "corrupted inputs match row by row."
        )
    out = torch.full(layout.shape, -1, dtype=torch.long, device=layout.device)
    for i in range(layout.shape[0]):
        a, b = layout.row_of(i), other.row_of(i)
        for name in set(a.segment_names) & set(b.segment_names):
            here, there = ((x.mask(name) & (x.modality == TEXT))[0].nonzero()[:, 0] for x in (a, b))
            if len(here) == len(there):
                out[i, here] = there.to(out.device)
        for k in range(min(len(a.image_sizes[0]), len(b.image_sizes[0]))):
            here, there = ((x.image[0] == k).nonzero()[:, 0] for x in (a, b))
            ours = boxes[:2] if boxes is not None and boxes[2] == k else None
            if a.image_sizes[0][k] != b.image_sizes[0][k] or len(here) != len(there):
                for x in (a, b):
                    x.require_places("Matching pictures of different sizes")
            out[i, here] = _image(a, b, here, there, k, ours)
    return out


def match_regions(
    found: Regions, layout: TokenLayout, other: TokenLayout
) -> list[tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " n"]]]:
    """For each region its (row, position in `layout`, position in `other`).

    Raises:
        InputError: a position of a region has no match.
    """
    whole = match_positions(layout, other)
    out = []
    for label, mask in found:
        special = found.clean_boxes.get(label)
        if special is None:
            match = whole
        else:
            assert special.clean is not None
            boxes = (special.rect, special.clean, which_image(layout, special.image))
            match = match_positions(layout, other, boxes)
        rows, positions = mask.nonzero(as_tuple=True)
        theirs = match[rows, positions]
        if bool((theirs < 0).any()):
            _refuse(label, int(rows[theirs < 0][0]), int(positions[theirs < 0][0]), layout, other)
        out.append((rows, positions, theirs))
    return out


def find_counterparts(axis: Axis, layout: TokenLayout, other: TokenLayout) -> Regions:
    """The regions of `other` that stand for those of `layout` along an axis: the same groups, a box
    at its `clean` place or else, as a mask of pixels, at the same fractions of the image.

    Raises:
        InputError: a mask of positions, and the positions of `other` are others.
    """
    if isinstance(axis, Regions):
        masks = [axis.clean_boxes.get(label, mask) for label, mask in axis]
        named = dict(zip(axis.labels, masks, strict=True))
        there = {label: _counterpart(what, layout, other) for label, what in named.items()}
        return find_regions(other, there)
    if isinstance(axis, Mapping):
        there = {label: _counterpart(what, layout, other) for label, what in axis.items()}
        return find_regions(other, there)
    return find_regions(other, axis)


def _counterpart(
    what: str | Box | Tensor | np.ndarray, layout: TokenLayout, other: TokenLayout
) -> str | Bool[Tensor, "batch pos"]:
    if isinstance(what, str):
        return what
    if isinstance(what, Box):
        k = which_image(other, which_image(layout, what.image))
        if what.clean is not None:
            check_box(other, what.clean, k, "clean ")
            rects = torch.tensor([what.clean] * other.shape[0], dtype=torch.float32)
        else:
            rects = torch.tensor(what.rect) * torch.tensor(
                [
                    [theirs[k][1] / ours[k][1], theirs[k][0] / ours[k][0]] * 2
                    for ours, theirs in zip(layout.image_sizes, other.image_sizes, strict=True)
                ]
            )
        return find_in_box(other, k, rects, what.touch)
    mask = torch.as_tensor(what).bool()
    if mask.shape == layout.shape:
        rows, positions = mask.nonzero(as_tuple=True)
        match = match_positions(layout, other)[rows, positions]
        if layout.shape != other.shape or not torch.equal(match, positions.to(match.device)):
            raise InputError(
                'resample="mean" does not know which positions of the clean input a mask of '
                "positions stands for, since the inputs have other tokens there. Name the region "
                'by a group, a Box or a mask of pixels, or use resample="nearest".'
            )
        return mask
    group_mask(layout, mask)  # raises if it fits no image
    k = which_image(other, None)
    return torch.cat([_stretch_mask(other.row_of(i), k, mask) for i in range(other.shape[0])])


def _stretch_mask(
    layout: TokenLayout, image: int, mask: Bool[Tensor, "height width"]
) -> Bool[Tensor, "1 pos"]:
    """Tokens of one row under a mask that is stretched over its image."""
    lines = [
        ((torch.arange(new) + 0.5) * old / new).long().clamp(max=old - 1)
        for new, old in zip(layout.image_sizes[0][image], mask.shape, strict=True)
    ]
    return find_under(layout, image, mask[lines[0]][:, lines[1]].to(layout.device))


def are_aligned(layout: TokenLayout, other: TokenLayout) -> bool:
    """Whether every position is the same token of the same segment in both: what tools need that
    know positions only. The pictures may be of different sizes."""
    if layout.shape != other.shape:
        return False
    fields = ("modality", "image", "tile", "row", "col", "newline")
    if not all(torch.equal(getattr(layout, f), getattr(other, f)) for f in fields):
        return False
    return all(
        name in y.segment_names and torch.equal(x.mask(name), y.mask(name))
        for x, y in ((layout, other), (other, layout))
        for name in x.segment_names
        if bool(x.mask(name).any())
    )


def describe_difference(layout: TokenLayout, other: TokenLayout) -> str:
    """What the first position is that is not the same token of the same segment in both; empty
    if there is none. The rows of one may be copies of those of the other."""
    rows = max(layout.shape[0], other.shape[0])
    whole = [
        x if rows == x.shape[0] else x.repeat(rows // max(x.shape[0], 1)) for x in (layout, other)
    ]
    a, b = whole
    if a.shape != b.shape:
        return f"{layout.shape} and {other.shape} [batch, pos]"
    if are_aligned(a, b):
        return ""
    for row in range(rows):
        for position in range(a.shape[1]):
            is_a, is_b = (_what(x, row, position) for x in whole)
            if is_a != is_b:
                where = f"position {position} of row {row} is"
                if is_a[0] == is_b[0]:
                    return f"{where} another token of {is_a[0]!r}"
                return f"{where} {is_a[0]!r} there and {is_b[0]!r} here"
    return "their segments have other names"


def _what(layout: TokenLayout, row: int, position: int) -> tuple[Any, ...]:
    fields = ("modality", "image", "tile", "row", "col", "newline")
    name = layout.segment_names[int(layout.segment[row, position])]
    return name, *(getattr(layout, field)[row, position].item() for field in fields)


def _refuse(label: str, row: int, position: int, layout: TokenLayout, other: TokenLayout) -> None:
    a, b = layout.row_of(row), other.row_of(row)
    name = layout.segment_names[int(layout.segment[row, position])]
    if int(a.modality[0, position]) == TEXT:
        n = int(a.counts(name).item())
        m = int(b.counts(name).item()) if name in b.segment_names else 0
        raise InputError(
            f"Region {label!r}: in row {row}, {name!r} has {n} token(s) in the corrupted input and "
            f"{m} in the clean one, so its tokens do not match. Use prompts of one length, or "
            "patch the image only."
        )
    raise InputError(
        f"Region {label!r}: position {position} of row {row} ({name!r}) stands for nothing that "
        f"the clean input has: corrupted is {a.describe()}; clean is {b.describe()}."
    )


def _image(
    a: TokenLayout,
    b: TokenLayout,
    here: Int[Tensor, " n"],
    there: Int[Tensor, " m"],
    k: int,
    boxes: tuple[Rect, Rect] | None,
) -> Int[Tensor, " n"]:
    whole = [
        (0.0, 0.0, float(x.image_sizes[0][k][1]), float(x.image_sizes[0][k][0])) for x in (a, b)
    ]
    mine, theirs = boxes or whole
    at, to = _centres(a, here, mine), _centres(b, there, theirs)
    fields = ("tile", "row", "col", "newline")
    if len(here) == len(there) and all(
        torch.equal(getattr(a, f)[0, here], getattr(b, f)[0, there]) for f in fields
    ):
        x0, y0, x1, y1 = a.box[0, here].double().unbind(-1)
        half = torch.stack([x1 - x0, y1 - y0], -1) / 2 / _extent(mine, at.device)
        if not bool(((at - to).abs() > half).any()):  # NaN, which has no place, is not above
            return there
    patches = ~to.isnan().any(-1)
    tile_a, tile_b = a.tile[0, here], b.tile[0, there]
    out = torch.full_like(here, -1)
    for wanted, same in (
        ((tile_a == 0), (tile_b == 0)),
        ((tile_a > 0), (tile_b > 0)),
    ):
        candidates = same & patches if bool((same & patches).any()) else patches
        out = _nearest(out, wanted & ~at.isnan().any(-1), candidates, at, to, there)
    heights_a, heights_b = (_heights(x, i) for x, i in ((a, here), (b, there)))
    lines_a, lines_b = a.newline[0, here], b.newline[0, there]
    return _nearest(out, lines_a, lines_b, heights_a, heights_b, there)


def _nearest(
    out: Tensor,
    wanted: Bool[Tensor, " n"],
    candidates: Bool[Tensor, " m"],
    at: Float[Tensor, "n d"],
    to: Float[Tensor, "m d"],
    there: Int[Tensor, " m"],
) -> Tensor:
    if wanted.any() and candidates.any():
        distance = (rearrange(at[wanted], "n d -> n 1 d") - to[candidates]).square().sum(-1)
        # The first of those that are as near: rounding is not to choose.
        near = distance <= distance.amin(1, keepdim=True) + SAME_DISTANCE
        out[wanted] = there[candidates][near.int().argmax(1)]
    return out


def _centres(layout: TokenLayout, positions: Tensor, rect: Any) -> Float[Tensor, "n 2"]:
    """Centres of the tokens' boxes in fractions of `rect`."""
    box = layout.box[0, positions].double()
    centre = (box[:, :2] + box[:, 2:]) / 2
    low = torch.tensor(rect[:2], dtype=torch.float64, device=box.device)
    return (centre - low) / _extent(rect, box.device)


def _extent(rect: Any, device: torch.device) -> Float[Tensor, " 2"]:
    return torch.tensor([rect[2] - rect[0], rect[3] - rect[1]], dtype=torch.float64, device=device)


def _heights(layout: TokenLayout, positions: Tensor) -> Float[Tensor, "n 1"]:
    """Height of each newline in fractions of the rows that the tiles of the image form."""
    rows = layout.grid_row[0, positions].double()
    ends = rows[layout.newline[0, positions]]
    if not len(ends):
        return rearrange(rows, "n -> n 1")
    return rearrange((rows - ends.min() + 0.5) / (ends.max() - ends.min() + 1), "n -> n 1")
