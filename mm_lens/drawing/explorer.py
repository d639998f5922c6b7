"""Values of image tokens through the layers as an interactive picture: slider, and hover.

One small page without any library: it needs no network, and is light enough to be kept inside a
notebook (plotly alone is 5 MB).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_hex
from PIL import Image

from mm_lens._notebook import embed_json
from mm_lens.data.pictures import Picture, open_picture
from mm_lens.drawing.on_image import (
    TokenBoxes,
    find_token_boxes,
    panel_names,
    relief,
    scale_of,
    values_table,
)
from mm_lens.errors import InputError
from mm_lens.layout.layout import TokenLayout

LONGEST = 1024
"""Longest side of the picture in the page, in pixels."""

STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; color: #222; background: #fff; margin: .5em; }
#panels { display: flex; flex-wrap: wrap; gap: 1em; }
figure { margin: 0; flex: 1 1 260px; max-width: 560px; } canvas { width: 100%; display: block; }
figcaption { margin-bottom: .2em; } #slider { width: min(100%, 420px); vertical-align: middle; }
#bar { width: min(60%, 320px); height: 12px; display: inline-block; vertical-align: middle; }
#sentence { font-size: 17px; line-height: 1.8; } #sentence span { padding: .1em .2em;
       border-radius: 3px; cursor: default; white-space: pre-wrap; }
#sentence span.now { background: #222; color: #fff; }
#tip { position: fixed; background: #222; color: #fff; padding: .4em .6em; border-radius: 4px;
       pointer-events: none; visibility: hidden; font-size: 13px; max-width: 24em; z-index: 1; }
"""

SCRIPT = """
const panels = document.getElementById("panels"), tip = document.getElementById("tip");
const slider = document.getElementById("slider"), name = document.getElementById("layer");
const shown = x => Math.abs(x) >= 1e4 || (x && Math.abs(x) < 1e-3) ? x.toExponential(2)
                                                             : String(+x.toPrecision(4));
const picture = new Image(), drawn = [];
slider.max = data.layers.length - 1; slider.value = 0;
document.getElementById("slide").hidden = data.layers.length < 2;
document.getElementById("low").textContent = data.marks[0] + shown(data.low);
document.getElementById("high").textContent = data.marks[1] + shown(data.high);
document.getElementById("bar").style.background =
  "linear-gradient(to right," + data.colours.filter((c, i) => i % 15 == 0).join(",") + ")";
function colour(v) {
  const share = (v - data.low) / (data.high - data.low);
  return data.colours[Math.max(0, Math.min(255, Math.floor(share * 256)))];
}
function hatch(g) {
  const tile = document.createElement("canvas"); tile.width = tile.height = 8;
  const t = tile.getContext("2d"); t.strokeStyle = "#999";
  t.beginPath(); t.moveTo(0, 8); t.lineTo(8, 0); t.stroke(); return g.createPattern(tile, "repeat");
}
function draw() {
  const k = +slider.value; name.textContent = data.layers[k];
  words.forEach((span, i) => span.className = i == k ? "now" : "");
  for (const p of drawn) {
    const g = p.canvas.getContext("2d"), s = p.scale;
    g.clearRect(0, 0, p.canvas.width, p.canvas.height);
    g.fillStyle = hatch(g); g.fillRect(0, 0, data.width * s, data.height * s);
    p.cells.forEach((c, i) => {
      const v = p.values[k][i]; if (v === null) return;
      const x = Math.round(c[0] * s), y = Math.round(c[1] * s);
      g.fillStyle = colour(v);
      g.fillRect(x, y, Math.round(c[2] * s) - x, Math.round(c[3] * s) - y);
    });
    g.drawImage(picture, 0, 0, data.width * s, data.height * s);
    if (p.at >= 0) {
      const c = p.cells[p.at];
      g.strokeStyle = "#D55E00"; g.lineWidth = 3;
      g.strokeRect(c[0] * s, c[1] * s, (c[2] - c[0]) * s, (c[3] - c[1]) * s);
    }
  }
}
function tell(p, event) {
  const box = p.canvas.getBoundingClientRect(), k = +slider.value;
  const x = (event.clientX - box.left) / box.width * p.canvas.width / p.scale;
  const y = (event.clientY - box.top) / box.height * p.canvas.height / p.scale;
  p.at = p.cells.findIndex(c => c[0] <= x && x < c[2] && c[1] <= y && y < c[3]);
  tip.style.visibility = p.at < 0 ? "hidden" : "visible";
  if (p.at >= 0) {
    const v = p.values[k][p.at], words = p.words ? p.words[k][p.at] : [];
    const lines = [p.places[p.at], data.label + ": " + (v === null ? "no value" : shown(v))];
    const quoted = words.map(w => "“" + data.words[w] + "”").join(" ");
    if (quoted) lines.push("top words: " + quoted);
    tip.replaceChildren(...lines.map(line => {
      const div = document.createElement("div"); div.textContent = line; return div; }));
    tip.style.left = Math.max(0, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth)) + "px";
    const below = event.clientY + 14 + tip.offsetHeight < innerHeight;
    tip.style.top = Math.max(0, event.clientY + (below ? 14 : -14 - tip.offsetHeight)) + "px";
  }
  draw();
}
for (const part of data.parts) {
  const figure = document.createElement("figure"), caption = document.createElement("figcaption");
  const canvas = document.createElement("canvas");
  caption.textContent = part.name; figure.append(caption, canvas); panels.append(figure);
  const right = Math.max(data.width, ...part.cells.map(c => c[2]));
  const scale = 1000 / Math.max(right, data.height);
  canvas.width = right * scale; canvas.height = data.height * scale;
  canvas.style.maxWidth = Math.round(480 * Math.min(1, right / data.height)) + "px";
  const p = { ...part, canvas, scale, at: -1 }; drawn.push(p);
  canvas.addEventListener("mousemove", event => tell(p, event));
  canvas.addEventListener("mouseleave", () => {
    p.at = -1; tip.style.visibility = "hidden"; draw(); });
}
const said = document.getElementById("sentence");
const words = (data.sentence ? data.layers : []).map((word, k) => {
  const span = document.createElement("span"); span.textContent = word; said.append(span);
  span.addEventListener("mouseenter", () => { slider.value = k; draw(); }); return span; });
slider.addEventListener("input", draw); picture.onload = draw; picture.src = data.picture;
"""


