"""Canvases and their questions."""

from __future__ import annotations

import random
from typing import Any

import easy_vqa
import numpy as np
import pytest
from built_demos import picture
from PIL import Image, ImageColor

from demo_training import canvases
from demo_training.fusion import Fusion
from demo_training.prompts import prompt


@pytest.mark.parametrize("name", ["llava-next"], indirect=True)
def test_every_grid_is_trained_on(processor: Any) -> None:
    seen = set()
    for size in canvases.SIZES:
        inputs = processor(text=prompt(processor, "?"), images=picture(size), return_tensors="pt")
        tiles = inputs["pixel_values"].shape[1] - 1
        tall, wide = size[0] > 1.5 * size[1], size[1] > 1.5 * size[0]
        seen.add((tiles, "tall" if tall else "wide" if wide else "square"))
    assert seen == {(4, "square"), (2, "tall"), (2, "wide"), (3, "tall"), (3, "wide")}


@pytest.mark.parametrize("size", canvases.SIZES)
def test_canvas_keeps_the_whole_image(size: tuple[int, int]) -> None:
    red = Image.new("RGB", (64, 64), (255, 0, 0))
    for seed in range(5):
        sheet, (x0, y0, x1, y1) = canvases.canvas(red, size, random.Random(seed))
        inside = np.asarray(sheet)[y0:y1, x0:x1]
        assert (inside == (255, 0, 0)).all()
        assert (sheet.height, sheet.width) == size
        if sheet.getpixel((0, 0)) == sheet.getpixel((sheet.width - 1, sheet.height - 1)):
            continue  # the background is taken from the image itself
        area = (np.asarray(sheet) == (255, 0, 0)).all(-1).sum()
        assert 0.75**2 <= area / 64**2 <= 1.5**2


@pytest.mark.parametrize("name", ["omnifusion"], indirect=True)
@pytest.mark.parametrize("size", [(64, 192), (192, 64), (80, 112), (96, 96)])
def test_what_is_cropped_away_is_not_asked_about(built: Fusion, size: tuple[int, int]) -> None:
    """A black box on white: seen whole, or not counted as seen."""
    rng = random.Random(0)
    for _ in range(20):
        side = rng.randint(20, 50)
        x, y = rng.randint(0, size[1] - side), rng.randint(0, size[0] - side)
        sheet = Image.new("RGB", (size[1], size[0]), "white")
        sheet.paste((0, 0, 0), (x, y, x + side, y + side))
        dark = (built.tiles(sheet).float().mean((0, 1)) < 128).sum().item()
        whole = (side * 48 / min(size)) ** 2
        if built.sees(size, (x, y, x + side, y + side)):
            assert abs(dark - whole) < 0.2 * whole
        else:
            assert dark < whole


def test_colours_told_by_the_questions_are_in_the_pixels() -> None:
    kinds, paths = canvases.kinds(), easy_vqa.get_train_image_paths()
    assert len(kinds) > 3500
    for owner in random.Random(0).sample(sorted(kinds), 60):
        name = {"green": "lime"}.get(kinds[owner][1], kinds[owner][1])
        pixels = np.asarray(Image.open(paths[owner]).convert("RGB"))
        assert (pixels == ImageColor.getrgb(name)).all(-1).sum() >= 9, (owner, name)


def test_borrowed_questions_never_contradict_each_other() -> None:
    groups = canvases.questions()
    assert len(groups) == 4000
    for pairs in {
        id(g): [pair for group in g.values() for pair in group] for g in groups.values()
    }.values():
        truth: dict[str, str] = {}
        for question, answer in pairs:
            assert truth.setdefault(question, answer) == answer


def test_what_is_asked_for() -> None:
    """Against the 38,575 questions themselves: one word of truth per image and attribute."""
    kinds = canvases.kinds()
    for question, answer, owner in zip(*easy_vqa.get_train_questions(), strict=True):
        if owner not in kinds:
            continue
        asked = canvases.asked_for(question, answer)
        mentioned = set(question.rstrip("?").split()) & set(canvases.SHAPES + canvases.COLOURS)
        if asked in ("shape", "colour"):
            assert answer == kinds[owner][asked == "colour"]
        else:
            assert mentioned
            assert asked.startswith("present") == (mentioned <= set(kinds[owner]))
            assert asked.endswith("negated") == (" no " in question or " not " in question)
