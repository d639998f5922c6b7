"""Questions as recipes ask them: one at a time, with options, and where the thing lies.

The thing that a question is about is the column `box` of the data (x0, y0, x1, y1 in pixels), where
there is one; else what differs from the most frequent colour of the picture, which is right for
drawn shapes on a plain ground alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from mm_lens.causal.answers import Answers
from mm_lens.data.samples import Sample, Samples
from mm_lens.errors import InputError
from mm_lens.layout.groups import Box, group_mask, last_position
from mm_lens.looking.logit_lens import first_token
from mm_lens.looking.sampling import picture_ids
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs
from mm_lens.model.running.logits import keep_logits

FAR = 48
"""Largest difference of a colour channel, out of 255, that still counts as the ground."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A question.

    Attributes:
        inputs: of this question alone.
        answers: options, and which is right.
        picture: number of the picture, from 0.
        sample: it is from.
        partner: the same question about a picture that differs in one thing, where the data have
            one (`data.truth(i).partner`).
    """

    inputs: Inputs = field(repr=False)
    answers: Answers = field(repr=False)
    picture: int
    sample: Sample = field(repr=False)
    partner: Sample | None = field(default=None, repr=False)

    @property
    def visual(self) -> Bool[Tensor, "1 pos"]:
        """Image tokens, newlines left out."""
        layout = self.inputs.layout
        return layout.mask("visual") & ~layout.mask("newline")

    @property
    def question(self) -> Bool[Tensor, "1 pos"]:
        """Text behind the image, but for the last position."""
        layout = self.inputs.layout
        behind = layout.mask("visual").cumsum(1) == layout.mask("visual").sum()
        return behind & layout.mask("text") & ~last_position(layout)

    @property
    def thing(self) -> Bool[Tensor, "1 pos"]:
        """Image tokens of the thing; none, or all, where it is not to be told."""
        box = self.sample.about.get("box")
        image = self.sample.images[0]
        where: Any = find_thing(image) if box is None else _box(box)
        if isinstance(where, Tensor) and not bool(where.any()):
            return torch.zeros_like(self.visual)
        return group_mask(self.inputs.layout, where) & self.visual


def _box(box: Any) -> Box:
    parts = box.replace(",", " ").split() if isinstance(box, str) else list(box)
    if len(parts) != 4:
        raise InputError(f"box is four numbers, x0, y0, x1, y1 in pixels, not {box!r}.")
    x0, y0, x1, y1 = (float(part) for part in parts)
    return Box(x0, y0, x1, y1)


def find_thing(image: Image.Image) -> Bool[Tensor, "height width"]:
    """Pixels that differ from the most frequent colour."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    ground = colours[counts.argmax()]
    return torch.from_numpy(np.abs(pixels - ground).max(-1) > FAR)


def ask(model: VisionLanguageBridge, samples: Samples, limit: int | None = None) -> list[Asked]:
    """Questions with an image, a known answer and three options or more.

    Options are those of the sample; else all answers to questions of its kind (the column `kind`)
    in the data. One of several tokens stands for its first.

    Raises:
        InputError: there is no such question; two options begin with the same token.
    """
    every = [(k, samples[k]) for k in range(len(samples))]
    found = [(k, s) for k, s in every if s.answer is not None and len(s.images) == 1]
    truth = getattr(samples, "truth", None)
    kinds: dict[Any, dict[str, None]] = {}
    for _, sample in found:
        kinds.setdefault(sample.about.get("kind"), {})[str(sample.answer)] = None
    out: list[Asked] = []
    pictures: dict[int, int] = {}
    for k, sample in found:
        options = sample.options or tuple(sorted(kinds[sample.about.get("kind")]))
        if len(options) < 3 or str(sample.answer) not in options:
            continue
        inputs = model.prepare(sample.text, sample.images[0])
        (shown,) = picture_ids(inputs)
        answers = make_answers(model, inputs, options, str(sample.answer))
        picture = pictures.setdefault(shown, len(pictures))
        partner = None if truth is None else truth(k).partner
        out.append(Asked(inputs, answers, picture, sample, partner))
        if limit is not None and len(out) == limit:
            break
    if not out:
        raise InputError(
            "The data hold no question with one image, its answer, and three options or more (a "
            "column options, or three different answers)."
        )
    return out


def make_answers(
    model: VisionLanguageBridge,
    inputs: Inputs,
    options: Sequence[str],
    right: str,
    wrong: str | None = None,
) -> Answers:
    """Answers of one question; an option of several tokens has its first stand for it.

    Raises:
        InputError: two options begin with the same token.
    """
    try:
        return Answers(model, inputs, options, right, wrong)
    except InputError:
        tokens = [first_token(model, option) for option in options]
        return Answers(model, inputs, options, right, wrong, tokens=tokens)


def read(model: VisionLanguageBridge, asked: Asked, what: str = "probability") -> float:
    """A metric of the right answer, under whatever is attached to the model."""
    return read_all(model, asked)[what]


@torch.no_grad()
def read_all(model: VisionLanguageBridge, asked: Asked) -> dict[str, float]:
    """All metrics of the right answer, of one run."""
    at, alone = asked.answers.at_positions()
    options = keep_logits(model, at)
    logits = model(asked.inputs, **options)
    metrics = (alone if options else asked.answers).metrics
    return {name: float(metric(logits)[0]) for name, metric in metrics.items()}


def with_thing(asked: Sequence[Asked]) -> list[Asked]:
    """Questions whose thing has some of the image tokens, and less than half of them.

    Raises:
        InputError: there is none.
    """
    found = []
    for question in asked:
        size, n = int(question.thing.sum()), int(question.visual.sum())
        if 0 < size <= n / 2:
            found.append(question)
    if not found:
        raise InputError(
            "Where the thing lies that is asked about is not to be told in any picture: give the "
            "data a column box (x0, y0, x1, y1 in pixels)."
        )
    return found


def draw(mask: Bool[Tensor, "1 pos"], n: int, generator: torch.Generator) -> Bool[Tensor, "1 pos"]:
    """So many of a mask's positions, at random."""
    positions = mask[0].nonzero()[:, 0]
    chosen = positions[torch.randperm(len(positions), generator=generator)[:n].to(positions.device)]
    out = torch.zeros_like(mask)
    out[0, chosen] = True
    return out
