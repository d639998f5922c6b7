"""Parts of an HTML page of curves: interactive, self-contained, readable without a network."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from plotly.offline import get_plotlyjs

from mm_lens._notebook import embed_json
from mm_lens.drawing.curves import LOG_TICKS, DrawnCurve, Look, Panel, find_log_ticks
from mm_lens.metrics import METRICS

DASHES = {"-": "solid", "--": "dash", "-.": "dashdot"}
LINES = {"gridcolor": "#e5e5e5", "linecolor": "#444", "zerolinecolor": "#e5e5e5"}
SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up"}

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1240px; margin: 2em auto;
       padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin: 2em 0 0; }
nav a { margin-right: 1em; display: inline-block; }
table { border-collapse: collapse; font-size: .9em; }
td, th { border-bottom: 1px solid #ddd; padding: .25em .8em .25em 0; text-align: left;
         vertical-align: top; }
td.number, th.number { text-align: right; } .note { font-weight: normal; color: #555; }
summary { cursor: pointer; font-weight: 600; }
p.note { color: #555; margin: .2em 0 0; } pre { font-size: .85em; overflow-x: auto; }
"""


def document(title: str, body: str) -> str:
    """A whole page, plotly included."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>
<script>{get_plotlyjs()}</script></head>
<body>
<h1>{escape(title)}</h1>
<p class="note">Bands are 95&nbsp;% intervals over samples, dotted lines the chance level. Point at
a curve for value, interval, number of tokens and warnings; click a name to hide it.</p>
{body}
</body></html>
"""


def links(titles: Mapping[str, str]) -> str:
    """Links to the sections, by their id."""
    found = (f'<a href="#{escape(name)}">{escape(title)}</a>' for name, title in titles.items())
    return f"<nav>{' '.join(found)}</nav>\n"


def side_by_side(style: Look, panels: Sequence[Panel]) -> dict[str, Any]:
    """Panels beside each other, in plotly's own terms.

    As plain data: building plotly's Python objects would take longer than drawing all pictures.
    """
    layout: dict[str, Any] = {
        "height": 430,
        "margin": {"l": 70, "r": 20, "t": 60, "b": 60},
        "font": {"size": 14, "family": "system-ui, sans-serif", "color": "#222"},
        "legend": {"orientation": "h", "y": -0.24, "x": 0.5, "xanchor": "center"},
        "hovermode": "closest",
        "annotations": [],
    }
    data = []
    share = 1 / len(panels)
    for i, panel in enumerate(panels):
        suffix = str(i + 1) if i else ""
        left, right = i * share + 0.03 * (i > 0), (i + 1) * share - 0.03 * (i < len(panels) - 1)
        layout[f"xaxis{suffix}"] = {
            "domain": [left, right],
            "anchor": f"y{suffix}",
            "title": {"text": style.over, "standoff": 6},
            "range": list(style.across),
            "dtick": max(1, round(style.across[1] / 12)) if style.across[1] > 2 else 0.1,
            **LINES,
        }
        layout[f"yaxis{suffix}"] = {
            "anchor": f"x{suffix}",
            "title": {"text": "" if i else style.unit or style.title},
            **({"matches": "y"} if i else {}),
            # Plotly's own ticks between powers of ten show their first digit only.
            **({"type": "log", "tickvals": _log_ticks(style)} if style.log else {}),
            **({"range": _range(style)} if style.limits else {"showticklabels": False}),
            **LINES,
        }
        layout["annotations"].append(
            {
                "text": panel.title + ("" if style.limits else ": no value"),
                "x": (left + right) / 2,
                "y": 1.02,
                "xref": "paper",
                "yref": "paper",
                "xanchor": "center",
                "yanchor": "bottom",
                "showarrow": False,
            }
        )
        for curve in panel.curves:
            for trace in _traces(curve):
                data.append({"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", **trace})
    named: set[str] = set()
    for trace in data:  # each label once in the legend
        trace["showlegend"] = "name" in trace and trace["name"] not in named
        named.add(trace.get("name", ""))
    return {"data": data, "layout": layout, "config": {"displaylogo": False, "responsive": True}}


