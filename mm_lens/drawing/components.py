"""Pictures of a profile of many hooks: components over depth, heads × layers, pixel to word.

- A line per component: how the parts of a block compare over depth, per modality.
- Heads × layers: one value per head, as a map.
- Pixel to word: visual tokens from the tower's first block to the last state, in the order in which
  data flows. A metric of two hooks stands at the later one.

Colours of Paul Tol's "bright" scheme, told apart with any colour vision; markers and line styles
tell components apart where colours repeat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mm_lens.drawing import curves, page
from mm_lens.metrics import METRICS
from mm_lens.profiling.points.lines import STATES, list_components, name_lines, place_on_path
from mm_lens.profiling.result import Profile

COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#000000")
MARKS = (("o", "-"), ("s", "--"), ("^", "-."))
MODALITIES = ("visual", "text", "all")


def has_components(profile: Profile) -> bool:
    """Whether there is more than the states of the residual stream."""
    return set(name_lines(profile.table)) != {STATES}


def chosen_metrics(profile: Profile) -> list[str]:
    """Metrics of the honest preset that stand for their kind, or the first one there is."""
    found = [m for m in curves.headline(profile) if "honest" in METRICS[m].headline]
    return found or curves.metrics(profile)[:1]


def _styles(lines: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and line style of each line."""
    looks = [(colour, *mark) for mark, colour in product(MARKS, COLOURS)]
    return {line: looks[i % len(looks)] for i, line in enumerate(lines)}


def _rows(profile: Profile, metric: str) -> pd.DataFrame:
    table = profile.table
    # Without chance, of which there would be a line for each component.
    rows = table.assign(line=name_lines(table), chance=np.nan)
    return rows[rows.metric == metric]


def component_panels(
    profile: Profile, metric: str
) -> tuple[curves.Look, dict[str, list[curves.Panel]]] | None:
    """By stream, a panel per modality with a curve per component; None if there are no values."""
    rows = _rows(profile, metric)
    rows = rows[rows["head"] < 0]
    # Layers of the tower are others than those of the language model.
    words = rows[~rows.line.str.contains("tower|projector")]
    rows = words if len(words) else rows
    if rows.value.notna().sum() == 0:
        return None
    lines = list_components(list(rows.line))
    styles, found = _styles(lines), {}
    modalities = [name for name in MODALITIES[:2] if (rows.modality == name).any()]
    for stream in [s for s in curves.STREAM_NAMES if (rows.stream == s).any()]:
        here = rows[rows.stream == stream]
        found[stream] = [
            curves.Panel(
                f"{modality} tokens, {curves.STREAM_NAMES[stream]}",
                [
                    curves.DrawnCurve(line, styles[line], of.sort_values("layer"))
                    for line in lines
                    if len(of := here[(here.modality == modality) & (here.line == line)])
                ],
            )
            for modality in modalities or [max({*rows.modality})]
        ]
    over = "layer (of the state that a hook lies on or leads to)"
    return replace(curves.look_at(rows, metric), over=over), found


def draw_components(profile: Profile, metric: str) -> curves.InlineFigure | None:
    """A line per component over depth: one row of panels per stream, one column per modality."""
    found = component_panels(profile, metric)
    if found is None:
        return None
    look, panels = found
    figure, grid = _grid(len(panels), max(map(len, panels.values())))
    named: dict[str, Any] = {}
    for row, own in zip(grid, panels.values(), strict=True):
        for axes, panel in zip(row, own, strict=True):
            for curve in panel.curves:
                named.setdefault(curve.label, _draw(axes, curve.rows.layer, curve))
            _dress(axes, panel.title, look)
        row[0].set_ylabel(f"{look.title}\n[{look.unit}]" if look.unit else look.title)
    _finish(figure, profile, f"{look.title}: components over depth", named, metric)
    return figure


def draw_path(profile: Profile, metric: str) -> curves.InlineFigure | None:
    """Visual tokens from pixel to word; None unless hooks of the tower or projector are there."""
    found = path_rows(profile, metric)
    if found is None:
        return None
    look = curves.look_at(found, metric)
    figure, grid = _grid(1, 1, width=10.0, legend=2.9)
    axes, named = grid[0][0], {}
    for (stream, style), rows in _streams(found):
        name = curves.STREAM_NAMES[stream]
        curve = curves.DrawnCurve(name, style, rows, "path")
        named[name] = _draw(axes, rows.path, curve)
    _dress(axes, "visual tokens, in the order in which data flows", look)
    stops = found.drop_duplicates("path").sort_values("path")
    axes.set_xticks(list(stops.path), list(stops.stop), fontsize=8)
    axes.set_xlim(stops.path.min() - 0.5, stops.path.max() + 0.5)
    axes.set_xlabel(
        "t: states of the tower · in, out: projector · 0, 1, …: states of the language "
        "model · norm: after the final norm"
    )
    for stage in sorted(set(stops.stage))[1:]:
        axes.axvline(stops[stops.stage == stage].path.min() - 0.5, color="0.75", linewidth=1)
    axes.set_ylabel(f"{look.title}\n[{look.unit}]" if look.unit else look.title)
    _finish(figure, profile, f"{look.title}: from pixel to word", named, metric)
    return figure


