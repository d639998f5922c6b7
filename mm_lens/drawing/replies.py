"""An answer of `model.ask` as a picture: what was asked about, and how probable what is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mm_lens.drawing.curves import DPI, InlineFigure

if TYPE_CHECKING:
    from mm_lens.model.running.asking import Reply

MOST = 12
"""Bars that are drawn."""


def draw_reply(reply: Reply) -> InlineFigure:
    """The pictures of a reply, and a bar for each option; without options, for each token.

    Args:
        reply: what `model.ask` returned.
    """
    pictures = () if reply.inputs is None else reply.inputs.images[reply.row]
    if reply.options:
        names, values = [*reply.options], [*reply.options.values()]
        unit = "share among the options"
    else:
        names = [repr(token)[1:-1] for token in reply.tokens]
        values = [math.exp(x) for x in reply.log_probs]
        unit = "probability of each token, given those before it"
    height = max(2.2, 0.9 + 0.32 * min(len(names), MOST))
    figure = InlineFigure(
        figsize=(2.6 * len(pictures) + 5.0, height), dpi=DPI, layout="constrained"
    )
    ratios = [*[2.6] * len(pictures), 5.0]
    *shown, axis = np.atleast_1d(figure.subplots(1, len(ratios), width_ratios=ratios))
    for each, picture in zip(shown, pictures, strict=True):
        each.imshow(np.asarray(picture))
        each.set_axis_off()
    places = range(min(len(names), MOST))
    axis.barh(places, values[:MOST], color="#0072B2")
    axis.set_yticks(places, names[:MOST])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.12)
    axis.set_xlabel(unit)
    axis.spines[["top", "right"]].set_visible(False)
    for place, value in zip(places, values, strict=False):
        axis.text(value + 0.01, place, f"{value:.2g}", va="center", fontsize=9)
    left = len(names) - MOST
    more = f" (the first {MOST} of {len(names)})" if left > 0 else ""
    axis.set_title(
        f"{_short(reply.question)}\n→ {_short(reply.text)}{more}", fontsize=11, loc="left"
    )
    return figure


def _short(text: str, most: int = 60) -> str:
    line = " ".join(text.split()).replace("$", r"\$")  # or matplotlib reads it as a formula
    return line if len(line) <= most else f"{line[: most - 1]}…"
