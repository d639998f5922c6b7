"""Positions of a group, of a box in pixels or of a mask.

A token belongs to a `Box` or to a mask of pixels if it shares a pixel with it (`touch` changes
that): a box smaller than a patch still has tokens. Newlines stand for no pixel and belong to none;
they are the group `"newline"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mm_lens.arguments import describe_value
from mm_lens.errors import InputError
from mm_lens.layout.layout import TokenLayout

Touch: TypeAlias = Literal["centre", "any"]
Rect: TypeAlias = "tuple[float | int, float | int, float | int, float | int]"
"""(x0, y0, x1, y1) in pixels."""

PLACED = ("base", "tiles", "newline")
"""Groups that the places of image tokens tell apart."""

LAST = "last"
"""Group of the last attended position of each row: where the answer is read."""


@dataclass(frozen=True)
class Box:
    """A box in pixels of an image of each row: x0 ≤ x < x1, y0 ≤ y < y1.

    Attributes:
        image: index of the image within its row; may be left out where every row has one.
        clean: where the same thing lies in the clean input's image; None: at the same fractions of
            width and height.
        touch: "any": tokens that share a pixel with the box; "centre": centred in it.
    """

    x0: float | int
    y0: float | int
    x1: float | int
    y1: float | int
    image: int | None = None
    clean: Rect | None = None
    touch: Touch = "any"

    @property
    def rect(self) -> Rect:
        """Its corners."""
        return self.x0, self.y0, self.x1, self.y1


def group_mask(
    layout: TokenLayout, what: str | Box | Tensor | np.ndarray, image: int | None = None
) -> Bool[Tensor, "batch pos"]:
    """Positions of a group, `"last"`, a `Box`, or a mask of pixels or of positions.

    ```python
    group_mask(inputs.layout, Box(0, 0, 32, 32))       # [batch, pos]
    ```

    Args:
        layout: what every position is.
        what: the group, the box, or a mask [height, width] or [batch, pos].
        image: index of the image that a mask of pixels is over; may be left out where every row has
            one.

    Raises:
        InputError: unknown group, a box that is empty or lies outside of the image, a mask of a
            shape that fits neither image nor batch, or one of several images is meant.
    """
    if isinstance(what, str):
        if what in PLACED or what.startswith("tile "):
            layout.require_places(f"The group {what!r}")
        return last_position(layout) if what == LAST else layout.mask(what)
    if isinstance(what, Box):
        layout.require_places("A box")
        k = which_image(layout, what.image)
        check_box(layout, what.rect, k)
        rect = torch.tensor(what.rect, dtype=torch.float32)
        rects = repeat(rect, "corner -> batch corner", batch=layout.shape[0])
        return find_in_box(layout, k, rects, what.touch)
    mask = _as_mask(what).to(layout.device)
    if mask.shape == layout.shape:
        return mask
    if not any(tuple(mask.shape) in images for images in layout.image_sizes):
        raise InputError(
            f"A mask of shape {tuple(mask.shape)} fits neither the batch {layout.shape} [batch, "
            f"pos] nor an image (height, width): {layout.image_sizes}."
        )
    layout.require_places("A mask of pixels")
    k = which_image(layout, image)
    sizes = {images[k] for images in layout.image_sizes}
    if wrong := [size for size in sizes if size != tuple(mask.shape)]:
        raise InputError(
            f"A mask of shape {tuple(mask.shape)} fits neither the batch {layout.shape} [batch, "
            f"pos] nor image {k} of every row, one of which holds {wrong[0]} (height, width)."
        )
    return find_under(layout, k, mask)


def _as_mask(what: Any) -> Tensor:
    """A mask as truth values.

    Raises:
        InputError: it is something else: numbers of positions, weights, several names.
    """
    try:
        mask = torch.as_tensor(what)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            "Which positions are meant is the name of a group, a Box, or a mask, not "
            f"{describe_value(what)}. Several groups together: layout.mask(a) | layout.mask(b)."
        ) from error
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(
            f"A mask holds truth values, not numbers from {mask.min():g} to {mask.max():g}. Of "
            "weights make one with a threshold (weights > 0.5), of numbers of positions with "
            "mask[:, positions] = True."
        )
    return mask.bool()


def last_position(layout: TokenLayout) -> Bool[Tensor, "batch pos"]:
    """The last attended position of each row."""
    index = torch.arange(layout.shape[1], device=layout.device)
    return (index == rearrange(last_index(layout), "batch -> batch 1")) & layout.mask("all")


def last_index(layout: TokenLayout) -> Int[Tensor, " batch"]:
    """Index of the last attended position of each row; 0 in a row that is padding alone."""
    counted = torch.arange(1, layout.shape[1] + 1, device=layout.device)
    return (layout.mask("all") * counted).argmax(1)


def which_image(layout: TokenLayout, image: int | None) -> int:
    """Index of the image that is meant, which every row has.

    Raises:
        InputError: a row has none of this index, or several and no index is given.
    """
    for row, images in enumerate(layout.image_sizes):
        if image is None and len(images) > 1:
            raise InputError(
                f"Row {row} has {len(images)} images. Say which is meant: Box(…, image=1), "
                "Grid(…, image=1), or for a mask of pixels group_mask(layout, mask, image=1)."
            )
        if not 0 <= (image or 0) < len(images):
            raise InputError(
                f"Row {row} has {len(images)} image(s); there is no image {image or 0}."
            )
    return image or 0


def check_box(layout: TokenLayout, rect: Any, image: int, side: str = "") -> None:
    """Check a box over image `image` of every row; `side` says of which input, in a message.

    Raises:
        InputError: the box is empty, or lies outside of the image of some row.
    """
    x0, y0, x1, y1 = rect
    if not (x0 < x1 and y0 < y1):  # NaN is not below anything
        raise InputError(
            f"The {side}box {tuple(rect)} is empty. Give (x0, y0, x1, y1) with x0 < x1 and y0 < y1:"
            " left, top, right and bottom in pixels."
        )
    for row, images in enumerate(layout.image_sizes):
        height, width = images[image]
        if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
            raise InputError(
                f"The {side}box {tuple(rect)} lies outside image {image} of {width}×{height} pixels"
                f" (row {row}). Give (x0, y0, x1, y1) in pixels of that {side}image as it was "
                "passed to prepare, from its top left corner."
            )


def find_in_box(
    layout: TokenLayout, image: int, rect: Float[Tensor, "batch 4"], touch: Touch
) -> Bool[Tensor, "batch pos"]:
    """Tokens of an image by their pixel box; `rect` is (x0, y0, x1, y1) for each row."""
    corners = rearrange(rect.to(layout.device), "batch corner -> batch 1 corner")
    x0, y0, x1, y1 = corners.unbind(-1)
    left, top, right, bottom = layout.box.unbind(-1)
    if touch == "centre":
        x, y = (left + right) / 2, (top + bottom) / 2
        inside = (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)
    else:
        inside = (left < x1) & (right > x0) & (top < y1) & (bottom > y0)
    return inside & (layout.image == image)  # comparisons with NaN are false


def find_under(
    layout: TokenLayout, image: int, mask: Bool[Tensor, "height width"]
) -> Bool[Tensor, "batch pos"]:
    """Tokens of an image that share a pixel with a mask over it, of its size in every row."""
    out = torch.zeros(layout.shape, dtype=torch.bool, device=layout.device)
    # Sum over any rectangle from four corners of the running sums.
    sums = torch.nn.functional.pad(mask.long().cumsum(0).cumsum(1), (1, 0, 1, 0))
    rows, positions = ((layout.image == image) & ~layout.box.isnan().any(-1)).nonzero(as_tuple=True)
    box = layout.box[rows, positions]
    x0, y0 = box[:, 0].floor().long(), box[:, 1].floor().long()
    x1, y1 = box[:, 2].ceil().long(), box[:, 3].ceil().long()
    count = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    out[rows, positions] = count > 0
    return out
