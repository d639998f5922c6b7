"""Regions: named sets of positions along one axis, and the positions of another input they match.

| axis | one region for each |
|---|---|
| `"modality"` | modality: visual, text |
| `"segment"` | segment of the layout: text before, image 0, … or those of the family |
| `"image"` | image, newlines included |
| `"tile"` | tile of an image; tile 0 is the overview |
| `"row band"` | row of overview patches: a horizontal band of an image, overview and tiles |
| `"cell"` | overview patch: its pixel box, with the tokens of all tiles that lie inside |
| `"patch"` | image token; newlines are none |
| `Grid` | equal box of a grid laid over the image, whatever its size |
| a mapping | entry: a group of the layout, `"last"`, a `Box`, a mask of pixels or of positions |
| a list | group of the layout |

A mask is [height, width] of pixels or [batch, pos] of positions.

A token belongs to a box of an axis if the centre of its own pixel box lies inside, so disjoint
boxes hold disjoint tokens; to a `Box` or a pixel mask if it shares a pixel with it
(`mm_lens.layout.groups`). Newlines stand for no pixel and belong to no box.

Where rows have several images, axes have regions for each, their names beginning with the image; a
`Grid` or a `Box` may name one. A batch must have the same regions in every row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from mm_lens.arguments import describe_value, suggest
from mm_lens.errors import InputError
from mm_lens.layout.groups import LAST, Box, find_in_box, group_mask, which_image
from mm_lens.layout.layout import VISUAL, TokenLayout

Axis: TypeAlias = "str | Grid | Mapping[str, Any] | Sequence[str] | Regions"
"""What is swept; see the module's table."""

AXES = ("modality", "segment", "image", "tile", "row band", "cell", "patch")

__all__ = ["AXES", "LAST", "Axis", "Box", "Grid", "Regions", "find_regions", "group_mask"]


@dataclass(frozen=True)
class Grid:
    """`rows` × `cols` equal boxes over an image, the same fractions in all.

    Attributes:
        image: index of the image within its row; None lays a grid over every image.
    """

    rows: int
    cols: int
    image: int | None = None


@dataclass(frozen=True, eq=False)
class Regions:
    """Regions along an axis, for one layout.

    Attributes:
        axis: name of the axis.
        labels: name of each region.
        masks: positions of each region.
        columns: facts about each region for tables: image, tile, row, col; pixel box x0, y0, x1,
            y1, if it is the same in every row.
        clean_boxes: for regions whose place in the clean image was given, the box.
    """

    axis: str
    labels: tuple[str, ...]
    masks: Bool[Tensor, "region batch pos"]
    columns: Mapping[str, Sequence[float | int]] = field(default_factory=dict)
    clean_boxes: Mapping[str, Box] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[str, Bool[Tensor, "batch pos"]]]:
        return iter(zip(self.labels, self.masks, strict=True))

    def paint(self, values: Float[Tensor, " region"]) -> Float[Tensor, "batch pos"]:
        """The value of its region at every position, to be drawn on the image.

        NaN where no region is; the mean where regions overlap.
        """
        masks = self.masks.to(values.dtype)
        total = (masks * rearrange(values.to(masks.device), "region -> region 1 1")).sum(0)
        return total / masks.sum(0).masked_fill(~self.masks.any(0), torch.nan)