def _log_ticks(style: Look) -> list[float]:
    return find_log_ticks(*(style.limits or (LOG_TICKS[0], LOG_TICKS[-1])))


def _range(style: Look) -> list[float]:
    return [math.log10(x) if style.log else x for x in style.limits or ()]


def _traces(curve: DrawnCurve) -> list[dict[str, Any]]:
    """Band, chance level and values, in this order."""
    colour, marker, dash = curve.style
    rows = curve.rows
    band = rows.dropna(subset=["low", "high"])
    around = band[curve.x].tolist()
    silent = {"mode": "lines", "hoverinfo": "skip", "legendgroup": curve.label}
    return [
        {
            "x": around + around[::-1],
            "y": band.high.tolist() + band.low.tolist()[::-1],
            "fill": "toself",
            "fillcolor": colour,
            "opacity": 0.18,
            "line": {"width": 0},
            **silent,
        },
        {
            "x": rows[curve.x].tolist(),
            "y": _json(rows.chance.tolist()),
            "line": {"color": colour, "dash": "dot", "width": 1.5},
            **silent,
        },
        {
            "x": rows[curve.x].tolist(),
            "y": _json(rows.value.tolist()),
            "mode": "lines+markers",
            "name": curve.label,
            "legendgroup": curve.label,
            "line": {"color": colour, "dash": DASHES[dash], "width": 2},
            "marker": {"symbol": SYMBOLS[marker], "size": 8},
            "text": [_hover(curve.label, row) for row in rows.to_dict("records")],
            "hovertemplate": "%{text}<extra></extra>",
        },
    ]


def _json(values: list[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _hover(label: str, row: dict[Any, Any]) -> str:
    parts = [f"<b>{escape(label)}, layer {row['layer']}: {row['value']:.4g}</b>"]
    if not math.isnan(row["low"]):
        parts.append(f"95 % interval {row['low']:.4g} to {row['high']:.4g}")
    if not math.isnan(row["chance"]):
        parts.append(f"chance level {row['chance']:.4g}")
    parts += [f"{row['n_tokens']:,} tokens, {row['n_over_d']:.1f} per dimension", row["hook"]]
    parts += [f"<i>{escape(text)}</i>" for text in row["warning"].split("; ") if text]
    return "<br>".join(parts)


def section(metric: str, title: str, figures: Mapping[str, dict[str, Any]]) -> str:
    """A metric with its definition and its figures, each with a heading of its own or none."""
    known = METRICS.get(metric)
    about = escape(" ".join(known.description.split())) if known else ""
    about = re.sub(r"`(.+?)`", r"<code>\1</code>", about)
    presets = ", ".join(sorted(known.presets)) if known else "none"
    parts = [
        f'<h2 id="{escape(metric)}">{escape(title)}</h2>'
        f'<p class="note"><code>{escape(metric)}</code>, preset: {presets}. {about}</p>'
    ]
    return "".join(parts) + _plots(metric, figures)


def figures(metric: str, title: str, drawn: Mapping[str, dict[str, Any]]) -> str:
    """Figures of a metric whose definition stands elsewhere on the page, folded up."""
    heading = f"<summary>{escape(title)} <code>{escape(metric)}</code></summary>"
    return f"<details open>{heading}{_plots(metric, drawn)}</details>"


def _plots(metric: str, figures: Mapping[str, dict[str, Any]]) -> str:
    parts = []
    for heading, drawing in figures.items():
        name = escape("-".join(["plot", metric, heading]).rstrip("-"))
        drawn = embed_json(drawing)
        parts.append(
            f"<h3>{escape(heading)}</h3>" * bool(heading)
            + f'<div id="{name}"></div><script>Plotly.newPlot("{name}", {drawn});</script>\n'
        )
    return "".join(parts)


def provenance(entries: Mapping[str, Any]) -> str:
    """Where the numbers come from, folded up."""
    text = escape(json.dumps(entries, indent=2, ensure_ascii=False))
    return f"<details><summary>Provenance</summary><pre>{text}</pre></details>"
