"""Points of states in a plane as a page: a slider over the layers, and on hover what a point is of.

A point of an image token shows its picture with the token's box in it, and that box enlarged; one
of a text token the word. One page without any library, which needs no network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex

from mm_lens._notebook import embed_json
from mm_lens.drawing.charts.columns import require_columns
from mm_lens.drawing.charts.scatter import KINDS, is_scale
from mm_lens.drawing.explorer import Explorer, encode_image
from mm_lens.errors import InputError
from mm_lens.model.inputs import Inputs

THUMBNAIL = 192
"""Longest side of a picture in the page, in pixels."""
MENU = ("modality", "group", "region", "picture", "layer")
"""Columns that the page can colour by, where they are there."""
NEEDED = ("layer", "x", "y", "inputs", "row", "position", "image", "x0", "y0", "x1", "y1", "word")


def explore_scatter(
    table: pd.DataFrame, samples: Inputs | Iterable[Inputs], colour: str = "modality"
) -> Explorer:
    """As `draw_scatter`, with the picture's patch on hover.

    ```python
    points = state_scatter(model, batches, layers=[0, 4, 8])
    explore_scatter(points, batches).save("states.html")
    ```

    Args:
        table: what `mm_lens.looking.state_scatter` returned, or rows of it.
        samples: what it was given, in the same order.
        colour: column that is shown first; the page's menu has the others, and yours.

    Raises:
        InputError: there is no such column, no row, or the samples are others.
    """
    require_columns(table, (*NEEDED, colour))
    kept = [samples] if isinstance(samples, Inputs) else list(samples)
    pictures: list[str] = []
    sizes: list[tuple[int, int]] = []
    numbers: dict[tuple[int, int, int], int] = {}
    shown = []
    for number, row, image in table[["inputs", "row", "image"]].itertuples(index=False):
        key = (int(number), int(row), int(image))
        if key[2] >= 0 and key not in numbers:
            picture = _picture(kept, *key)
            numbers[key] = len(pictures)
            pictures.append(encode_image(picture.convert("RGB"), THUMBNAIL, "jpeg"))
            sizes.append(picture.size)
        shown.append(numbers.get(key, -1))
    layers = list(dict.fromkeys(table["layer"].tolist()))
    whose = ["inputs", "row", "position", *(["group"] if "group" in table else [])]
    columns = list(dict.fromkeys([colour, *(c for c in MENU if c in table)]))
    data = {
        "layers": [f"layer {k}" for k in layers],
        "together": bool(table.attrs.get("together", False)),
        "layer": [layers.index(k) for k in table["layer"]],
        "x": [_short(v) for v in table["x"]],
        "y": [_short(v) for v in table["y"]],
        "picture": shown,
        "box": [
            None if any(v != v for v in box) else [round(float(v), 1) for v in box]
            for box in table[["x0", "y0", "x1", "y1"]].itertuples(index=False)
        ],
        "about": [
            f"position {p}" + (f", row {r}" if r else "") + (f": “{w}”" if w else "")
            for p, r, w in table[["position", "row", "word"]].itertuples(index=False)
        ],
        "token": [".".join(map(str, one)) for one in table[whose].itertuples(index=False)],
        "pictures": pictures,
        "sizes": sizes,
        "colours": [_colouring(table, name) for name in columns],
    }
    here = files("mm_lens.drawing")
    style = here.joinpath("explorer.css").read_text("utf-8")
    script = here.joinpath("charts").joinpath("scatter.js").read_text("utf-8")
    body = (
        '<h1>states of tokens in a plane</h1><div id="controls">'
        '<label id="choose">colour <select id="choice"></select></label>'
        '<label id="slide"><input id="slider" type="range" min="0" step="1" value="0"> '
        '<b id="layer"></b></label></div><div id="panels"><figure><canvas id="plane" width="1000" '
        'height="1000" tabindex="0" role="group"></canvas></figure><figure><figcaption id="legend">'
        '</figcaption><canvas id="thumbnail" width="480" height="480" role="img"></canvas></figure>'
        '</div><p id="chosen" aria-live="polite"></p>'
    )
    html = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>states of tokens in a plane'
        f"</title><style>{style}</style></head><body><main>{body}</main>"
        f"<script>const data = {embed_json(data)};\n{script}</script></body></html>"
    )
    return Explorer(html, 640)


def _picture(kept: Sequence[Inputs], number: int, row: int, image: int) -> Any:
    try:
        return kept[number].images[row][image]
    except IndexError:
        raise InputError(
            "The points are of other samples: explore_scatter takes those that state_scatter was "
            "given, in the same order."
        ) from None


def _colouring(table: pd.DataFrame, name: str) -> dict[str, Any]:
    """The colour of each point by a column, and what the page writes of it."""
    if is_scale(table, name):
        low, high = float(table[name].min()), float(table[name].max())
        width = (high - low) or 1.0
        shade = colormaps["cividis"]
        of = [to_hex(shade((float(v) - low) / width)) for v in table[name]]
        ends = [(to_hex(shade(share)), f"{low + share * width:.4g}") for share in (0.0, 0.5, 1.0)]
    else:
        values = list(dict.fromkeys(table[name]))
        of = [KINDS[values.index(v) % len(KINDS)] for v in table[name]]
        ends = [(KINDS[k % len(KINDS)], str(v)) for k, v in enumerate(values[:24])]
    return {
        "name": str(name),
        "of": of,
        "says": [str(v) for v in table[name]],
        "legend": ends,
    }


def _short(value: float) -> float | None:
    """Five digits; nothing for what is no number."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
