"""Patching finds where a planted object lies, on the demo models.

Clean and corrupted image show the same shape at the same place in two colours; the question asks
for the colour. The truth is in the pixels: those in which the two images differ.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import mm_lens
from demo_training.canvases import COLOURS, SHAPES
from mm_lens.causal import patching
from mm_lens.causal.answers import Answers

RGB = dict(
    zip(
        COLOURS,
        ["#000000", "#0000ff", "#964b00", "#808080", "#008000", "#ff0000", "#008080", "#ffff00"],
        strict=True,
    )
)
SIDE = 64


def draw(shape, colour, box, background):
    image = Image.new("RGB", (SIDE, SIDE), background)
    pen, (x0, y0, x1, y1) = ImageDraw.Draw(image), box
    if shape == "circle":
        pen.ellipse(box, fill=RGB[colour])
    elif shape == "rectangle":
        pen.rectangle(box, fill=RGB[colour])
    else:
        pen.polygon([((x0 + x1) / 2, y0), (x1, y1), (x0, y1)], fill=RGB[colour])
    return image


def pairs(seed=0):
    """Endless pairs: (clean image, corrupted image, clean colour, corrupted colour)."""
    rng = random.Random(seed)
    while True:
        shape = rng.choice(SHAPES)
        width = rng.randint(16, 30)
        height = width if shape == "circle" else rng.randint(16, 30)
        x, y = rng.randint(0, SIDE - 1 - width), rng.randint(0, SIDE - 1 - height)
        background = tuple(rng.randint(230, 255) for _ in range(3))
        colours = rng.sample(COLOURS, 2)
        box = (x, y, x + width, y + height)
        yield *(draw(shape, colour, box, background) for colour in colours), *colours


@torch.no_grad()
def located(model, n):
    """For `n` images answered correctly: whether the top patch shows the object, and by chance."""
    found, chance = [], []
    for clean_image, corrupted_image, right, wrong in pairs():
        clean, corrupted = (
            model.prepare("what color is the shape?", image)
            for image in (clean_image, corrupted_image)
        )
        answers = Answers(model, corrupted, COLOURS, right, wrong)
        logits, cache = model.run_with_cache(
            clean, names_filter=mm_lens.names("resid_pre", layers=[0])
        )
        if not answers.correct(logits):
            continue
        result = patching.get_act_patch_resid_pre(
            model,
            corrupted,
            cache,
            answers.logit_diff,
            axis="cell",
            layers=[0],
            batch_size=36,
            progress=False,
        )
        changed = (np.asarray(clean_image) != np.asarray(corrupted_image)).any(-1)
        shows = [
            bool(changed[int(row.y0) : -int(-row.y1 // 1), int(row.x0) : -int(-row.x1 // 1)].any())
            for row in result.index_df.itertuples()
        ]
        found.append(shows[int(result.effect()[0, :, 0].argmax())])
        chance.append(np.mean(shows))
        if len(found) == n:
            return np.mean(found), np.mean(chance)
    raise AssertionError("pairs() ends")


@pytest.mark.parametrize("name", ["demo/llava-next", "demo/omnifusion"])
@pytest.mark.parametrize("n", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_the_top_patch_lies_on_the_object(name, n):
    rate, chance = located(mm_lens.load(name, check=False), n)
    print(f"{name}: top patch on the object in {rate:.1%} of {n}, {chance:.1%} by chance")
    assert chance < 0.5
    assert rate >= 0.95