def path_rows(profile: Profile, metric: str) -> pd.DataFrame | None:
    """The rows on the way from pixel to word; None if they do not begin before the words."""
    placed = place_on_path(profile.table)
    rows = placed[placed.metric == metric].assign(chance=np.nan)
    return rows if len(rows) and (rows.stage < 3).any() else None


def _streams(rows: pd.DataFrame) -> Iterator[tuple[tuple[str, tuple[str, str, str]], pd.DataFrame]]:
    """Rows by stream; the tower, which all share, comes before each."""
    names = [stream for stream in curves.STREAM_NAMES if (rows.stream == stream).any()]
    looks = [(COLOURS[0], "o", "-"), (COLOURS[1], "s", "--")]
    shared = rows[rows.stage < 3]
    for stream, style in zip(names, looks, strict=False):
        own = rows[(rows.stream == stream) & (rows.stage >= 3)]
        yield (stream, style), pd.concat([shared, own]).sort_values("path")


def head_maps(profile: Profile, metric: str) -> dict[tuple[str, str, str], pd.DataFrame]:
    """Value by head and layer, by component (or pair), stream and modality."""
    rows = _rows(profile, metric)
    rows = rows[rows["head"] >= 0]
    rows = rows.assign(line=rows.line.str.replace(r" head \d+", "", regex=True))
    return {
        (str(line), str(stream), str(modality)): of.pivot(
            index="head", columns="layer", values="value"
        )
        for (line, stream, modality), of in rows.groupby(["line", "stream", "modality"], sort=False)
        if of.value.notna().any()
    }


def draw_heads(profile: Profile, metric: str) -> curves.InlineFigure | None:
    """Heads × layers: a row of maps per component and stream, a column per modality."""
    maps = head_maps(profile, metric)
    if not maps:
        return None
    rows = list(dict.fromkeys((line, stream) for line, stream, _ in maps))
    columns = [m for m in MODALITIES[:2] if any(key[2] == m for key in maps)] or ["all"]
    figure, grid = _grid(len(rows), len(columns), legend=0.2)
    low = min(float(np.nanmin(x.to_numpy())) for x in maps.values())
    high = max(float(np.nanmax(x.to_numpy())) for x in maps.values())
    look, image = curves.look_at(_rows(profile, metric), metric), None
    for (line, stream), panels in zip(rows, grid, strict=True):
        for modality, axes in zip(columns, panels, strict=True):
            found = maps.get((line, stream, modality))
            axes.set_title(f"{line}, {modality} tokens, {stream} stream", fontsize=11)
            if found is None:
                axes.set_axis_off()
                continue
            image = axes.imshow(found, aspect="auto", cmap="viridis", vmin=low, vmax=high)
            axes.set_xticks(range(found.shape[1]), list(found.columns))
            axes.set_yticks(range(found.shape[0]), list(found.index))
            axes.set_xlabel("layer")
            axes.set_ylabel("head")
    if image is not None:
        figure.colorbar(
            image, ax=[axes for row in grid for axes in row], label=look.title, pad=0.02
        )
    _title(figure, f"{look.title}: heads × layers", profile.title)
    return figure


def write(profile: Profile, directory: Path) -> Iterator[Path]:
    """Write the pictures that there are; yields each file when written."""
    if not has_components(profile):
        return
    for metric in chosen_metrics(profile):
        for kind, draw in DRAWN.items():
            figure = draw(profile, metric)
            if figure is not None:
                path = directory / f"{kind}-{metric}.png"
                figure.savefig(path, dpi=curves.DPI)
                yield path


def count(profile: Profile) -> int:
    """How many pictures `write` makes, at most."""
    return len(chosen_metrics(profile)) * len(DRAWN) if has_components(profile) else 0


DRAWN = {"components": draw_components, "heads": draw_heads, "path": draw_path}
"""Kinds of pictures, and what draws them."""


