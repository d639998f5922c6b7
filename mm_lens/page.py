"""A profile as one HTML page: interactive, self-contained, readable without a network."""

from __future__ import annotations

import json
import math
import re
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from mm_lens import plots
from mm_lens.metrics import METRICS
from mm_lens.profile import Profile

DASHES = {"-": "solid", "--": "dash", "-.": "dashdot"}
SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up"}

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1240px; margin: 2em auto;
       padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin: 2em 0 0; }
nav a { margin-right: 1em; display: inline-block; }
table { border-collapse: collapse; font-size: .9em; }
td, th { border-bottom: 1px solid #ddd; padding: .25em .8em .25em 0; text-align: left;
         vertical-align: top; }
td.number { text-align: right; } summary { cursor: pointer; font-weight: 600; }
p.note { color: #555; margin: .2em 0 0; } pre { font-size: .85em; overflow-x: auto; }
"""


def render(profile: Profile) -> str:
    """The page: every metric with its curves and definition, the warnings, the provenance."""
    chosen = plots.metrics(profile)
    title = escape(plots.source(profile))
    links = " ".join(
        f'<a href="#{escape(m)}">{escape(plots.look(profile, m).title)}</a>' for m in chosen
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>
<script>{get_plotlyjs()}</script></head>
<body>
<h1>{title}</h1>
<p class="note">Bands are 95&nbsp;% intervals over samples, dotted lines the chance level. Point at
a curve for value, interval, number of tokens and warnings; click a name to hide it.</p>
<nav>{links}</nav>
{_warnings(profile)}
{"".join(_section(profile, metric) for metric in chosen)}
{_provenance(profile)}
</body></html>
"""


def figure(profile: Profile, metric: str) -> go.Figure:
    """The curves of one metric, one panel per stream."""
    style, streams = plots.look(profile, metric), plots.streams(profile)
    picture = make_subplots(
        cols=len(streams),
        shared_yaxes=True,
        horizontal_spacing=0.05,
        subplot_titles=[plots.STREAM_NAMES[stream] for stream in streams],
    )
    shown: set[str] = set()
    for column, stream in enumerate(streams, start=1):
        for curve in plots.curves(profile, metric, stream):
            picture.add_traces(
                _traces(curve, legend=curve.modality not in shown), cols=column, rows=1
            )
            shown.add(curve.modality)
    picture.update_xaxes(title_text=style.over, dtick=_step(profile))
    picture.update_yaxes(showticklabels=True)
    picture.update_yaxes(title_text=style.unit or style.title, col=1)
    if style.log:
        picture.update_yaxes(type="log", dtick="D2")
    if style.limits:
        low, high = (math.log10(x) if style.log else x for x in style.limits)
        picture.update_yaxes(range=[low, high])
    picture.update_layout(
        template="plotly_white",
        height=430,
        margin={"l": 70, "r": 20, "t": 60, "b": 60},
        legend={"orientation": "h", "y": -0.22, "x": 0.5, "xanchor": "center"},
        font={"size": 14},
    )
    return picture


def _traces(curve: plots.Curve, legend: bool) -> list[go.Scatter]:
    colour, marker, dash = plots.STYLES[curve.modality]
    rows = curve.rows
    layers = rows.layer.tolist()
    common: dict[str, Any] = {"legendgroup": curve.modality, "hoverinfo": "skip"}
    band = rows.dropna(subset=["low", "high"])
    around = band.layer.tolist()
    texts = [_hover(row) for row in rows.to_dict("records")]
    return [
        go.Scatter(
            x=around + around[::-1],
            y=band.high.tolist() + band.low.tolist()[::-1],
            fill="toself",
            fillcolor=colour,
            opacity=0.18,
            line={"width": 0},
            mode="lines",
            showlegend=False,
            **common,
        ),
        go.Scatter(
            x=layers,
            y=rows.chance.tolist(),
            mode="lines",
            line={"color": colour, "dash": "dot", "width": 1.5},
            showlegend=False,
            **common,
        ),
        go.Scatter(
            x=layers,
            y=rows.value.tolist(),
            mode="lines+markers",
            name=curve.modality,
            showlegend=legend,
            legendgroup=curve.modality,
            line={"color": colour, "dash": DASHES[dash], "width": 2},
            marker={"symbol": SYMBOLS[marker], "size": 8},
            text=texts,
            hovertemplate="%{text}<extra></extra>",
        ),
    ]


def _hover(row: dict[Any, Any]) -> str:
    parts = [f"<b>{row['modality']}, layer {row['layer']}: {row['value']:.4g}</b>"]
    if not math.isnan(row["low"]):
        parts.append(f"95 % interval {row['low']:.4g} to {row['high']:.4g}")
    if not math.isnan(row["chance"]):
        parts.append(f"chance level {row['chance']:.4g}")
    parts += [f"{row['n_tokens']:,} tokens, {row['n_over_d']:.1f} per dimension", row["hook"]]
    parts += [f"<i>{escape(text)}</i>" for text in row["warning"].split("; ") if text]
    return "<br>".join(parts)


def _step(profile: Profile) -> int:
    return max(1, round(int(profile.table.layer.max()) / 12))


def _section(profile: Profile, metric: str) -> str:
    known = METRICS.get(metric)
    about = escape(" ".join(known.description.split())) if known else ""
    about = re.sub(r"``(.+?)``", r"<code>\1</code>", about)
    presets = ", ".join(sorted(known.presets)) if known else "none"
    drawn = figure(profile, metric).to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"plot-{metric}",
        config={"displaylogo": False, "responsive": True},
    )
    return (
        f'<h2 id="{escape(metric)}">{escape(plots.look(profile, metric).title)}</h2>'
        f'<p class="note"><code>{escape(metric)}</code>, preset: {presets}. {about}</p>{drawn}\n'
    )


def _warnings(profile: Profile) -> str:
    counts = profile.warnings()
    if not counts:
        return "<p>No warnings.</p>"
    rows = "".join(
        f'<tr><td class="number">{count}</td><td>{escape(text)}</td></tr>'
        for text, count in counts.items()
    )
    total = int((profile.table.warning != "").sum())
    return (
        f"<details><summary>{total} of {len(profile.table)} values have warnings</summary>"
        "<table><tr><th>values</th><th>warning (# stands for a number)</th></tr>"
        f"{rows}</table></details>"
    )


def _provenance(profile: Profile) -> str:
    text = escape(json.dumps(profile.provenance, indent=2, ensure_ascii=False))
    return f"<details><summary>Provenance</summary><pre>{text}</pre></details>"
