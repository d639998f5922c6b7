"""Counterfactual pairs: from the data, painted, or the picture most alike."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mm_lens import InputError
from mm_lens.recipes.pairs import find_pairs, is_drawn, repaint
from mm_lens.recipes.questions import ask, find_thing


def shaped(shape, colour, ground=(240, 250, 245), box=(10, 12, 29, 31)):
    image = Image.new("RGB", (64, 48), ground)
    getattr(ImageDraw.Draw(image), shape)(box, fill=colour)
    return image


def colour(image):
    return np.asarray(image)[find_thing(image)][0].tolist()


def test_painted_in_the_colour_or_the_outline_of_another():
    """Hard edges come out to the last bit; soft ones as what they are a mixture of."""
    here, there = shaped("ellipse", (200, 0, 0)), shaped("rectangle", (0, 0, 90), (255, 240, 250))
    assert is_drawn(here)
    recoloured = repaint(here, there, "colour")
    assert np.array_equal(recoloured, shaped("ellipse", (0, 0, 90)))
    assert np.array_equal(repaint(here, there, "shape"), shaped("rectangle", (200, 0, 0)))
    wide = repaint(shaped("rectangle", (200, 0, 0), box=(10, 12, 49, 31)), here, "shape")
    mask = find_thing(wide).numpy()
    y, x = mask.nonzero()
    assert (y.max() - y.min(), x.max() - x.min()) == (19, 19)
    assert mask.sum() == pytest.approx(np.pi * 100, rel=0.05)
    soft = here.resize((32, 24), Image.Resampling.BILINEAR)
    want = shaped("ellipse", (0, 0, 90)).resize((32, 24), Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(repaint(soft, there, "colour")).astype(int) - want).max() <= 2


def test_a_photograph_is_not_drawn():
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    assert not is_drawn(Image.fromarray(noise))
    assert not is_drawn(Image.new("RGB", (8, 8)))


def test_pairs_of_drawn_shapes_and_of_pictures_alike(model, samples, asked):
    pairs = find_pairs(model, asked, 0)
    assert len(pairs) == 6
    for pair in pairs:
        answers, sample = pair.other.answers, pair.clean.sample
        wrong = answers.options[int(answers.wrong)]
        assert answers.options[int(answers.right)] == sample.answer != wrong
        image = pair.other.inputs.images[0][0]
        thing = find_thing(sample.image)
        assert find_thing(image).equal(thing)
        colours = [colour(s.image) for s in samples if s.answer == wrong]
        assert colour(image) in colours
    unnamed = [replace(s, about={}) for s in samples]
    alike = find_pairs(model, ask(model, unnamed), 0)
    shown = [np.asarray(s.image) for s in samples]
    for pair in alike:
        assert any(np.array_equal(pair.other.inputs.images[0][0], image) for image in shown)
    apart = [replace(s, about={}, text=f"What {s.answer}?") for s in samples]
    with pytest.raises(InputError, match="No question has a counterfactual partner"):
        find_pairs(model, ask(model, apart), 0)


def test_partners_that_the_data_know_come_first(model, samples):
    class Known(list):
        def truth(self, k):
            other = replace(samples[k], image=samples[k - 1].image, answer=samples[k - 1].answer)
            return SimpleNamespace(partner=other)

    asked = ask(model, Known(samples), 2)
    for pair, before in zip(find_pairs(model, asked, 0), (samples[-1], samples[0]), strict=True):
        assert np.array_equal(pair.other.inputs.images[0][0], before.image)
        assert pair.other.answers.options[int(pair.other.answers.wrong)] == before.answer
