"""A number for each pixel, or patch of the tower, beside the picture that it is of."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor

from mm_lens.data.pictures import Picture, open_picture
from mm_lens.drawing.curves import DPI, InlineFigure
from mm_lens.drawing.on_image import scale_of
from mm_lens.errors import InputError


def draw_pixels(image: Picture, values: Any, *, label: str = "value") -> InlineFigure:
    """Draw a grid of values beside the picture, as wide and high as it.

    For what is of no token: pixels as the model is given them (one tile of
    `pixel_attribution(…).pixels`, summed over colours), patches of the tower. Colours as in
    `draw_values`.

    ```python
    found = pixel_attribution(model, inputs, answers.logit_diff)
    draw_pixels(image, found.pixels["pixel_values"][0, 0].sum(0), label="gradient × input")
    ```

    Args:
        image: the picture.
        values: `[rows, columns]`, the whole picture from corner to corner.
        label: of the colour bar, with the unit.

    Raises:
        InputError: the values are no grid, or none is finite.
    """
    picture = open_picture(image)
    given = values.detach().float().cpu().numpy() if isinstance(values, Tensor) else values
    grid = np.asarray(given, dtype=float)
    if grid.ndim != 2 or not np.isfinite(grid).any():
        raise InputError(
            f"Values of shape {list(grid.shape)} are no grid [rows, columns] with a finite number: "
            "take one tile, and sum over its colours."
        )
    scale = scale_of(grid, None)
    aspect = min(max(picture.height / picture.width, 0.25), 2.0)
    figure = InlineFigure(figsize=(7.4, 3.1 * aspect + 0.5), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    shown, beside = figure.subplots(1, 2)
    extent = (0, picture.width, picture.height, 0)
    shown.imshow(np.asarray(picture.convert("RGB")), extent=extent, aspect="auto")
    drawn = beside.imshow(
        grid, extent=extent, cmap=scale.colours, norm=scale.norm, aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    shown.set(xlabel="x in pixels", ylabel="y in pixels")
    beside.set(xlabel="x in pixels", yticks=[])
    for axis in (shown, beside):
        axis.set_box_aspect(aspect)
    figure.colorbar(drawn, ax=beside, label=label)
    return figure
