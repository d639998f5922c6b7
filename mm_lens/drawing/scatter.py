"""Points of states in a plane, a panel for each layer."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mm_lens.errors import InputError


def draw_scatter(table: pd.DataFrame, colour: str = "group") -> Any:
    """Draw what `mm_lens.looking.state_scatter` returned, as a plotly figure.

    Args:
        table: with the columns layer, x, y.
        colour: column that the colours stand for: "group", "picture", or one of your own.

    Raises:
        InputError: there is no such column.
    """
    if missing := [name for name in ("layer", "x", "y", colour) if name not in table]:
        raise InputError(
            f"The points have no column {missing[0]!r}, but {', '.join(map(str, table))}."
        )
    import plotly.express as px

    shown = table.assign(**{colour: table[colour].astype(str)}) if colour == "picture" else table
    rest = [name for name in table if name not in ("x", "y", "layer", colour)]
    figure = px.scatter(
        shown, x="x", y="y", color=colour, facet_col="layer", facet_col_wrap=4, hover_data=rest
    )
    figure.update_xaxes(matches=None, showticklabels=False, title="")
    figure.update_yaxes(matches=None, showticklabels=False, title="")
    figure.update_traces(marker={"size": 5, "opacity": 0.7})
    return figure
