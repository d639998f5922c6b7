"""Whether each token lies where its box says: paint there, and see which token moves.

The outputs of attention in tower and projector are set to zero, so that nothing but the cutting and
resizing of the picture mixes what tokens see. Then the inner half of one token's box is painted in
a grey picture: of the tokens of its tile this one must move most, and none that lies more than a
token (or the reach of the resizing filter) away may move at all. Nothing of the family is known
here. Tokens of less than two pixels are passed over: a filter reaches over them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mm_lens.check.native import embed
from mm_lens.layout.layout import TokenLayout
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs

SIZES = ((31, 57), (64, 40), (48, 48), (22, 80))
"""(height, width) of pictures."""

LEAST, REACH, GREY, PAINT = 2.0, 4.0, (128, 128, 128), (255, 16, 96)
"""Smallest box and reach of resizing filters, in pixels; colours."""

MOVED = 1e-5
"""A token moves by more than this part of what the painted one moves by."""


def check_places(
    native: Any, model: VisionLanguageBridge, pictures: Sequence[tuple[int, int]], most: int
) -> list[str]:
    """What is wrong with the boxes of pictures of these (height, width), given in one prompt.

    Args:
        native: the model whose tower is run.
        model: prepares inputs, and says where tokens lie.
        pictures: sizes of the pictures.
        most: tokens that are painted, spread over all.
    """
    sizes = [_enlarge(model, size) for size in pictures]
    grey = [Image.new("RGB", (w, h), GREY) for h, w in sizes]
    inputs = model.prepare("x", grey)
    layout = inputs.layout.to("cpu")
    box = layout.box[0]
    big = ((box[:, 2:] - box[:, :2]) >= LEAST).all(-1)  # not of NaN
    chosen = big.nonzero().squeeze(1).tolist()
    if not chosen:
        return [f"no token of {sizes} has a box of two pixels"]
    step = max(1, -(-len(chosen) // most))
    faults = []
    with still_attention(native):
        before = embed(native, inputs)
        for token in chosen[::step]:
            k = int(layout.image[0, token])
            x0, y0, x1, y1 = box[token].tolist()
            painted = [picture.copy() for picture in grey]
            x0, x1 = _inner(x0, x1, grey[k].width)
            y0, y1 = _inner(y0, y1, grey[k].height)
            ImageDraw.Draw(painted[k]).rectangle((x0, y0, x1 - 1, y1 - 1), fill=PAINT)
            after = embed(native, model.prepare("x", painted))
            moved = (after - before)[0].float().norm(dim=-1).cpu()
            faults += _judge(layout, token, k, (x0, y0, x1, y1), moved)
    return faults


def _inner(low: float, high: float, edge: int) -> tuple[int, int]:
    """Pixels of the inner half of a box along one axis; at the picture's edge up to there.

    There a box may be cut: what of the token lies beyond cannot be painted, and its middle is not
    the box's.
    """
    quarter = (high - low) / 4
    begin = 0 if low <= 0 else round(low + quarter)
    return begin, edge if high >= edge else max(round(high - quarter), begin + 1)


def _judge(
    layout: TokenLayout, token: int, k: int, paint: tuple[int, int, int, int], moved: Tensor
) -> list[str]:
    box, tile = layout.box[0], layout.tile[0]
    mine = (tile == tile[token]) & (layout.image[0] == k)
    most = int(torch.where(mine, moved, -1.0).argmax())
    name = f"token {token} ({paint} of image {k})"
    if moved[token] == 0:
        return [f"{name} does not move"]
    if most != token:
        return [f"{name} is painted, but token {most} moves more"]
    size = box[:, 2:] - box[:, :2]
    reach = torch.maximum(size, torch.tensor(REACH)).repeat(1, 2)
    low, high = box[:, :2] - reach[:, :2], box[:, 2:] + reach[:, :2]
    x0, y0, x1, y1 = paint
    far = (low[:, 0] >= x1) | (low[:, 1] >= y1) | (high[:, 0] <= x0) | (high[:, 1] <= y0)
    far = far | ((layout.image[0] != k) & (layout.image[0] >= 0)) | (layout.image[0] < 0)
    if bool((moved[far] > MOVED * moved[token]).any()):
        worst = int(torch.where(far, moved, -1.0).argmax())
        return [f"{name} is painted, and token {worst} moves, which lies far from it"]
    return []


def _enlarge(model: VisionLanguageBridge, size: tuple[int, int]) -> tuple[int, int]:
    """A size of the same shape whose tokens are large enough to paint in."""
    for factor in (1, 2, 4, 8):
        larger = (size[0] * factor, size[1] * factor)
        box = _boxes(model.prepare("x", Image.new("RGB", larger[::-1])))
        if len(box) and float((box[:, 2:] - box[:, :2]).min(-1).values.median()) >= 2 * LEAST:
            break
    return larger


def _boxes(inputs: Inputs) -> Tensor:
    box = inputs.layout.box[0]
    return box[~box.isnan().any(-1)]


@contextmanager
def still_attention(native: Any) -> Iterator[None]:
    """Inside, attention outside of the language model writes nothing: tower and projector."""

    def silence(module: Any, args: Any, out: Any) -> Any:
        return (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else out * 0

    language = {*native.get_decoder().modules()}
    with ExitStack() as stack:
        for module in native.modules():
            if module not in language and re.search(r"Attention(2D)?$", type(module).__name__):
                stack.callback(module.register_forward_hook(silence).remove)
        yield
