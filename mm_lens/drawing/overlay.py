"""Draw on the image what the model makes of it: its tokens, and one value for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection, PolyCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from mm_lens.arguments import require_kind, resolve_rows
from mm_lens.data.pictures import Picture, open_picture
from mm_lens.drawing.curves import DPI, InlineFigure
from mm_lens.drawing.on_image import (
    STRIP,
    Scale,
    TokenBoxes,
    find_token_boxes,
    panel_names,
    relief,
    scale_of,
    values_table,
)
from mm_lens.errors import InputError
from mm_lens.layout.layout import TokenLayout
from mm_lens.model.inputs import Inputs

WIDTH = 10.0
"""Of a figure with values, in inches: that of a notebook."""
MAX_LAYERS = 8
FLATTEST = 8.0
"""Pictures that are longer for their width are drawn as if they were not, and it is said."""
NUMBERS = "numbers: first and last position in the sequence"
STRETCHED = "stretched: a strip of these proportions would hide its tokens"

# Okabe and Ito's colours, told apart also by the colour-blind.
OVERVIEW_COLOUR = "#404040"
HALO = [withStroke(linewidth=2, foreground="white")]
"""Around what is written on a picture, so that it is read on any ground."""
TILE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw_layout(inputs: Inputs, row: int = 0, image: int = 0) -> InlineFigure:
    """The tokens of one image, drawn over it: overview left, high-resolution tiles right.

    Every cell is the pixel box of one language-model token; the first and last token of each part
    carry their position in the sequence. Each tile has a colour of its own. A tick at the end of a
    row stands for the newline token that follows it. A legend says so in the picture.

    ```python
    draw_layout(model.prepare("what is it?", image)).savefig("tokens.png")
    ```

    Args:
        inputs: what `model.prepare` returned.
        row: row of the batch.
        image: image of this row.

    Raises:
        InputError: there is no such image.
    """
    require_kind("inputs", inputs, Inputs, "what model.prepare(text, images) returns")
    pictures = inputs.images[resolve_rows([row], len(inputs.images))[0]]
    if not 0 <= image < len(pictures):
        raise InputError(f"Row {row} has {len(pictures)} image(s); there is no image {image}.")
    layout = inputs.layout.row_of(row).to("cpu")
    mine = (layout.image[0] == image).numpy()
    tile = layout.tile[0].numpy()
    groups = {"overview": mine & (tile == 0), "high-resolution tiles": mine & (tile > 0)}
    groups = {name: where for name, where in groups.items() if where.any()}

    picture = pictures[image]
    aspect = _drawn_aspect(picture)
    width = 4.6 if aspect > 1 / 3 else 7.5
    stacked = aspect < 1 / 3  # very wide images go below each other
    shape = (len(groups), 1) if stacked else (1, len(groups))
    height = min(max(width * aspect, 1.2), 9.0) + 0.7
    entries = _legend_entries(groups, tile, bool((layout.newline[0].numpy() & mine).any()))
    columns = 4 if shape[1] * width > 6 else 1
    below = 0.45 + 0.2 * -(-len(entries) // columns)  # of the legend, in inches
    figure = InlineFigure(
        figsize=(shape[1] * width, shape[0] * height + below), layout="constrained"
    )
    axes = np.atleast_1d(figure.subplots(*shape)).ravel()
    for axis, (name, where) in zip(axes, groups.items(), strict=True):
        _draw_picture(axis, picture)
        _draw_boxes(axis, layout, where, tile)
        n_newlines = 0
        if name != "overview":
            n_newlines = _draw_newlines(axis, layout, mine)
        extra = f" + {n_newlines} newlines" if n_newlines else ""
        axis.set_title(f"{name}: {int(where.sum())} tokens{extra}", fontsize=11)
    told = [NUMBERS, *[STRETCHED] * (aspect != picture.height / picture.width)]
    figure.legend(
        handles=entries, loc="outside lower center", ncols=columns, fontsize=9, frameon=False,
        title="\n".join(told), title_fontsize=9,
    )  # fmt: skip
    return figure


def _legend_entries(groups: dict[str, Any], tile: Any, newlines: bool) -> list[Any]:
    """What colours and strokes mean, as handles of a legend."""
    kinds = []
    if "overview" in groups:
        kinds.append((OVERVIEW_COLOUR, "overview: the whole picture, coarse"))
    numbers = sorted({int(n) for where in groups.values() for n in tile[where]} - {0})
    for k, colour in enumerate(TILE_COLOURS[: len(numbers)]):
        same = ", ".join(map(str, numbers[k :: len(TILE_COLOURS)]))
        kinds.append((colour, f"tile{'s' * (',' in same)} {same}"))
    handles: list[Any] = [
        Patch(facecolor="none", edgecolor=colour, linewidth=1.5, label=label)
        for colour, label in kinds
    ]
    if newlines:
        handles.append(
            Line2D([], [], color="black", lw=1.5, markersize=0, label="newline token, ends its row")
        )
    return handles


def _drawn_aspect(picture: Image.Image) -> float:
    """Height over width as it is drawn: a strip is stretched, or its tokens could not be seen."""
    return min(max(picture.height / picture.width, 1 / FLATTEST), FLATTEST)


def _draw_picture(axis: Axes, picture: Image.Image) -> None:
    real, drawn = picture.height / picture.width, _drawn_aspect(picture)
    axis.imshow(
        np.asarray(picture), extent=(0, picture.width, picture.height, 0), aspect=drawn / real
    )
    axis.locator_params("x", nbins=min(6, picture.width), integer=True)
    axis.locator_params("y", nbins=min(6, picture.height), integer=True)
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
        colours = [OVERVIEW_COLOUR] * len(rectangles)
    cells = PatchCollection(rectangles, facecolor="none", edgecolor=colours, linewidth=1.1)
    cells.set_path_effects([withStroke(linewidth=2.2, foreground="white", alpha=0.7)])
    axis.add_collection(cells)
    for position in (positions[0], positions[-1]):
        x0, y0, x1, y1 = boxes[position]
        axis.text(
            (x0 + x1) / 2, (y0 + y1) / 2, str(position), ha="center", va="center", fontsize=7.5,
            path_effects=HALO,
        )  # fmt: skip


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


def draw_values(
    image: Picture,
    layout: TokenLayout,
    values: Any,
    *,
    row: int = 0,
    index: int = 0,
    label: str = "value",
    layers: Sequence[int] | None = None,
    names: Sequence[str] = (),
    limits: tuple[float, float] | None = None,
) -> InlineFigure:
    """Draw one value for each image token on the image: overview, tiles and newlines apart.

    Every cell is the pixel box of one token; those of newline tokens stand right of the picture,
    beside the row that they end. Hatched is what has no value: NaN, or no token at all, as outside
    of a centre crop. Colours are told apart with any colour vision (cividis; a diverging map
    around zero where values have both signs). Over them lie the edges of the picture, light and
    dark; where it is flat, the colours are those of the colour bar.

    ```python
    draw_values(image, inputs.layout, norms(model, inputs)[:, 0], layers=[0, 4, 8], label="norm")
    ```

    Args:
        image: the picture that was prepared, in any of the forms that `prepare` takes.
        layout: `inputs.layout`.
        values: `[pos]`, or `[n]` for the n visual tokens of the row in order; of several
            layers `[layers, pos]`: one panel for each, in the same colours. NaN is no value.
        row: row of the batch.
        index: image of this row.
        label: of the colour bar, with the unit.
        layers: numbers of those to draw, as they stand in the values; None draws all.
        names: of the layers drawn; without any, their numbers.
        limits: of the colours; None takes the range of all values. Beyond, colours stay the same
            and the colour bar has a pointed end.

    Raises:
        InputError: there is no such image, or it is of another size; the values do not fit the
            layout, or none is finite; there are more than 8 layers (`explore` has a slider), or
            a layer that was asked for is not there.
    """
    require_kind("layout", layout, TokenLayout, "inputs.layout")
    picture = open_picture(image)
    table = values_table(picture, layout, values, row, index, layers)
    if len(table) > MAX_LAYERS:
        raise InputError(
            f"{len(table)} layers do not fit into one picture. Choose up to {MAX_LAYERS} "
            "(layers=[…]), or use mm_lens.drawing.explore, which has a slider."
        )
    unnamed = not names and layers is None and len(table) == 1
    names = [""] if unnamed else panel_names(table, layers, names)
    scale, shade = scale_of(table, limits), np.asarray(relief(picture))
    parts: list[TokenBoxes | None] = [*find_token_boxes(layout, row, index)]
    single, wide = len(table) == 1, picture.height < picture.width / 3
    aspect = _drawn_aspect(picture)
    if single:
        parts = [None, *parts]  # the picture itself beside it
    titles = ["picture" if part is None else part.title for part in parts]
    # Layers side by side and parts below each other; of wide pictures and of one layer the reverse.
    panels = [[(part, layer) for layer in table] for part in parts]
    rows, columns = titles, names
    if single != wide:
        panels = [list(line) for line in zip(*panels, strict=True)]
        rows, columns = columns, rows
    figure, grid, bar = _grid(len(rows), len(columns), aspect)
    stretched = aspect != picture.height / picture.width
    down = "y in pixels, stretched" if stretched else "y in pixels"
    for i, line in enumerate(panels):
        for j, (part, layer) in enumerate(line):
            _fill_panel(grid[i][j], picture, part, layer, scale, shade)
            # All panels show the same pixels: the outer ones say which.
            grid[i][j].tick_params(labelleft=j == 0, labelbottom=i == len(rows) - 1)
        grid[i][0].set_ylabel("\n".join(filter(None, [rows[i], down])))
    for axis, title in zip(grid[0], columns, strict=True):
        axis.set_title(title, fontsize=10)
    for axis in grid[-1]:
        axis.set_xlabel("x in pixels")
    mappable = ScalarMappable(scale.norm, scale.colours)
    figure.colorbar(mappable, cax=bar, extend=scale.extend, label=label)
    return figure


def _grid(n_rows: int, n_columns: int, aspect: float) -> tuple[InlineFigure, Any, Axes]:
    """Panels at fixed places, and the axes of a colour bar right of them."""
    left, right, top, bottom, gap = 0.95, 1.0, 0.5, 0.5, 0.25  # inches
    strip = STRIP[1] * min(1, 2 * aspect)  # newlines beside a panel, in widths of it
    width = ((WIDTH - left - right) / n_columns - gap) / (1 + strip)
    tallest = min(6.5, 9 / n_rows)
    width = min(width, tallest / aspect, 3.2 if aspect > 1 / 3 else width)
    height = width * aspect
    across = max(width * (1 + strip) + gap, 1.0)  # room for the titles of narrow panels
    down = max(height, 0.8) + gap
    size = (left + n_columns * across + right, top + n_rows * down - gap + bottom)
    figure = InlineFigure(figsize=size, dpi=DPI)
    FigureCanvasAgg(figure)

    def place(x: float, y: float, w: float, h: float) -> Axes:
        """Axes at inches from the left and from the top."""
        return figure.add_axes((x / size[0], 1 - (y + h) / size[1], w / size[0], h / size[1]))

    grid = [
        [place(left + j * across, top + i * down, width, height) for j in range(n_columns)]
        for i in range(n_rows)
    ]
    whole = (n_rows - 1) * down + max(height, 0.8)
    return figure, grid, place(left + n_columns * across, top, 0.18, whole)


def _fill_panel(
    axis: Axes, image: Image.Image, part: TokenBoxes | None, layer: Any, scale: Scale, shade: Any
) -> None:
    width, height = image.size
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.tick_params(labelsize=8)
    inches = axis.get_window_extent().width / DPI
    axis.locator_params("x", nbins=min(5, max(1, int(3.2 * inches))))
    axis.locator_params("y", nbins=5)
    if part is None:
        axis.imshow(np.asarray(image), extent=(0, width, height, 0), aspect="auto")
        return
    axis.add_patch(
        Rectangle((0, 0), width, height, fc="white", ec="0.65", hatch="////", linewidth=0)
    )
    values = layer[part.positions]
    x0, y0, x1, y1 = rearrange(part.boxes, "cell side -> side cell")
    around = np.stack([x0, y0, x1, y0, x1, y1, x0, y1])
    corners = rearrange(around, "(corner xy) cell -> cell corner xy", xy=2)
    finite = np.isfinite(values)
    cells = PolyCollection(
        corners[finite],
        array=values[finite],
        cmap=scale.colours,
        norm=scale.norm,
        antialiased=False,  # else hairlines between the cells
        linewidth=0,
        clip_on=False,
    )
    axis.add_collection(cells, autolim=False)
    axis.imshow(shade, extent=(0, width, height, 0), aspect="auto", zorder=2)
    empty = PolyCollection(
        corners[~finite], facecolor="none", edgecolor="0.65", linewidth=0.5, clip_on=False
    )
    axis.add_collection(empty, autolim=False)
    axis.set(xlim=(0, width), ylim=(height, 0))
