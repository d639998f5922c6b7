"""Values of image tokens through the layers as an interactive picture.

A slider over the layers; a token is told about where it is pointed at, and kept by a click; a box
that is drawn gives the mean of its tokens. Of several kinds of values one is chosen.

One small page without any library: it needs no network, and is light enough to be kept inside a
notebook (plotly alone is 5 MB).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_hex
from PIL import Image

from mm_lens._notebook import embed_json
from mm_lens.arguments import describe_value, resolve_rows
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
from mm_lens.model.inputs import Inputs

LONGEST = 1024
"""Longest side of the picture in the page, in pixels."""
FLATTEST = 8
"""Pictures that are longer for their width are drawn as if they were not, and it is said."""
BESIDE = 512
"""Longest side of the original beside it, in pixels."""


@dataclass(frozen=True)
class Shown:
    """Values of one kind in a page that has several.

    Attributes:
        values: `[layers, pos]`.
        names: of the layers; without any, their numbers.
        words: top words of each layer and position, or None.
    """

    values: Any
    names: Sequence[str] = ()
    words: Any = None


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
            f'<iframe title="values on the picture" srcdoc="{page}" sandbox="allow-scripts" '
            f'style="width:100%; height:{self.height}px; border:0"></iframe>'
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
        values: `[layers, pos]`, or `[layers, n]` for the n visual tokens; or without layers. Of
            several kinds, a mapping from what they are to such values, or to `Shown` where names
            or words differ: the page has a menu.
        row: row of the batch.
        index: image of this row.
        label: what the values are, with the unit.
        layers: numbers of those to draw, as they stand in the values; None draws all.
        names: of the layers drawn; without any, their numbers.
        words: top words of each layer and position of the values, as `Readout.words` returns them;
            of several kinds they go with those that have as many layers.
        limits: of the colours, the same at all layers; None takes the range of all values. The
            ends of the colour bar say where values lie beyond.
        sentence: write the names out as a sentence: a word that is pointed at shows its values.

    Raises:
        InputError: as `overlay`; or the words do not fit the values.
    """
    picture = open_picture(image)
    kinds = values if isinstance(values, Mapping) else {label: values}
    if not kinds:
        raise InputError("values holds nothing to draw: give at least one entry.")
    views = []
    for name, each in kinds.items():
        fit = len(kinds) == 1 or (words is not None and len(words) == _count(each))
        kind = each if isinstance(each, Shown) else Shown(each, names, words if fit else None)
        table = values_table(picture, layout, kind.values, row, index, layers)
        named = panel_names(table, layers, kind.names)
        chosen = _choose_words(kind.words, _count(kind.values), table.shape[1], layers)
        views.append(_view(layout, table, named, chosen, name, limits, row, index))
    for more in views[1:]:  # where the tokens stand is told once
        more["parts"] = [{k: part[k] for k in ("values", "words")} for part in more["parts"]]
    original = picture.convert("RGB")
    first = {
        "width": picture.width,
        "height": picture.height,
        "picture": encode_image(relief(picture), LONGEST),
        "original": encode_image(original, format="png" if max(original.size) < 200 else "jpeg"),
        "sentence": sentence,
        "flattest": FLATTEST,
        **views[0],
        "more": views[1:],
    }
    here = files("mm_lens.drawing")
    style, script = (here.joinpath(f"explorer.{kind}").read_text("utf-8") for kind in ("css", "js"))
    title = escape(_entitle([*kinds]))
    body = (
        f'<h1>{title}</h1><p id="sentence"></p><div id="controls">'
        '<label id="choose">show <select id="choice"></select></label>'
        '<label id="slide"><input id="slider" type="range" min="0" step="1" value="0"> '
        '<b id="layer"></b></label></div><div id="panels"></div>'
        '<p><span id="label"></span>: <span id="low"></span> <span id="bar"></span> '
        '<span id="high"></span> <span class="soft">· hatched: no value; strip at the right: '
        'newline tokens, beside the row they end<span id="stretched"></span></span></p>'
        '<p id="chosen" aria-live="polite"></p><div id="tip"></div>'
    )
    html = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{title}</title>'
        f"<style>{style}</style></head><body><main>{body}</main>"
        f"<script>const data = {embed_json(first)};\n{script}</script></body></html>"
    )
    aspect = min(max(picture.height / picture.width, 1 / FLATTEST), FLATTEST)
    return Explorer(html, 220 + round(min(480.0, 480 * aspect)))


