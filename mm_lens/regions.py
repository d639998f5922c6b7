"""Regions: named sets of positions along one axis, and the positions of another input they match.

Axes, each with one region for every …

===============  ==================================================================================
``"modality"``   modality: visual, text
``"segment"``    segment of the layout: text before, image 0, … or those of the family
``"image"``      image, newlines included
``"tile"``       tile of an image; tile 0 is the overview
``"row band"``   row of overview patches: a horizontal band of the picture, overview and tiles
``"cell"``       overview patch: its pixel box, with the tokens of all tiles that lie inside
``"patch"``      image token; newlines are none
`Grid`           equal box of a grid laid over the image, whatever its size
a mapping        name: a group of the layout, ``"last"``, a `Box`, a mask [height, width] of pixels,
                 or a mask [batch, pos] of positions
a list           group of the layout
===============  ==================================================================================

A token belongs to a box of an axis if the centre of its own pixel box lies inside, so disjoint
boxes hold disjoint tokens. To a `Box` or a pixel mask it belongs if it shares a pixel with it
(`touch` changes that): a box smaller than a patch still has tokens. Newlines stand for no pixel and
belong to no box; they are the group ``"newline"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mm_lens.errors import InputError
from mm_lens.layout import VISUAL, TokenLayout

Touch: TypeAlias = Literal["centre", "any"]
Axis: TypeAlias = "str | Grid | Mapping[str, Any] | Sequence[str] | Regions"
"""What is swept; see the module's table."""

AXES = ("modality", "segment", "image", "tile", "row band", "cell", "patch")
LAST = "last"
"""Group of the last attended position of each row: where the answer is read."""


@dataclass(frozen=True)
class Box:
    """A box in pixels of an image of each row: x0 ≤ x < x1, y0 ≤ y < y1.

    Attributes:
        image: index of the image within its row.
        clean: where the same thing lies in the clean input's image; None: at the same fractions of
            width and height.
        touch: "any": tokens that share a pixel with the box; "centre": centred in it.
    """

    x0: float | int
    y0: float | int
    x1: float | int
    y1: float | int
    image: int = 0
    clean: tuple[float | int, float | int, float | int, float | int] | None = None
    touch: Touch = "any"


@dataclass(frozen=True)
class Grid:
    """`rows` × `cols` equal boxes over image `image` of each row, the same fractions in all."""

    rows: int
    cols: int
    image: int = 0


