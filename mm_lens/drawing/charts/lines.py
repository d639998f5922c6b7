"""Columns of a table as curves with their intervals: what a lens or a probe says over depth."""

from __future__ import annotations

import math
from textwrap import wrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import MaxNLocator

from mm_lens.drawing.charts.columns import require_columns
from mm_lens.drawing.components import COLOURS
from mm_lens.drawing.curves import DPI, InlineFigure

WIDE = 4
"""Panels beside each other."""
MARKERS = "os^Dvp"
LETTERS = 26
"""Of a line of the label of the heights: as many as a panel is high."""
STYLES = ("-", "--", "-.")


def draw_lines(
    table: pd.DataFrame,
    value: str,
    by: str,
    *,
    x: str = "layer",
    panels: str | None = None,
    label: str | None = None,
    level: tuple[float, str] | None = None,
) -> InlineFigure:
    """Draw a column over another one: a curve for each value of a third.

    Where the table has `low` and `high`, they are a band around the curve of `value`; several rows
    with the same place on a curve (of several pictures, say) are drawn as their mean, without a
    band.

    ```python
    table = lens_curves(model, batches)
    draw_lines(table, "value", "group", panels="quantity")
    ```

    Args:
        table: a row for each point.
        value: column of the heights.
        by: column that tells the curves apart.
        x: column of the places; text is drawn in the order in which it comes.
        panels: column that tells panels apart, each with heights of its own; None draws one.
        label: of the heights, with the unit; None takes the name of the column.
        level: a height, and what it is: a dotted line (chance, no edit).

    Raises:
        InputError: the table has no such column, or no row.
    """
    require_columns(table, [x, value, by, *([panels] if panels else [])])
    parts = {"": table} if panels is None else dict(list(table.groupby(panels, sort=False)))
    columns = min(WIDE, len(parts))
    rows = math.ceil(len(parts) / columns)
    width = 5.2 if columns == 1 else 3.1
    figure = InlineFigure(
        figsize=(width * columns, 2.9 * rows + 0.3), dpi=DPI, layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    curves = list(dict.fromkeys(table[by]))
    named = not pd.api.types.is_numeric_dtype(table[x])
    places = {place: k for k, place in enumerate(dict.fromkeys(table[x]))}
    for axis, (name, part) in zip(grid, parts.items(), strict=False):
        for k, curve in enumerate(curves):
            rows_of = part[part[by] == curve]
            if len(rows_of):
                _draw_curve(axis, rows_of, x, value, places if named else None, str(curve), k)
        if level is not None:
            axis.axhline(level[0], color="0.35", linestyle=":", linewidth=1.2, label=level[1])
        axis.set_title(str(name), fontsize=10)
        axis.set_xlabel(x)
        if pd.api.types.is_integer_dtype(table[x]):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if named:
            axis.set_xticks(range(len(places)), [str(place) for place in places], fontsize=8)
        axis.grid(color="0.92")
        axis.spines[["top", "right"]].set_visible(False)
    for row in range(rows):
        name = value if label is None else label
        grid[row * columns].set_ylabel("\n".join(wrap(name, LETTERS)))
    for axis in grid[len(parts) :]:
        axis.set_visible(False)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=9,
        frameon=False, title=f"{by}; bands: intervals" if {"low", "high"} <= {*table} else by,
        title_fontsize=8,
    )  # fmt: skip
    return figure


def _draw_curve(
    axis: Axes,
    rows: pd.DataFrame,
    x: str,
    value: str,
    places: dict[object, int] | None,
    name: str,
    k: int,
) -> None:
    """One curve, and its band."""
    at = rows[x] if places is None else rows[x].map(places)
    numbers = [c for c in (value, "low", "high") if c in rows]
    points = rows[numbers].astype(float).groupby(at.to_numpy()).agg(["mean", "size"])
    colour, marker, style = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)], STYLES
    where = points.index.to_numpy(float)
    single = bool((points[value, "size"] == 1).all())
    if single and {"low", "high"} <= {*rows}:
        low, high = (points[c, "mean"].to_numpy(float) for c in ("low", "high"))
        axis.fill_between(where, low, high, color=colour, alpha=0.18, linewidth=0)
    axis.plot(
        where,
        np.asarray(points[value, "mean"], dtype=float),
        color=colour,
        marker=marker,
        markersize=4.5,
        linestyle=style[k // len(COLOURS) % len(style)],
        label=name,
    )
