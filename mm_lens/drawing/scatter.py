"""Points of states in a plane, a panel for each layer."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mm_lens.drawing.components import COLOURS
from mm_lens.drawing.curves import InlineFigure
from mm_lens.errors import InputError

WIDE = 4
"""Panels beside each other."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def draw_scatter(table: pd.DataFrame, colour: str = "group") -> InlineFigure:
    """Draw what `mm_lens.looking.state_scatter` returned.

    Args:
        table: with the columns layer, x, y.
        colour: column that colours and markers stand for: "group", "picture", or one of your own.

    Raises:
        InputError: there is no such column.
    """
    if missing := [name for name in ("layer", "x", "y", colour) if name not in table]:
        raise InputError(
            f"The points have no column {missing[0]!r}, but {', '.join(map(str, table))}."
        )
    layers, values = table["layer"].unique(), table[colour].unique()
    columns = min(WIDE, max(len(layers), 1))
    rows = math.ceil(max(len(layers), 1) / columns)
    figure = InlineFigure(figsize=(2.6 * columns, 2.6 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel, layer in zip(panels, layers, strict=False):
        here = table[table["layer"] == layer]
        for i, value in enumerate(values):
            points = here[here[colour] == value]
            panel.scatter(
                points["x"],
                points["y"],
                s=12,
                alpha=0.7,
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                linewidths=0,
                label=str(value),
            )
        panel.set_title(f"layer {layer}", fontsize=9)
        panel.set_xticks([])
        panel.set_yticks([])
    for panel in list(figure.axes)[len(layers) :]:
        panel.set_visible(False)
    if len(layers):
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=8, fontsize=8, title=colour
        )
    return figure