def explore_results(inputs: Inputs, *results: Any, row: int = 0, image: int = 0) -> Explorer:
    """Several results about the same inputs in one page, with a menu: what is shown is chosen.

    ```python
    lens = visual_logit_lens(model, inputs, targets=["red"])
    page = explore_results(inputs, lens, attention_map(model, inputs), norms(model, inputs))
    page.save("sample.html")
    ```

    Args:
        inputs: what `model.prepare` returned.
        results: of `visual_logit_lens`, `attention_map`, the functions of `mm_lens.token_values`,
            patching by places of the picture: whatever has a method `kinds`.
        row: row of the batch.
        image: image of this row.

    Raises:
        InputError: there is no result or no such image; a result is no such thing, is of other
            inputs, or has nothing to draw on a picture.
    """
    pictures = inputs.images[resolve_rows([row], len(inputs.images))[0]]
    if not 0 <= image < len(pictures):
        raise InputError(f"Row {row} has {len(pictures)} image(s); there is no image {image}.")
    kinds: dict[str, Shown] = {}
    for result in results:
        if not hasattr(result, "kinds"):
            raise InputError(
                f"{describe_value(result)} has nothing to draw on the picture. Give results of "
                "visual_logit_lens, attention_map, norms, or of patching by cell or patch."
            )
        theirs = getattr(result, "inputs", result).images
        if row >= len(theirs) or [*theirs[row]] != [*pictures]:
            raise InputError(
                f"{describe_value(result)} is of other pictures than these inputs. Give results of "
                "the same inputs; of patching these are the corrupted ones."
            )
        kinds |= result.kinds(row)
    return explore(pictures[image], inputs.layout, kinds, row=row, index=image)


def _entitle(kinds: Sequence[str]) -> str:
    """What the page shows; of several kinds, which the menu lists, no more than that."""
    return kinds[0] if len(kinds) == 1 else "Values on the picture"


def _count(values: Any) -> int:
    """How many layers there are."""
    return 1 if np.ndim(values) == 1 else len(values)


def _choose_words(words: Any, count: int, n: int, layers: Sequence[int] | None) -> Any:
    """The words of the layers that are drawn."""
    if words is None:
        return None
    if [len(layer) for layer in words] != [n] * count:
        raise InputError(
            f"The words are not those of {count} layers × {n} positions. Read "
            "the lens at the layers of the values: visual_logit_lens(..., layers=...)."
        )
    return [words[k] for k in (range(count) if layers is None else layers)]


def _view(
    layout: TokenLayout,
    table: Any,
    names: Sequence[str],
    words: Any,
    label: str,
    limits: tuple[float, float] | None,
    row: int,
    index: int,
) -> dict[str, Any]:
    """One kind of values, as the page draws it."""
    scale = scale_of(table, limits)
    parts = find_token_boxes(layout, row, index)
    here = layout.row_of(row).to("cpu")
    drawn = [position for part in parts for position in part.positions]
    spelled = sorted({w for layer in words or () for position in drawn for w in layer[position]})
    number = {word: i for i, word in enumerate(spelled)}
    return {
        "layers": names,
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


def encode_image(image: Image.Image, longest: int = BESIDE, format: str = "png") -> str:
    """A picture as an address that holds it; none of its sides is longer than `longest`."""
    image = image.copy()
    image.thumbnail((longest, longest))
    buffer = BytesIO()
    image.save(buffer, format=format)
    return f"data:image/{format};base64," + base64.b64encode(buffer.getvalue()).decode()
