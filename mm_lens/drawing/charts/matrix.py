"""Tables of colours: heads × layers, regions × layers."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd

from mm_lens.drawing.charts.columns import require_columns
from mm_lens.drawing.curves import DPI, InlineFigure
from mm_lens.drawing.on_image import scale_of
from mm_lens.errors import InputError

MOST = 40
"""Rows of a table of colours."""


def draw_matrix(
    table: pd.DataFrame,
    value: str,
    *,
    x: str = "layer",
    y: str = "head",
    label: str | None = None,
    words: str | None = None,
) -> InlineFigure:
    """Draw a column as colours: a row for each `y`, a column for each `x`.

    Several rows with the same `x` and `y` (of several pictures, say) are drawn as their mean;
    places without a row stay white. Colours are cividis, or red to blue around zero where values
    have both signs.

    ```python
    draw_matrix(head_scores(model, inputs, box), "region", label="attention to the region")
    ```

    Args:
        table: a row for each cell.
        value: column of the colours.
        x: column that tells the columns apart.
        y: column that tells the rows apart.
        label: of the colour bar, with the unit; None takes the name of the column.
        words: column of a text, or of a list of which the first, to stand in each cell.

    Raises:
        InputError: the table has no such column, no row, or no finite value.
    """
    require_columns(table, [x, y, value, *([words] if words else [])])
    rows, columns = ([*dict.fromkeys(table[name])] for name in (y, x))
    means = table.groupby([y, x], sort=False)[value].mean().unstack(x).loc[rows, columns]
    values = means.to_numpy(float)
    if not np.isfinite(values).any():
        raise InputError(f"The column {value!r} has no finite value: there is nothing to draw.")
    texts = None
    if words:
        first = table.groupby([y, x], sort=False)[words].first().unstack(x).loc[rows, columns]
        texts = [[_text(one) for one in line] for line in first.to_numpy()]
    names = [f"{y} {name}" if _is_number(name) else str(name) for name in rows]
    return draw_colours(values, names, columns, value if label is None else label, x=x, texts=texts)


def draw_colours(
    values: Any,
    labels: Sequence[str],
    numbers: Sequence[Any],
    label: str,
    title: str = "",
    *,
    x: str = "layer",
    texts: Sequence[Sequence[str]] | None = None,
) -> InlineFigure:
    """The same of an array, `[row, column]`; of many rows those with the largest values.

    Args:
        values: NaN is no value.
        labels: of the rows.
        numbers: of the columns.
        label: of the colour bar.
        title: above it.
        x: what the columns are.
        texts: to stand in the cells.
    """
    if len(values) > MOST:  # those with the largest effects, in their order
        keep = np.sort(np.argsort(-np.abs(values).max(1))[:MOST])
        title = f"the {MOST} of {len(values)} with the largest effects"
        values, labels = values[keep], [labels[k] for k in keep]
        texts = texts and [texts[k] for k in keep]
    scale = scale_of(values, None)
    wide = 0.55 if texts is None else 0.85
    height = max(1.3 + 0.3 * len(labels), 2.3)
    # As long as the bar beside few rows is high: some 11 letters an inch.
    label = "\n".join(wrap(label, int(11 * (height - 0.7))))
    figure = InlineFigure(
        figsize=(2.6 + min(wide * len(numbers), 8.0), height),
        dpi=DPI,
        layout="constrained",
    )
    axis = figure.subplots()
    drawn = axis.imshow(values, cmap=scale.colours, norm=scale.norm, aspect="auto")
    axis.set_yticks(range(len(labels)), labels)
    step = max(1, len(numbers) // 16)
    axis.set_xticks(range(0, len(numbers), step), [str(n) for n in numbers[::step]])
    axis.set_xlabel(x)
    axis.set_title(title, fontsize=10)
    for i, line in enumerate(texts or ()):
        for j, text in enumerate(line):
            dark = np.dot(drawn.to_rgba(values[i, j])[:3], (0.299, 0.587, 0.114)) < 0.5
            axis.text(
                j, i, text, ha="center", va="center", fontsize=7.5,
                color="white" if dark else "black", parse_math=False,
            )  # fmt: skip
    figure.colorbar(drawn, ax=axis, label=label)
    return figure


def _text(one: Any, most: int = 9) -> str:
    """A text, or the first of several, short enough for a cell."""
    first = (one[0] if len(one) else "") if isinstance(one, list | tuple) else one
    word = "" if first is None or first != first else " ".join(str(first).split())
    return word if len(word) <= most else f"{word[: most - 1]}…"


def _is_number(name: object) -> bool:
    return isinstance(name, int | float | np.integer | np.floating)