def find_regions(layout: TokenLayout, axis: Axis) -> Regions:
    """The regions of `layout` along `axis` (see the module's table).

    ```python
    cells = find_regions(inputs.layout, "cell")
    cells.paint(torch.arange(len(cells)).float())      # per position, to draw
    ```

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
            '"modality", or a mapping of groups. A box smaller than a patch needs touch="any".'
        )
    return found


def _regions(layout: TokenLayout, axis: Any) -> Regions:
    if isinstance(axis, Grid) or axis in ("tile", "patch", "row band", "cell"):
        layout.require_places(f"The axis {axis!r}")
    if isinstance(axis, Grid):
        return _by_grid(layout, axis)
    if isinstance(axis, Mapping):
        return _find_named(layout, axis)
    if isinstance(axis, Box):
        return _find_named(layout, {"box": axis})
    if not isinstance(axis, str):
        names = list(axis) if isinstance(axis, Iterable) else [axis]
        if wrong := [name for name in names if not isinstance(name, str)]:
            raise InputError(
                f"{describe_value(wrong[0])} names no group. An axis is one of {', '.join(AXES)}, "
                "Grid(rows, cols), a Box, a list of groups, or a mapping from names to groups, "
                "boxes or masks."
            )
        return _find_named(layout, {name: name for name in names})
    if axis == "modality":
        return _find_named(layout, {g: g for g in ("visual", "text") if layout.mask(g).any()}, axis)
    if axis == "segment":
        present = [n for n in layout.segment_names if n != "pad" and layout.mask(n).any()]
        return _find_named(layout, {name: name for name in present}, axis)
    if axis in ("image", "tile", "patch"):
        return _by_index(layout, axis)
    if axis in ("row band", "cell"):
        return _by_overview(layout, axis)
    raise InputError(
        f"No axis is called {axis!r}. Use one of: {', '.join(AXES)}, Grid(rows, cols), a list of "
        f"groups, or a mapping from names to groups, boxes or masks.{suggest(axis, AXES)}"
    )


def _find_named(layout: TokenLayout, named: Mapping[str, Any], axis: str = "region") -> Regions:
    masks = [group_mask(layout, what) for what in named.values()]
    boxes = {
        label: what
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
        columns |= _corners([layout.box[mask] for mask in masks])
    return Regions(axis, labels, _stack(masks, layout), columns)


def _by_overview(layout: TokenLayout, axis: str) -> Regions:
    """Boxes as the overview of each image has its patches."""
    labels, rects, images, facts = [], [], [], []
    for image in range(max(map(len, layout.image_sizes), default=0) or 1):
        base = layout.mask("base") & (layout.image == image)
        shapes = {
            (int(layout.row[i][base[i]].max()) + 1, int(layout.col[i][base[i]].max()) + 1)
            for i in range(layout.shape[0])
            if base[i].any()
        }
        if len(shapes) != 1 or not bool(base.any(1).all()):
            raise InputError(
                f"The axis {axis!r} follows the patches of the overview, and the rows' overviews "
                f"of image {image} are of {len(shapes)} shapes, or a row has none. Use "
                "Grid(rows, cols), with image= where rows have different numbers of images."
            )
        rows, cols = shapes.pop()
        key = layout.row if axis == "row band" else layout.row * cols + layout.col
        for k in range(rows if axis == "row band" else rows * cols):
            rect = torch.stack(
                [_bound(layout.box[i][base[i] & (key[i] == k)]) for i in range(layout.shape[0])]
            )
            # A patch outside of the picture (padding of a letterbox) has no box and is no region.
            if bool(rect.isnan().any()):
                continue
            rects.append(rect)
            images.append(image)
            if axis == "row band":
                labels.append(f"row band {k}")
                facts.append({"row": k})
            else:
                labels.append(f"row {k // cols} col {k % cols}")
                facts.append({"row": k // cols, "col": k % cols})
    return _boxes(layout, axis, labels, rects, images, facts)


def _by_grid(layout: TokenLayout, grid: Grid) -> Regions:
    """The same fractions of each image."""
    count = max(map(len, layout.image_sizes), default=0) or 1
    labels, rects, images = [], [], []
    for image in range(count) if grid.image is None else [grid.image]:
        which_image(layout, image)
        sizes = torch.tensor([[w, h, w, h] for h, w in (x[image] for x in layout.image_sizes)])
        for i in range(grid.rows):
            for j in range(grid.cols):
                parts = torch.tensor([j, i, j + 1, i + 1]) / torch.tensor(
                    [grid.cols, grid.rows] * 2
                )
                labels.append(f"row {i} col {j}")
                rects.append(sizes * parts)
                images.append(image)
    return _boxes(layout, f"grid {grid.rows}×{grid.cols}", labels, rects, images)


def _boxes(
    layout: TokenLayout,
    axis: str,
    labels: list[str],
    rects: list[Tensor],
    images: list[int],
    facts: Sequence[Mapping[str, int]] = (),
) -> Regions:
    """Regions of the tokens centred in boxes, each (x0, y0, x1, y1) [batch, 4] of an image."""
    columns: dict[str, Sequence[float | int]] = {
        name: [fact[name] for fact in facts] for name in (facts[0] if facts else ())
    }
    if max(map(len, layout.image_sizes), default=0) > 1:
        labels = [f"image {k} {label}" for k, label in zip(images, labels, strict=True)]
        columns = {"image": images, **columns}
    masks = [find_in_box(layout, k, rect, "centre") for k, rect in zip(images, rects, strict=True)]
    found = {**columns, **_corners(rects)}
    return Regions(axis, tuple(labels), _stack(masks, layout), found)


def _bound(boxes: Float[Tensor, "n 4"]) -> Float[Tensor, " 4"]:
    """The smallest box around boxes, leaving out those of no pixel; NaN around none."""
    boxes = boxes[~boxes.isnan().any(-1)]
    if not len(boxes):
        return boxes.new_full((4,), torch.nan)
    return torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])


def _corners(rects: Sequence[Float[Tensor, "row 4"]]) -> dict[str, list[float]]:
    """Columns of the pixel box of each region, if every row has the same."""
    if not rects or not all(bool((rect == rect[0]).all()) for rect in rects):
        return {}
    corners = torch.stack([rect[0] for rect in rects])
    table = rearrange(corners, "region corner -> corner region").tolist()
    return dict(zip(("x0", "y0", "x1", "y1"), table, strict=True))


def _stack(masks: list[Tensor], layout: TokenLayout) -> Bool[Tensor, "region batch pos"]:
    if not masks:
        return torch.zeros(0, *layout.shape, dtype=torch.bool, device=layout.device)
    return torch.stack(masks)
