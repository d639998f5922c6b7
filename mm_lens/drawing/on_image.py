"""Values of image tokens made ready to be drawn: where each token stands, and in which colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, Normalize
from PIL import Image, ImageFilter
from torch import Tensor

from mm_lens.errors import InputError
from mm_lens.layout.layout import TokenLayout

BLUR = 0.015
"""What the surrounding of a pixel is: standard deviation, in square roots of the picture's area."""
STRIP = (0.02, 0.07)
"""Where newline tokens are drawn right of the image, in widths of it (at most two heights)."""


@dataclass(frozen=True)
class TokenBoxes:
    """What is drawn into one panel: cells of tokens, in pixels of the image.

    Newline tokens stand for no pixel; their cells are right of the image, beside their row.
    """

    name: str
    positions: Any
    boxes: Any
    newlines: int

    @property
    def title(self) -> str:
        """What it shows."""
        return self.name + (f"\n+ {self.newlines} newlines" if self.newlines else "")


@dataclass(frozen=True)
class Scale:
    """Colours of values.

    Attributes:
        low: lower end, below which colours stay the same.
        high: upper end.
        beyond: whether there are values below, and above.
        colours: the colour map.
    """

    low: float
    high: float
    beyond: tuple[bool, bool]
    colours: Colormap

    @property
    def norm(self) -> Normalize:
        """From values to the range of the colours."""
        return Normalize(self.low, self.high, clip=True)

    @property
    def extend(self) -> str:
        """Which ends of a colour bar are pointed."""
        return {(True, True): "both", (True, False): "min", (False, True): "max"}.get(
            self.beyond, "neither"
        )


def find_token_boxes(layout: TokenLayout, row: int, index: int) -> list[TokenBoxes]:
    """The cells of one image: those of the overview, those of the high-resolution tiles.

    Raises:
        InputError: there is no such image.
    """
    layout.require_places("Drawing on a picture")
    here = layout.row_of(row).to("cpu")
    sizes = here.image_sizes[0]
    if not 0 <= index < len(sizes):
        raise InputError(f"Row {row} has {len(sizes)} image(s); there is no image {index}.")
    height, width = sizes[index]
    x0, x1 = (width + share * min(width, 2 * height) for share in STRIP)
    mine, tile = (here.image[0] == index).numpy(), here.tile[0].numpy()
    boxes, grid_row = here.box[0].numpy().astype(float), here.grid_row[0].numpy()
    newlines = here.newline[0].numpy() & mine
    seen = mine & ~np.isnan(boxes[:, 0])
    groups = {"overview": seen & (tile == 0), "tiles": seen & (tile > 0)}
    found = []
    for name, where in groups.items():
        if not where.any():
            continue
        ends = []
        if name == "tiles" or not groups["tiles"].any():
            ends = [
                p for p in np.flatnonzero(newlines) if (where & (grid_row == grid_row[p])).any()
            ]
        for p in ends:
            beside = boxes[where & (grid_row == grid_row[p])]
            y0, y1 = beside[:, 1].min(), beside[:, 3].max()
            boxes[p] = (x0, y0, x1, y1)
        positions = np.concatenate([np.flatnonzero(where), np.array(ends, dtype=int)])
        found.append(TokenBoxes(name, positions, boxes[positions], len(ends)))
    return found


def values_table(
    image: Image.Image,
    layout: TokenLayout,
    values: Any,
    row: int,
    index: int,
    layers: Sequence[int] | None = None,
) -> Any:
    """The values of some layers as a NumPy array `[layers, pos]`.

    Raises:
        InputError: see `overlay`.
    """
    sizes = layout.image_sizes[row]
    if not 0 <= index < len(sizes):
        raise InputError(f"Row {row} has {len(sizes)} image(s); there is no image {index}.")
    if (image.height, image.width) != sizes[index]:
        height, width = sizes[index]
        raise InputError(
            f"The image is {image.width}×{image.height} pixels, but the layout is of one of "
            f"{width}×{height}. Pass the picture that was prepared."
        )
    given = values.detach().float().cpu().numpy() if isinstance(values, Tensor) else values
    table = np.atleast_2d(np.asarray(given, dtype=float))
    visual = layout.mask("visual")[row].cpu().numpy()
    if table.ndim != 2 or table.shape[1] not in (len(visual), visual.sum()):
        raise InputError(
            f"Values of shape {list(np.shape(given))} do not fit the layout: give one for each of "
            f"the {len(visual)} positions of the row, or for each of its {visual.sum()} visual "
            "tokens; of several layers [layers, positions]. Of a batch take one row: "
            "values[..., row, :]."
        )
    if table.shape[1] != len(visual):
        full = np.full((len(table), len(visual)), np.nan)
        full[:, visual] = table
        table = full
    if layers is not None:
        if not layers or min(layers) < 0 or max(layers) >= len(table):
            raise InputError(
                f"There are values of layers 0 to {len(table) - 1}; asked for: {list(layers)}."
            )
        table = table[list(layers)]
    drawn = np.concatenate([part.positions for part in find_token_boxes(layout, row, index)])
    if not np.isfinite(table[:, drawn]).any():
        raise InputError("None of the tokens of this image has a finite value: nothing to draw.")
    only = np.full_like(table, np.nan)
    only[:, drawn] = table[:, drawn]
    return only


def scale_of(table: Any, limits: tuple[float, float] | None) -> Scale:
    """Colours for these values: diverging around zero if they, or the limits, have both signs."""
    finite = table[np.isfinite(table)]
    least, most = float(finite.min()), float(finite.max())
    signed = limits[0] < 0 < limits[1] if limits else least < 0 < most
    if limits is None:
        ends = (-max(-least, most), max(-least, most)) if signed else (least, most)
    else:
        ends = limits
        if not ends[0] < ends[1]:
            raise InputError(f"limits={limits} leave no range of colours. Give (low, high).")
    low, high = ends if ends[0] < ends[1] else (ends[0] - 0.5, ends[1] + 0.5)
    beyond = (least < low, most > high)
    return Scale(low, high, beyond, colormaps["RdBu_r" if signed else "cividis"])


def panel_names(table: Any, layers: Sequence[int] | None, names: Sequence[str]) -> list[str]:
    """Names of the layers of a table: those given, or the numbers of the layers.

    Raises:
        InputError: there are more or fewer names than layers.
    """
    numbers = range(len(table)) if layers is None else layers
    found = list(names) or [f"layer {k}" for k in numbers]
    if len(found) != len(table):
        raise InputError(f"There are {len(found)} names for {len(table)} layers. Give one each.")
    return found


def spread_out(n: int, most: int = 5) -> list[int]:
    """Up to `most` of `n` places, evenly spread, the first and the last among them."""
    if n <= most:
        return [*range(n)]
    return sorted({round(k * (n - 1) / (most - 1)) for k in range(most)})


def relief(image: Image.Image) -> Image.Image:
    """The picture as it lies over the values: black or white at its edges, transparent elsewhere.

    The opacity is the contrast of a pixel with its surrounding, so that where the picture is flat,
    dark or bright, the colours of the values stay those of the colour bar.
    """
    grey = image.convert("L")
    surrounding = grey.filter(
        ImageFilter.GaussianBlur(BLUR * math.sqrt(image.width * image.height))
    )
    contrast = np.asarray(grey, dtype=float) - np.asarray(surrounding, dtype=float)
    alpha = np.abs(contrast).astype(np.uint8)
    ink = np.where(contrast > 0, 255, 0).astype(np.uint8)
    return Image.fromarray(np.stack([ink, ink, ink, alpha], -1))