@dataclass(frozen=True, eq=False)
class Regions:
    """Regions along an axis, for one layout.

    Attributes:
        axis: name of the axis.
        labels: name of each region.
        masks: positions of each region.
        columns: facts about each region for tables (tile, row, col; pixel box x0, y0, x1, y1).
        clean_boxes: for regions whose place in the clean image was given: label, then (box, clean
            box, image), boxes in pixels.
    """

    axis: str
    labels: tuple[str, ...]
    masks: Bool[Tensor, "region batch pos"]
    columns: Mapping[str, Sequence[float | int]] = field(default_factory=dict)
    clean_boxes: Mapping[str, tuple[Any, Any, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[str, Bool[Tensor, "batch pos"]]]:
        return iter(zip(self.labels, self.masks, strict=True))

    def paint(self, values: Float[Tensor, " region"]) -> Float[Tensor, "batch pos"]:
        """The value of its region at every position, to be drawn on the image.

        NaN where no region is; the mean where regions overlap.
        """
        masks = self.masks.to(values.dtype)
        total = (masks * values.to(masks.device)[:, None, None]).sum(0)
        return total / masks.sum(0).masked_fill(~self.masks.any(0), torch.nan)


def regions(layout: TokenLayout, axis: Axis) -> Regions:
    """The regions of `layout` along `axis` (see the module's table).

    Raises:
        InputError: unknown axis or group, or a region without a token in some row.
    """
    if isinstance(axis, Regions):
        if axis.masks.shape[1:] != layout.shape:
            raise InputError(
                f"The regions are of a layout of shape {tuple(axis.masks.shape[1:])} [batch, pos], "
                f"but the inputs have {layout.shape}. Make them from inputs.layout."
            )
        return axis
    found = _regions(layout, axis)
    empty = ~found.masks.any(-1)
    if not len(found) or bool(empty.any()):
        region, row = empty.nonzero()[0].tolist() if len(found) else (None, 0)
        name = "any region" if region is None else repr(found.labels[region])
        raise InputError(
            f"Row {row} has no position in {name} of the axis {found.axis!r}. Run rows of another "
            "shape in another call, or take an axis that every row has: Grid(rows, cols), "
            '"modality", or a mapping of groups.'
        )
    return found


def _regions(layout: TokenLayout, axis: Any) -> Regions:
    if isinstance(axis, Grid):
        return _boxes(layout, f"grid {axis.rows}×{axis.cols}", axis.image, _grid(axis))
    if isinstance(axis, Mapping):
        return _named(layout, axis)
    if not isinstance(axis, str):
        return _named(layout, {name: name for name in axis})
    if axis == "modality":
        return _named(layout, {g: g for g in ("visual", "text") if layout.mask(g).any()}, axis)
    if axis == "segment":
        present = [n for n in layout.segment_names if n != "pad" and layout.mask(n).any()]
        return _named(layout, {name: name for name in present}, axis)
    if axis in ("image", "tile", "patch"):
        return _by_index(layout, axis)
    if axis in ("row band", "cell"):
        return _by_overview(layout, axis)
    raise InputError(
        f"No axis is called {axis!r}. Use one of: {', '.join(AXES)}, Grid(rows, cols), a list of "
        "groups, or a mapping from names to groups, boxes or masks."
    )


def group_mask(
    layout: TokenLayout, what: str | Box | Tensor | np.ndarray
) -> Bool[Tensor, "batch pos"]:
    """Positions of a group, ``"last"``, a `Box`, or a mask of pixels or of positions.

    Raises:
        InputError: unknown group, or a mask of a shape that fits neither image nor batch.
    """
    if isinstance(what, str):
        return last_position(layout) if what == LAST else layout.mask(what)
    if isinstance(what, Box):
        rect = torch.tensor([what.x0, what.y0, what.x1, what.y1]).float().expand(layout.shape[0], 4)
        return _in_box(layout, what.image, rect, what.touch)
    mask = torch.as_tensor(what).bool().to(layout.device)
    if mask.shape == layout.shape:
        return mask
    return _under(layout, mask)


def last_position(layout: TokenLayout) -> Bool[Tensor, "batch pos"]:
    """The last attended position of each row."""
    attended = layout.mask("all")
    index = torch.arange(layout.shape[1], device=layout.device)
    last = (attended * (index + 1)).argmax(1)
    return (index == last[:, None]) & attended


def _named(layout: TokenLayout, named: Mapping[str, Any], axis: str = "region") -> Regions:
    masks = [group_mask(layout, what) for what in named.values()]
    boxes = {
        label: ((what.x0, what.y0, what.x1, what.y1), what.clean, what.image)
        for label, what in named.items()
        if isinstance(what, Box) and what.clean is not None
    }
    return Regions(axis, tuple(named), _stack(masks, layout), {}, boxes)


def _by_index(layout: TokenLayout, axis: str) -> Regions:
    """One region for each value that the index fields of visual tokens take."""
    fields = {"image": ("image",), "tile": ("image", "tile")}.get(
        axis, ("image", "tile", "row", "col")
    )
    index = torch.stack([getattr(layout, name).long() for name in fields], -1)
    here = layout.modality == VISUAL
    if axis != "image":
        here = here & (layout.tile >= 0) & ~layout.newline
    found = index[here].unique(dim=0)
    masks = [here & (index == value).all(-1) for value in found]
    several = bool((layout.image > 0).any())
    shown = fields if several or axis == "image" else fields[1:]
    start = len(fields) - len(shown)
    labels = tuple(
        " ".join(f"{n} {v}" for n, v in zip(shown, value[start:], strict=True))
        for value in found.tolist()
    )
    columns: dict[str, Sequence[float | int]] = {}
    if axis == "patch":
        columns = {name: found[:, k].tolist() for k, name in enumerate(fields)}
        if layout.shape[0] == 1:
            box = torch.stack([layout.box[mask][0] for mask in masks]) if masks else layout.box[0]
            columns |= {name: box[:, k].tolist() for k, name in enumerate(("x0", "y0", "x1", "y1"))}
    return Regions(axis, labels, _stack(masks, layout), columns)


def _by_overview(layout: TokenLayout, axis: str) -> Regions:
    """Boxes as the overview of the first image of each row has its patches."""
    base = layout.mask("base") & (layout.image == 0)
    shapes = {
        (int(layout.row[i][base[i]].max()) + 1, int(layout.col[i][base[i]].max()) + 1)
        for i in range(layout.shape[0])
        if base[i].any()
    }
    if len(shapes) != 1 or not bool(base.any(1).all()):
        raise InputError(
            f"The axis {axis!r} follows the patches of the overview, and the rows' overviews are "
            f"of {len(shapes)} shapes. Use Grid(rows, cols)."
        )
    rows, cols = shapes.pop()
    key = layout.row if axis == "row band" else layout.row * cols + layout.col
    rects = []
    for k in range(rows if axis == "row band" else rows * cols):
        per_row = []
        for i in range(layout.shape[0]):
            own = layout.box[i][base[i] & (key[i] == k)]
            own = own[~own.isnan().any(-1)]
            if len(own):
                rect = torch.cat([own[:, :2].amin(0), own[:, 2:].amax(0)])
            else:
                rect = torch.full((4,), torch.nan, device=layout.device)
            per_row.append(rect)
        rects.append(torch.stack(per_row))
    if axis == "row band":
        labels = [f"row band {k}" for k in range(rows)]
        columns: dict[str, Sequence[float | int]] = {"row": list(range(rows))}
    else:
        labels = [f"row {k // cols} col {k % cols}" for k in range(rows * cols)]
        columns = {
            "row": [k // cols for k in range(rows * cols)],
            "col": [k % cols for k in range(rows * cols)],
        }
    # A patch outside of the picture (padding of a letterbox) has no box and is no region.
    kept = [k for k, rect in enumerate(rects) if not bool(rect.isnan().any())]
    rects = [rects[k] for k in kept]
    masks = [_in_box(layout, 0, rect, "centre") for rect in rects]
    columns = {name: [values[k] for k in kept] for name, values in columns.items()}
    found = Regions(axis, tuple(labels[k] for k in kept), _stack(masks, layout), columns)
    return _with_boxes(found, rects)


def _boxes(
    layout: TokenLayout, axis: str, image: int, fractions: list[tuple[str, tuple[float, ...]]]
) -> Regions:
    for row, images in enumerate(layout.image_sizes):
        if image >= len(images):
            raise InputError(f"Row {row} has {len(images)} image(s); there is no image {image}.")
    sizes = torch.tensor(
        [[w, h, w, h] for h, w in (images[image] for images in layout.image_sizes)],
        dtype=torch.float32,
    )
    rects = [sizes * torch.tensor(fraction) for _, fraction in fractions]
    masks = [_in_box(layout, image, rect, "centre") for rect in rects]
    found = Regions(axis, tuple(label for label, _ in fractions), _stack(masks, layout))
    return _with_boxes(found, rects)


def _grid(grid: Grid) -> list[tuple[str, tuple[float, ...]]]:
    r, c = grid.rows, grid.cols
    return [
        (f"row {i} col {j}", (j / c, i / r, (j + 1) / c, (i + 1) / r))
        for i in range(r)
        for j in range(c)
    ]


def _with_boxes(found: Regions, rects: list[Tensor]) -> Regions:
    """With the pixel box of each region as columns, where there is one row to tell it for."""
    if not rects or len(rects[0]) != 1:
        return found
    columns = {
        name: [float(rect[0, k]) for rect in rects]
        for k, name in enumerate(("x0", "y0", "x1", "y1"))
    }
    return Regions(found.axis, found.labels, found.masks, {**found.columns, **columns})


def _in_box(
    layout: TokenLayout, image: int, rect: Float[Tensor, "batch 4"], touch: Touch
) -> Bool[Tensor, "batch pos"]:
    """Tokens of an image by their pixel box; `rect` is (x0, y0, x1, y1) for each row."""
    x0, y0, x1, y1 = rect.to(layout.device)[:, None].unbind(-1)
    left, top, right, bottom = layout.box.unbind(-1)
    if touch == "centre":
        x, y = (left + right) / 2, (top + bottom) / 2
        inside = (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)
    else:
        inside = (left < x1) & (right > x0) & (top < y1) & (bottom > y0)
    return inside & (layout.image == image)  # comparisons with NaN are false


def _under(layout: TokenLayout, mask: Bool[Tensor, "height width"]) -> Bool[Tensor, "batch pos"]:
    """Tokens of image 0 of each row that share a pixel with a mask over it."""
    if wrong := [s for s in layout.image_sizes if not s or s[0] != tuple(mask.shape)]:
        raise InputError(
            f"A mask of shape {tuple(mask.shape)} fits neither the batch {layout.shape} [batch, "
            f"pos] nor image 0 of every row, one of which holds {wrong[0]} (height, width)."
        )
    out = torch.zeros(layout.shape, dtype=torch.bool, device=layout.device)
    # Sum over any rectangle from four corners of the running sums.
    sums = torch.nn.functional.pad(mask.long().cumsum(0).cumsum(1), (1, 0, 1, 0))
    rows, positions = ((layout.image == 0) & ~layout.box.isnan().any(-1)).nonzero(as_tuple=True)
    box = layout.box[rows, positions]
    x0, y0 = box[:, 0].floor().long(), box[:, 1].floor().long()
    x1, y1 = box[:, 2].ceil().long(), box[:, 3].ceil().long()
    count = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    out[rows, positions] = count > 0
    return out


def _stack(masks: list[Tensor], layout: TokenLayout) -> Bool[Tensor, "region batch pos"]:
    if not masks:
        return torch.zeros(0, *layout.shape, dtype=torch.bool, device=layout.device)
    return torch.stack(masks)
