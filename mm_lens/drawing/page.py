"""Parts of an HTML page of curves: interactive, self-contained, readable without a network."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from mm_lens._notebook import embed_json
from mm_lens.drawing.curves import LOG_TICKS, DrawnCurve, Look, Panel, find_log_ticks
from mm_lens.metrics import METRICS

DASHES = {"-": "solid", "--": "dash", "-.": "dashdot"}
SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "v": "triangle-down",
    "D": "diamond",
    "P": "cross",
}

MEANINGS = {
    "linearity": (
        "How well one linear map predicts a layer's states from those before, on pictures it has "
        "not seen. Near 1, the layer could be replaced by a matrix; near 0, none is of "
        "any use."
    ),
    "dimension": (
        "How many directions it takes, locally, to tell a token from its neighbours. High: tokens "
        "differ in many ways; low: they lie on something thin, and much about them is the same."
    ),
    "anisotropy": (
        "The share of the variance along the one strongest direction. Near 1, all tokens differ "
        "along one line, often because of a few very large ones; near 0, they spread in all "
        "directions."
    ),
    "gap": (
        "How far the centres of visual and text tokens lie apart, in units of how wide each of "
        "the two is. Near the dotted line, they have one centre."
    ),
    "integration": (
        "How far visual and text tokens are from being one cloud: centres, widths and directions. "
        "A term of the Modality Integration Rate; few tokens make it larger (dotted line)."
    ),
    "cka": (
        "Whether pictures that are alike to the model stand with texts that are. Near 1, both "
        "modalities arrange the samples in the same way; near 0, in unrelated ways."
    ),
    "lens": (
        "How undecided the model would be if it stopped at this layer and said the next word. "
        "High: among many words; near 0: it would say one."
    ),
}
"""What high and low mean, by kind of metric."""
TOPICS = {
    "linearity": "Linearity",
    "dimension": "Intrinsic dimension",
    "anisotropy": "Anisotropy",
    "gap": "Gap between the modalities",
    "integration": "Integration of the modalities",
    "cka": "Similarity of the modalities",
    "lens": "Logit lens",
}


def document(title: str, body: str) -> str:
    """A whole page, with what draws its charts: it needs no network."""
    here = files("mm_lens.drawing")
    style, script = (here.joinpath(name).read_text("utf-8") for name in ("page.css", "chart.js"))
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)}</title><style>{style}</style></head>
<body><script>{script}</script>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
</body></html>
"""


HOW_TO_READ = (
    '<p class="note">Bands are 95&nbsp;% intervals over samples, dotted lines the chance level, '
    "hollow points carry a warning. Point at a curve, or go through it with the arrow keys, for "
    "value, interval, number of tokens and warnings; click a name to hide it.</p>"
)


def side_by_side(style: Look, panels: Sequence[Panel]) -> dict[str, Any]:
    """Panels beside each other, as `chart.js` draws them: plotly's terms, as far as they go."""
    layout: dict[str, Any] = {"height": 430, "annotations": []}
    data = []
    for i, panel in enumerate(panels):
        suffix = str(i + 1) if i else ""
        layout[f"xaxis{suffix}"] = {
            "title": {"text": style.over},
            "range": list(style.across),
            "dtick": max(1, round(style.across[1] / 12)) if style.across[1] > 2 else 0.1,
        }
        layout[f"yaxis{suffix}"] = {
            # What stands behind a comma is in the heading: beside the axis there is no room.
            "title": {"text": style.unit or style.title.partition(",")[0]},
            **({"type": "log", "tickvals": _log_ticks(style)} if style.log else {}),
            **({"range": _range(style)} if style.limits else {}),
        }
        layout["annotations"].append({"text": panel.title})
        for curve in panel.curves:
            for trace in _traces(curve):
                data.append({"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", **trace})
    named: set[str] = set()
    for trace in data:  # each label once in the legend
        trace["showlegend"] = "name" in trace and trace["name"] not in named
        named.add(trace.get("name", ""))
    return {"data": data, "layout": layout}


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
    silent = {"legendgroup": curve.label}
    return [
        {
            "x": around + around[::-1],
            "y": band.high.tolist() + band.low.tolist()[::-1],
            "fill": "toself",
            "fillcolor": colour,
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
            "name": curve.label,
            "legendgroup": curve.label,
            "line": {"color": colour, "dash": DASHES[dash], "width": 2},
            "marker": {"symbol": SYMBOLS[marker], "open": [int(bool(x)) for x in rows.warning]},
            "text": [_hover(curve.label, row) for row in rows.to_dict("records")],
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
    return "".join(parts) + plots(metric, title, figures)


def figures(metric: str, title: str, drawn: Mapping[str, dict[str, Any]]) -> str:
    """Figures of a metric whose definition stands elsewhere on the page, folded up."""
    heading = f"<summary>{escape(title)} <code>{escape(metric)}</code></summary>"
    return f"<details>{heading}{plots(metric, title, drawn)}</details>"


def plots(metric: str, about: str, figures: Mapping[str, dict[str, Any]]) -> str:
    """Charts, each with a heading of its own or none; `about` for those who cannot see them."""
    parts = []
    for heading, drawing in figures.items():
        name = escape("-".join(["plot", metric, heading]).rstrip("-"))
        said = embed_json(" ".join([about, heading]).strip())
        drawn = embed_json(drawing)
        parts.append(
            f"<h3>{escape(heading)}</h3>" * bool(heading) + f'<div class="chart" id="{name}"></div>'
            f'<script>drawChart("{name}", {said}, {drawn});'
            "</script>\n"
        )
    return "".join(parts)


def topic(name: str, title: str, about: str, body: str) -> str:
    """A part of a page that is folded up."""
    note = f' <span class="note">{escape(about)}</span>' * bool(about)
    return (
        f'<details id="{escape(name)}"><summary>{escape(title)}{note}</summary>{body}</details>\n'
    )


def provenance(entries: Mapping[str, Any]) -> str:
    """Where the numbers come from, folded up."""
    text = escape(json.dumps(entries, indent=2, ensure_ascii=False))
    return f"<details><summary>Provenance</summary><pre>{text}</pre></details>"
