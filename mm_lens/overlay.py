"""Draw on the image what the model makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from PIL import Image

from mm_lens.errors import InputError
from mm_lens.inputs import Inputs
from mm_lens.layout import TokenLayout
from mm_lens.plots import Picture

# Okabe and Ito's colours, told apart also by the colour-blind.
TILE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw_layout(inputs: Inputs, row: int = 0, image: int = 0) -> Picture:
    """The tokens of one image, drawn over it: overview left, high-resolution tiles right.

    Every cell is the pixel box of one language-model token; the first and last token of each part
    carry their position in the sequence. Each tile has a colour of its own. A tick at the end of a
    row stands for the newline token that follows it.

    Args:
        inputs: what `model.prepare` returned.
        row: row of the batch.
        image: image of this row.

    Raises:
        InputError: there is no such image.
    """
    pictures = inputs.images[row]
    if not 0 <= image < len(pictures):
        raise InputError(f"Row {row} has {len(pictures)} image(s); there is no image {image}.")
    layout = inputs.layout.row_of(row).to("cpu")
    mine = (layout.image[0] == image).numpy()
    tile = layout.tile[0].numpy()
    groups = {"overview": mine & (tile == 0), "high-resolution tiles": mine & (tile > 0)}
    groups = {name: where for name, where in groups.items() if where.any()}

    picture = pictures[image]
    aspect = picture.height / picture.width
    width = 4.6 if aspect > 1 / 3 else 7.5
    stacked = aspect < 1 / 3  # very wide images go below each other
    shape = (len(groups), 1) if stacked else (1, len(groups))
    height = min(max(width * aspect, 1.2), 9.0) + 0.7
    figure = Picture(figsize=(shape[1] * width, shape[0] * height), layout="constrained")
    axes = np.atleast_1d(figure.subplots(*shape)).ravel()
    for axis, (name, where) in zip(axes, groups.items(), strict=True):
        _draw_picture(axis, picture)
        _draw_boxes(axis, layout, where, tile)
        n_newlines = 0
        if name != "overview":
            n_newlines = _draw_newlines(axis, layout, mine)
        extra = f" + {n_newlines} newlines" if n_newlines else ""
        axis.set_title(f"{name}: {int(where.sum())} tokens{extra}", fontsize=11)
    return figure


def _draw_picture(axis: Axes, picture: Image.Image) -> None:
    axis.imshow(np.asarray(picture), extent=(0, picture.width, picture.height, 0))
    axis.set_xlabel("x in pixels")
    axis.set_ylabel("y in pixels")
    axis.set_xlim(0, picture.width)
    axis.set_ylim(picture.height, 0)


def _draw_boxes(axis: Axes, layout: TokenLayout, where: Any, tile: Any) -> None:
    boxes = layout.box[0].numpy()
    positions = np.flatnonzero(where & ~np.isnan(boxes[:, 0]))
    rectangles, colours = [], []
    for position in positions:
        x0, y0, x1, y1 = boxes[position]
        rectangles.append(Rectangle((x0, y0), x1 - x0, y1 - y0))
        colours.append(TILE_COLOURS[(tile[position] - 1) % len(TILE_COLOURS)])
    if tile[positions].max(initial=0) == 0:
        colours = ["#404040"] * len(rectangles)
    axis.add_collection(
        PatchCollection(rectangles, facecolor="none", edgecolor=colours, linewidth=1.1, alpha=0.9)
    )
    for position in (positions[0], positions[-1]):
        x0, y0, x1, y1 = boxes[position]
        axis.text((x0 + x1) / 2, (y0 + y1) / 2, str(position), ha="center", va="center", fontsize=7)


def _draw_newlines(axis: Axes, layout: TokenLayout, mine: Any) -> int:
    """A tick right of every row of patches that a newline token ends."""
    boxes = layout.box[0].numpy()
    grid_row = layout.grid_row[0].numpy()
    newline = layout.newline[0].numpy() & mine
    tiles = (layout.tile[0].numpy() > 0) & mine
    width = layout.image_sizes[0][int(layout.image[0].numpy()[mine][0])][1]
    for row in grid_row[newline]:
        ends = boxes[tiles & (grid_row == row)]
        if len(ends):
            y = float(np.nanmean(ends[:, [1, 3]]))
            axis.plot([width * 1.01, width * 1.03], [y, y], color="black", clip_on=False, lw=1.5)
    return int(newline.sum())
