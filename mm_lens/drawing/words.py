"""Words at the image tokens that they were read at, and texts beside a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.patches import Rectangle
from PIL import Image

from mm_lens.arguments import require_kind
from mm_lens.data.pictures import Picture, open_picture
from mm_lens.drawing.curves import DPI, InlineFigure
from mm_lens.drawing.on_image import TokenBoxes, find_token_boxes, scale_of, values_table
from mm_lens.errors import InputError
from mm_lens.layout.groups import Box
from mm_lens.layout.layout import TokenLayout

MAX_LAYERS = 4
SIDE = 3.9
"""Of a panel, in inches."""
SMALLEST, LARGEST = 6.0, 11.0
"""Size of the letters, in points."""
Words = Mapping[int, str] | Sequence[Sequence[Sequence[str]]]


def draw_words(
    image: Picture,
    layout: TokenLayout,
    words: Words,
    values: Any = None,
    *,
    row: int = 0,
    index: int = 0,
    label: str = "value",
    names: Sequence[str] = (),
) -> InlineFigure:
    """Write a word into the cell of each image token: of the overview, or else of the tiles.

    ```python
    near = embedding_neighbours(model, inputs, layers=[0, 4])
    draw_words(image, inputs.layout, near.words(), near.best[:, 0], label="cosine")
    ```

    Args:
        image: the picture that was prepared, in any of the forms that `prepare` takes.
        layout: `inputs.layout`.
        words: for each layer and position its words, of which the first is written, as
            `Readout.words` returns them; or one text for each position, as a mapping.
        values: `[layers, pos]`, colours of the cells; None lets the picture shine through.
        row: row of the batch.
        index: image of this row.
        label: of the colour bar, with the unit.
        names: of the layers.

    Raises:
        InputError: there is no such image, or it is of another size; words and values are of other
            layers; there is no word at a token of this image, or there are more than 4 layers.
    """
    require_kind("layout", layout, TokenLayout, "inputs.layout")
    picture = open_picture(image)
    of = [dict(words)] if isinstance(words, Mapping) else _first(words)
    if len(of) > MAX_LAYERS:
        raise InputError(
            f"Words of {len(of)} layers do not fit into one picture. Choose up to {MAX_LAYERS}, or "
            "use mm_lens.drawing.explore(…, words=…), which has a slider."
        )
    part = find_token_boxes(layout, row, index)[0]
    if not any(at.get(int(p)) for at in of for p in part.positions):
        raise InputError("There is no word at any token of this image: nothing to write.")
    table, scale = None, None
    if values is not None:
        table = values_table(picture, layout, values, row, index)
        if len(table) != len(of):
            raise InputError(
                f"There are values of {len(table)} layers, and words of {len(of)}. Give one each."
            )
        scale = scale_of(table, None)
    aspect = min(max(picture.height / picture.width, 0.25), 2.0)
    extra = 1.0 if scale else 0.1
    figure = InlineFigure(
        figsize=(SIDE * len(of) + extra, SIDE * aspect + 0.4), dpi=DPI, layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(of), squeeze=False)[0]
    for k, (axis, at) in enumerate(zip(axes, of, strict=True)):
        axis.imshow(
            np.asarray(picture.convert("RGB")),
            extent=(0, picture.width, picture.height, 0),
            aspect="auto",
            alpha=0.35 if scale is None else 0.0,
        )
        axis.set(xlim=(0, picture.width), ylim=(picture.height, 0), xticks=[], yticks=[])
        axis.set_title(names[k] if k < len(names) else "", fontsize=10)
        colours = None
        if scale is not None and table is not None:
            colours = scale.colours(scale.norm(table[k][part.positions]))
        _write_cells(axis, part, at, colours, picture)
    if scale is not None:
        figure.colorbar(
            ScalarMappable(scale.norm, scale.colours), ax=axes, label=label, extend=scale.extend
        )
    return figure


def _first(words: Any) -> list[dict[int, str]]:
    """The first word of each position that has one, by layer."""
    return [{p: top[0] for p, top in enumerate(layer) if top} for layer in words]


def _write_cells(
    axis: Any, part: TokenBoxes, at: Mapping[int, str], colours: Any, picture: Image.Image
) -> None:
    """The cells of a panel with their words, as large as the cells allow."""
    for k, position in enumerate(part.positions):
        x0, y0, x1, y1 = part.boxes[k]
        text = " ".join(at.get(int(position), "").split())
        if x0 >= picture.width:  # a newline's cell stands beside the picture
            continue
        dark = False
        face: Any = "none"
        if colours is not None and np.isfinite(colours[k]).all():
            face = colours[k]
            dark = np.dot(face[:3], (0.299, 0.587, 0.114)) < 0.5
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fc=face, ec="0.7", lw=0.5))
        points = SIDE * 0.92 * 72 * (x1 - x0) / picture.width
        most = max(3, int(points / (0.6 * SMALLEST)))
        text = text if len(text) <= most else f"{text[: most - 1]}…"
        size = min(LARGEST, max(SMALLEST, points / (0.62 * max(len(text), 1))))
        axis.text(
            (x0 + x1) / 2, (y0 + y1) / 2, text, ha="center", va="center", fontsize=size,
            color="white" if dark else "black", clip_on=True, parse_math=False,
        )  # fmt: skip


def draw_texts(
    image: Picture, texts: Mapping[str, str], *, box: Box | None = None, about: str = ""
) -> InlineFigure:
    """A picture, and beside it what was written under each condition.

    ```python
    found = write_without(model, inputs, box)
    draw_texts(image, {"as it is": found.plain[0], "without the box": found.without[0]}, box=box)
    ```

    Args:
        image: the picture.
        texts: what was written, by the condition it was written under.
        box: drawn on the picture, hatched: what was hidden or edited.
        about: what was asked, above the picture.

    Raises:
        InputError: there is no text.
    """
    if not texts:
        raise InputError("texts holds nothing to draw: give at least one.")
    picture = open_picture(image)
    lines = [
        (name, wrap(" ".join(text.split()), 46) or ["(nothing)"]) for name, text in texts.items()
    ]
    tall = sum(0.34 + 0.24 * len(text) for _, text in lines) + 0.4
    figure = InlineFigure(figsize=(7.4, max(2.7, tall)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    shown, beside = figure.subplots(1, 2, width_ratios=(2.4, 5.0))
    shown.imshow(np.asarray(picture.convert("RGB")), extent=(0, picture.width, picture.height, 0))
    shown.set(xticks=[], yticks=[])
    shown.set_title("\n".join(wrap(about, 34)), fontsize=9, parse_math=False)
    if box is not None:
        shown.add_patch(
            Rectangle(
                (box.x0, box.y0),
                box.x1 - box.x0,
                box.y1 - box.y0,
                fc="none",
                ec="#D55E00",
                lw=1.6,
                hatch="///",
            )
        )
    beside.set_axis_off()
    at, height = 1.0, figure.get_size_inches()[1]
    for name, text in lines:
        beside.text(0, at, name, fontsize=9, color="0.35", va="top", parse_math=False)
        at -= 0.22 / height
        beside.text(0, at, "\n".join(text), fontsize=12, va="top", parse_math=False)
        at -= (0.16 + 0.24 * len(text)) / height
    return figure
