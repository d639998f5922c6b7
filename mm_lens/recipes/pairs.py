"""Counterfactual pairs: the same question about a picture that differs in what is asked about.

In this order: the partner that the data themselves have (`data.truth(i).partner`); a drawn shape,
painted anew in the colour, or with the outline, of another question's (kinds "colour" and "shape");
the picture that is most like it, of the same size, of which the same is asked and another answer is
right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from mm_lens.errors import InputError
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.recipes.questions import Asked, find_thing, make_answers

PLAIN = 0.5
"""Share of a drawn shape's pixels, and of its ground's, that have one colour to the last bit."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Two questions; in both the answer of the first is right, and that of the second is wrong.

    Attributes:
        clean: the question.
        other: the same about the other picture.
    """

    clean: Asked
    other: Asked


def find_pairs(model: VisionLanguageBridge, asked: Sequence[Asked], seed: int) -> list[Pair]:
    """A pair for each question that has one.

    Raises:
        InputError: none has.
    """
    found = []
    chance = np.random.default_rng(seed)
    for question in asked:
        partner = _find_partner(question, asked, chance)
        if partner is None:
            continue
        image, answer = partner
        options, right = question.answers.options, str(question.sample.answer)
        inputs = model.prepare(question.sample.text, image)
        if inputs.layout.shape != question.inputs.layout.shape or answer not in options:
            continue
        clean, other = (
            replace(question, inputs=x, answers=make_answers(model, x, options, right, answer))
            for x in (question.inputs, inputs)
        )
        found.append(Pair(clean, other))
    if not found:
        raise InputError(
            "No question has a counterfactual partner: the data know none, show no single drawn "
            "shape, and do not ask the same of two pictures of one size with other answers."
        )
    return found


def _find_partner(
    question: Asked, asked: Sequence[Asked], chance: np.random.Generator
) -> tuple[Image.Image, str] | None:
    """The other picture, and what is right of it."""
    if question.partner is not None:
        return question.partner.images[0], str(question.partner.answer)
    kind, image = question.sample.about.get("kind"), question.sample.images[0]
    others = [
        other.sample
        for other in asked
        if other.sample.answer != question.sample.answer and other.sample.about.get("kind") == kind
    ]
    if kind in ("colour", "shape"):
        drawn = [other for other in others if is_drawn(other.images[0])]
        if drawn and is_drawn(image):
            donor = drawn[int(chance.integers(len(drawn)))]
            return repaint(image, donor.images[0], kind), str(donor.answer)
    alike = [
        other
        for other in others
        if other.text == question.sample.text and other.images[0].size == image.size
    ]
    if not alike:
        return None
    nearest = min(alike, key=lambda other: _distance(other.images[0], image))
    return nearest.images[0], str(nearest.answer)


def _distance(one: Image.Image, other: Image.Image) -> float:
    """Of two pictures of one size, over their pixels."""
    a, b = (np.asarray(image.convert("RGB")).astype(float) for image in (one, other))
    return float(np.abs(a - b).sum())


def is_drawn(image: Image.Image) -> bool:
    """Whether the picture is of a shape in one colour on a ground in one."""
    pixels, thing = np.asarray(image.convert("RGB")), find_thing(image).numpy()
    return bool(thing.any()) and all(
        _most_frequent(pixels[mask])[1] >= PLAIN for mask in (thing, ~thing)
    )


def repaint(image: Image.Image, donor: Image.Image, what: str) -> Image.Image:
    """A drawn shape in the colour of the donor's, or the donor's outline in its colour and box."""
    cover, ground, colour = _take_apart(image)
    other, _, wanted = _take_apart(donor)
    if what == "colour":
        colour = wanted
    else:
        cover = _fit(other, cover)
    mixed = ground + cover[..., None] * (colour - ground)
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def _take_apart(image: Image.Image) -> tuple[Any, Any, Any]:
    """How much of each pixel the shape covers (its edges are soft), ground and colour."""
    pixels, thing = np.asarray(image.convert("RGB")).astype(float), find_thing(image).numpy()
    ground, colour = (_most_frequent(pixels[mask])[0] for mask in (~thing, thing))
    along = (pixels - ground) @ (colour - ground)
    return (along / np.square(colour - ground).sum()).clip(0, 1), ground, colour


def _fit(
    shape: Float[np.ndarray, "height width"], place: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w"]:
    """The shape, as large as fits where the other one is, about its centre."""
    y0, x0, y1, x1 = _box(shape)
    top, left, bottom, right = _box(place)
    scale = min((bottom - top) / (y1 - y0), (right - left) / (x1 - x0))
    height, width = (max(1, round(scale * side)) for side in (y1 - y0, x1 - x0))
    cut = Image.fromarray(shape[y0:y1, x0:x1].astype(np.float32))
    small = np.asarray(cut.resize((width, height), Image.Resampling.BILINEAR))
    y, x = (top + bottom - height) // 2, (left + right - width) // 2
    out = np.zeros_like(place)
    out[y : y + height, x : x + width] = small
    return out


def _box(cover: Float[np.ndarray, "height width"]) -> tuple[int, int, int, int]:
    rows, cols = np.nonzero(cover >= 0.5)
    return int(rows.min()), int(cols.min()), int(rows.max()) + 1, int(cols.max()) + 1


def _most_frequent(pixels: Any) -> tuple[Any, float]:
    """The most frequent colour, and its share."""
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    return colours[counts.argmax()], counts.max() / counts.sum()
