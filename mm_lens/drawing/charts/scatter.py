"""Points of states in a plane, a panel for each layer."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from mm_lens.drawing.charts.columns import require_columns
from mm_lens.drawing.components import COLOURS
from mm_lens.drawing.curves import InlineFigure

WIDE = 4
"""Panels beside each other."""
KINDS = (*COLOURS, "#BBBBBB", "#8C564B", "#9467BD", "#E67E22", "#1B6E5A")
"""Colours of kinds: regions are often more than seven."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def is_scale(table: pd.DataFrame, colour: str) -> bool:
    """Whether a column is drawn as shades of one scale: depth, or a number with a fraction."""
    return colour == "layer" or pd.api.types.is_float_dtype(table[colour])


def draw_scatter(table: pd.DataFrame, colour: str = "group") -> InlineFigure:
    """Draw what `mm_lens.looking.state_scatter` returned: a panel for each layer.

    Coloured by layer, all layers are in one panel: that is worth something with `together=True`,
    where they are in one plane.

    Args:
        table: with the columns layer, x, y.
        colour: column that colours and markers stand for: "modality", "group", "region",
            "picture", "layer", or one of your own; of numbers with a fraction, a scale.

    Raises:
        InputError: there is no such column.
    """
    require_columns(table, ("layer", "x", "y", colour), empty=True)
    single = colour == "layer"
    layers = [None] if single else list(table["layer"].unique())
    columns = min(WIDE, max(len(layers), 1))
    rows = math.ceil(max(len(layers), 1) / columns)
    side = 4.4 if columns == 1 else 2.6
    figure = InlineFigure(figsize=(side * columns, side * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    values = table[colour].unique()
    scale = None
    if is_scale(table, colour) and len(table):
        norm = Normalize(float(table[colour].min()), float(table[colour].max()))
        scale = ScalarMappable(norm, colormaps["cividis"])
    explained = table.attrs.get("explained", {})
    for panel, layer in zip(panels, layers, strict=False):
        here = table if layer is None else table[table["layer"] == layer]
        if scale is None:
            _draw_kinds(panel, here, colour, values)
        else:
            shades = scale.to_rgba(here[colour].to_numpy(float))
            panel.scatter(here["x"], here["y"], s=12, c=shades, linewidths=0)
        panel.set_title("" if layer is None else f"layer {layer}", fontsize=9)
        share = explained.get(here["layer"].iloc[0] if layer is None and len(here) else layer)
        if share is not None and math.isfinite(share):
            panel.set_xlabel(f"{share:.0%} of the variance", fontsize=8)
        panel.set_xticks([])
        panel.set_yticks([])
    for panel in panels[len(layers) :]:
        panel.set_visible(False)
    if scale is not None:
        figure.colorbar(scale, ax=[*panels], label=colour)
    elif len(layers):
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=min(8, max(2, 2 * columns)),
            fontsize=8,
            title=colour,
        )
    return figure


def _draw_kinds(panel: Axes, here: pd.DataFrame, colour: str, values: Any) -> None:
    """A colour and marker for each value of a column."""
    for i, value in enumerate(values):
        points = here[here[colour] == value]
        panel.scatter(
            points["x"],
            points["y"],
            s=12,
            alpha=0.7,
            color=KINDS[i % len(KINDS)],
            marker=MARKERS[i % len(MARKERS)],
            linewidths=0,
            label=str(value),
        )