def sections(profile: Profile) -> str:
    """The same for the page, as its charts."""
    if not has_components(profile):
        return ""
    parts = ["<h2 id='components'>Components, heads, and the way from pixel to word</h2>"]
    for metric in chosen_metrics(profile):
        figures: dict[str, dict[str, Any]] = {}
        if (found := component_panels(profile, metric)) is not None:
            look, panels = found
            for stream, own in panels.items():
                heading = f"components, {curves.STREAM_NAMES[stream]}"
                figures[heading] = page.side_by_side(look, own)
        if (rows := path_rows(profile, metric)) is not None:
            figures["from pixel to word"] = _path(rows, metric)
        for (line, stream, modality), grid in head_maps(profile, metric).items():
            if modality != "all":
                figures[f"heads × layers: {line}, {modality} tokens, {stream} stream"] = _map(grid)
        parts.append(page.figures(metric, curves.look(profile, metric).title, figures))
    return "".join(parts)


def _path(rows: pd.DataFrame, metric: str) -> dict[str, Any]:
    curves_ = [
        curves.DrawnCurve(curves.STREAM_NAMES[stream], style, own, "path")
        for (stream, style), own in _streams(rows)
    ]
    look = curves.look_at(rows, metric, "path")
    drawn = page.side_by_side(look, [curves.Panel("visual tokens", curves_)])
    stops = rows.drop_duplicates("path").sort_values("path")
    drawn["layout"]["xaxis"] |= {"tickvals": list(stops.path), "ticktext": list(stops.stop)}
    drawn["layout"]["xaxis"].pop("dtick", None)
    return drawn


def _map(grid: pd.DataFrame) -> dict[str, Any]:
    values = [[None if np.isnan(x) else float(x) for x in row] for row in grid.to_numpy()]
    trace = {"type": "heatmap", "z": values, "x": list(grid.columns), "y": list(grid.index)}
    layout = {
        "height": 380,
        "xaxis": {"title": {"text": "layer"}},
        "yaxis": {"title": {"text": "head"}},
    }
    return {"data": [trace], "layout": layout}


# ---- parts of a figure ----


def _grid(
    n_rows: int, n_columns: int, width: float = 5.0, legend: float = 2.6
) -> tuple[curves.InlineFigure, Any]:
    """Panels with room for a legend beside them, in inches."""
    left, right, top, bottom, panel, gap = 1.1, legend, 1.0, 0.95, 3.1, 1.0
    across = left + right + n_columns * width + (n_columns - 1) * 0.7
    down = top + bottom + n_rows * panel + (n_rows - 1) * gap
    figure = curves.InlineFigure(figsize=(across, down), dpi=curves.DPI)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(
        left=left / across,
        right=1 - right / across,
        top=1 - top / down,
        bottom=bottom / down,
        wspace=0.7 / width,
        hspace=gap / panel,
    )
    return figure, figure.subplots(n_rows, n_columns, squeeze=False)


def _draw(axes: Axes, x: pd.Series, curve: curves.DrawnCurve) -> Any:
    colour, marker, dashes = curve.style
    rows = curve.rows
    axes.fill_between(x, rows.low, rows.high, color=colour, alpha=0.12, linewidth=0)
    (line,) = axes.plot(
        x, rows.value, color=colour, marker=marker, linestyle=dashes, linewidth=1.8, markersize=5
    )
    return line


def _dress(axes: Axes, title: str, look: curves.Look) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(look.over)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if look.log:
        curves.scale_log(axes)
    if look.limits:
        axes.set_ylim(*look.limits)


def _finish(
    figure: curves.InlineFigure, profile: Profile, title: str, named: dict[str, Any], metric: str
) -> None:
    inch = 1 / figure.get_figwidth()
    figure.legend(
        list(named.values()),
        list(named),
        loc="center right",
        bbox_to_anchor=(1 - 0.1 * inch, 0.5),
        frameon=False,
        fontsize=9,
        handlelength=3,
    )
    _title(figure, title, profile.title)
    foot = "Bands: 95 % interval over samples."
    known = METRICS.get(metric)
    if known is not None and known.arity == 2:
        foot += " A line of two hooks: from → to; of states: from one to the next."
    figure.text(0.5, 0.08 / figure.get_figheight(), foot, ha="center", fontsize=9, color="0.35")


def _title(figure: curves.InlineFigure, title: str, source: str) -> None:
    inch = 1 / figure.get_figheight()
    figure.suptitle(title, fontsize=13, fontweight="bold", y=1 - 0.08 * inch)
    figure.text(0.5, 1 - 0.5 * inch, source, ha="center", fontsize=10)