@dataclass(frozen=True)
class Explorer:
    """An interactive picture: notebooks show it, `save` writes it.

    Attributes:
        html: the page.
        height: of the frame that notebooks give it, in pixels.
    """

    html: str = field(repr=False)
    height: int

    def save(self, path: str | Path) -> Path:
        """Write the page; it needs no network. Returns the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html, encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        page = escape(self.html)
        return (
            f'<iframe srcdoc="{page}" style="width:100%; height:{self.height}px; border:0" '
            'sandbox="allow-scripts"></iframe>'
        )


def explore(
    image: Picture,
    layout: TokenLayout,
    values: Any,
    *,
    row: int = 0,
    index: int = 0,
    label: str = "value",
    layers: Sequence[int] | None = None,
    names: Sequence[str] = (),
    words: Sequence[Sequence[Sequence[str]]] | None = None,
    limits: tuple[float, float] | None = None,
    sentence: bool = False,
) -> Explorer:
    """As `overlay`, with a slider over the layers and what there is to know of a token on hover.

    ```python
    explore(image, inputs.layout, norms(model, inputs)[:, 0], label="norm").save("norms.html")
    ```

    Args:
        image: the picture that was prepared, in any of the forms that `prepare` takes.
        layout: `inputs.layout`.
        values: `[layers, pos]`, or `[layers, n]` for the n visual tokens; or without layers.
        row: row of the batch.
        index: image of this row.
        label: what the values are, with the unit.
        layers: numbers of those to draw, as they stand in the values; None draws all.
        names: of the layers drawn; without any, their numbers.
        words: top words of each layer and position of the values, as `Readout.words` returns them.
        limits: of the colours, the same at all layers; None takes the range of all values. The
            ends of the colour bar say where values lie beyond.
        sentence: write the names out as a sentence: a word that is pointed at shows its values.

    Raises:
        InputError: as `overlay`; or the words do not fit the values.
    """
    picture = open_picture(image)
    table = values_table(picture, layout, values, row, index, layers)
    names = panel_names(table, layers, names)
    count = 1 if np.ndim(values) == 1 else len(values)
    if words is not None:
        if [len(layer) for layer in words] != [table.shape[1]] * count:
            raise InputError(
                f"The words are not those of {count} layers × {table.shape[1]} positions. Read "
                "the lens at the layers of the values: visual_logit_lens(..., layers=...)."
            )
        words = [words[k] for k in (range(count) if layers is None else layers)]
    scale = scale_of(table, limits)
    parts = find_token_boxes(layout, row, index)
    here = layout.row_of(row).to("cpu")
    drawn = [position for part in parts for position in part.positions]
    spelled = sorted({w for layer in words or () for position in drawn for w in layer[position]})
    number = {word: i for i, word in enumerate(spelled)}
    data = {
        "width": picture.width,
        "height": picture.height,
        "picture": _encode(relief(picture)),
        "layers": names,
        "sentence": sentence,
        "label": label,
        "low": scale.low,
        "high": scale.high,
        "colours": [to_hex(colour) for colour in scale.colours(np.linspace(0, 1, 256))],
        "marks": [mark if there else "" for mark, there in zip("≤≥", scale.beyond, strict=True)],
        "words": spelled,
        "parts": [
            {
                "name": part.title.replace("\n", " "),
                "cells": [[round(float(x), 2) for x in box] for box in part.boxes],
                "places": [_place(here, int(position)) for position in part.positions],
                "values": [[_short(x) for x in layer[part.positions]] for layer in table],
                "words": words and _numbers(words, part, number),
            }
            for part in parts
        ],
    }
    script = f"const data = {embed_json(data)};{SCRIPT}"
    body = (
        '<p id="sentence"></p>'
        '<p id="slide"><input id="slider" type="range" min="0" step="1"> <b id="layer"></b></p>'
        f'<div id="panels"></div><p>{escape(label)}: <span id="low"></span> <span id="bar"></span> '
        '<span id="high"></span> · hatched: no value</p><div id="tip"></div>'
    )
    html = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(label)}</title>'
        f"<style>{STYLE}</style></head><body>{body}<script>{script}</script></body></html>"
    )
    aspect = picture.height / picture.width
    return Explorer(html, 140 + round(min(480.0, 480 * aspect)))


def explore_written(
    image: Picture,
    written: Any,
    *,
    row: int = 0,
    index: int = 0,
    blocks: Sequence[int] | None = None,
    values: Any = None,
    label: str = "attention",
) -> Explorer:
    """What was written as a page: point at a word, and the picture shows what it looked at.

    Args:
        image: the picture that was prepared.
        written: what `mm_lens.looking.read_written` returned.
        row: of the texts.
        index: image of the prompt.
        blocks: whose attention is shown, their mean; None takes all.
        values: other values than attention, `[step, pos]`: an attribution for each word, say.
        label: what the values are.

    Raises:
        InputError: no attention was read, and no values are given; they do not fit the picture.
    """
    shown = written.looks(row, blocks) if values is None else values
    return explore(
        image,
        written.layout,
        shown,
        row=row,
        index=index,
        label=label,
        names=written.words(row),
        sentence=True,
    )


def _short(value: float) -> float | None:
    """Four digits; nothing for what is no number."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _numbers(words: Any, part: TokenBoxes, number: dict[str, int]) -> list[list[list[int]]]:
    return [[[number[w] for w in layer[p]] for p in part.positions] for layer in words]


def _place(layout: TokenLayout, position: int) -> str:
    """Where a token stands, in words; rows and columns from 0 as in the layout."""
    row, column, tile = (
        int(index[0, position]) for index in (layout.grid_row, layout.grid_col, layout.tile)
    )
    if layout.newline[0, position]:
        return f"position {position}: newline after row {row} of the tiles"
    where = "overview" if tile == 0 else f"tile {tile}"
    return f"position {position}: {where}, row {row}, column {column}"


def _encode(image: Image.Image) -> str:
    image.thumbnail((LONGEST, LONGEST))
    buffer = BytesIO()
    image.save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
