"""Effects of interventions as pictures: curves over layers, tables of colours, on the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from einops import reduce
from matplotlib.ticker import MaxNLocator

from mm_lens.arguments import resolve_rows
from mm_lens.drawing.charts.matrix import draw_colours
from mm_lens.drawing.curves import DPI, InlineFigure
from mm_lens.drawing.on_image import spread_out
from mm_lens.drawing.overlay import TILE_COLOURS, draw_values
from mm_lens.errors import InputError

if TYPE_CHECKING:
    from mm_lens.causal.region_result import RegionPatching

FEW = 4
"""Regions of a picture from which on effects are drawn on it."""
MARKERS = "os^Dvp"
STYLES = ("-", "--", ":")
TELLING = ("group", "how", "what", "directions", "k")
"""Columns that tell the interventions of a table apart."""


def draw_effects(table: pd.DataFrame, metric: str | None = None) -> InlineFigure:
    """Effects over the layers with their intervals: a curve for each intervention.

    Args:
        table: what `knockout_table` or `ablation_table` returned, or rows of it.
        metric: which one; None draws each in a panel of its own.

    Raises:
        InputError: the table has no such metric, or no row.
    """
    known = [*dict.fromkeys(table["metric"])]
    if not known or (metric is not None and metric not in known):
        raise InputError(f"The table holds no metric {metric!r}; it holds {', '.join(known)}.")
    table = table.reset_index(drop=True)
    lengths = table.last_layer - table.first_layer + 1
    labels = _name_curves(table, lengths)
    chosen = known if metric is None else [metric]
    figure = InlineFigure(figsize=(5.2 * len(chosen) + 0.4, 3.9), dpi=DPI, layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(chosen)))
    for axis, name in zip(axes, chosen, strict=True):
        rows = table[table["metric"] == name]
        for k, label in enumerate(dict.fromkeys(labels[rows.index])):
            line = rows[labels[rows.index] == label].sort_values("first_layer")
            x = (line.first_layer + line.last_layer).to_numpy(float) / 2
            again, place = divmod(k, len(TILE_COLOURS))  # the same colour: another marker and line
            colour, marker = TILE_COLOURS[place], MARKERS[(place + again) % len(MARKERS)]
            style = STYLES[again % len(STYLES)]
            axis.fill_between(
                x, line.low.to_numpy(float), line.high.to_numpy(float), color=colour, alpha=0.18,
                linewidth=0,
            )  # fmt: skip
            axis.plot(
                x, line.effect.to_numpy(float), style, color=colour, marker=marker, label=label
            )
        axis.axhline(0, color="0.6", linewidth=1)
        width = int(lengths.max())
        window = f"middle of the window of {width} layers" if lengths.nunique() == 1 else "middle"
        axis.set_xlabel("layer" if width == 1 else window)
        axis.set_ylabel(f"effect on {name}")
        axis.set_title(f"without any edit: {rows.baseline.mean():.3g}", fontsize=10)
        if width == 1:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9)
    n = int(table.n.max())
    bands = "Bands: 95 % interval over samples" if table.low.notna().any() else "No interval"
    figure.supxlabel(f"{bands}; n = {n}.", fontsize=9, color="0.35")
    return figure


def _name_curves(table: pd.DataFrame, lengths: pd.Series) -> pd.Series:
    """The curve that each row belongs to: what tells its intervention from others at its layers."""
    if "edge" in table:
        return table["edge"]
    there = [name for name in TELLING if name in table]
    telling = [name for name in there if table[name].nunique() > 1] or there[:1]
    labels = table[telling].astype(str).agg(" ".join, axis=1)
    if lengths.nunique() > 1:
        labels += ", " + lengths.astype(str) + " in a row"
    return labels


def draw_patching(
    result: RegionPatching,
    metric: str | None = None,
    *,
    layers: Sequence[int] | None = None,
    row: int | None = None,
    image: int = 0,
) -> InlineFigure:
    """Effects of a sweep: on the picture where its regions are of one, else a table of colours.

    Args:
        result: what a function of `mm_lens.patching` returned.
        metric: which one; None takes the first.
        layers: numbers of layers to draw on the picture; None takes up to five, evenly spread.
        row: row of the batch; None takes the first on the picture, and the mean in a table.
        image: image of this row.

    Raises:
        InputError: there is no such metric, layer or row.
    """
    name = result.metric_names[0] if metric is None else metric
    if name not in result.metric_names:
        known = ", ".join(result.metric_names)
        raise InputError(f"The sweep has no metric {name!r}; it has {known}.")
    effect = result[name].changes().float().cpu()
    effect = effect[..., None] if result.reduced else effect
    numbers = [*dict.fromkeys(result.index_df["layer"])]
    label = f"effect on {'the metric' if name == 'metric' else name}"
    rows = effect.shape[-1]
    mine = None if row is None else resolve_rows([row], rows)[0]
    if "head" in result.axis_names:
        return _draw_heads(result, effect, numbers, label, mine)
    if not result.is_on_picture:
        values = effect[..., mine] if mine is not None else effect.mean(-1)
        labels = [str(x) for x in result.index_df[result.axis_names[1]][: values.shape[1]]]
        return draw_colours(values.T.numpy(), labels, numbers, label)
    assert result.regions is not None
    assert result.inputs is not None
    at = mine or 0
    wanted = spread_out(len(numbers)) if layers is None else [_place(n, numbers) for n in layers]
    painted = [result.regions.paint(effect[k, :, min(at, rows - 1)])[at] for k in wanted]
    inputs = result.inputs
    return draw_values(
        inputs.images[at][image],
        inputs.layout,
        np.stack([each.cpu().numpy() for each in painted]),
        row=at,
        index=image,
        label=label,
        names=[f"layer {numbers[k]}" for k in wanted],
    )


def _place(layer: int, numbers: Sequence[int]) -> int:
    if layer not in numbers:
        swept = ", ".join(map(str, numbers))
        raise InputError(f"Layer {layer} was not swept; these were: {swept}.")
    return numbers.index(layer)


def _draw_heads(
    result: Any, effect: Any, numbers: Sequence[int], label: str, row: int | None
) -> InlineFigure:
    """Heads × layers, at the region with the largest effect."""
    values = effect[..., row] if row is not None else effect.mean(-1)
    strongest = int(reduce(values.abs(), "layer region head -> region", "max").argmax())
    regions = [*dict.fromkeys(result.index_df[result.axis_names[1]])]
    heads = [f"head {k}" for k in range(values.shape[2])]
    title = f"patched at {regions[strongest]} (the largest effect of {len(regions)} regions)"
    return draw_colours(values[:, strongest].T.numpy(), heads, numbers, label, title)
