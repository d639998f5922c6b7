"""Scenes as they are drawn: pixels read off the picture, without what drew them."""

from __future__ import annotations

import random

import numpy as np
from scipy import ndimage

from mm_lens.data.sets.scenes.drawing import COLOURS, GROUNDS, RATIOS, make_scene

SCENES = [make_scene(random.Random(k)) for k in range(40)]


def test_masks_and_boxes_are_those_of_the_pixels():
    for scene in SCENES:
        pixels = np.asarray(scene.draw())
        assert pixels.shape == (scene.height, scene.width, 3)
        found = 0
        for colour, rgb in COLOURS.items():
            here = (pixels == rgb).all(-1)
            mine = [thing for thing in scene.things if thing.colour == colour]
            masks = [thing.mask(scene.width, scene.height) for thing in mine]
            covered = [mask for mask in masks if mask.any()]
            assert len(covered) == len(mine)
            assert here.sum() == sum(mask.sum() for mask in masks)
            assert all(here[mask].all() for mask in masks)
            labels, count = ndimage.label(here)
            assert count == len(mine)  # objects do not touch, and each is of one piece
            found += count
            boxes = {
                (s[1].start, s[0].start, s[1].stop, s[0].stop) for s in ndimage.find_objects(labels)
            }
            assert boxes == {thing.box for thing in mine}
        assert found == len(scene.things)
        ground = ~np.logical_or.reduce(
            [thing.mask(scene.width, scene.height) for thing in scene.things]
        )
        assert pixels[ground].min() >= 225


def test_shapes_cover_what_they_should():
    """A rectangle fills its box, a circle π / 4 of it, a triangle half."""
    shares = {"rectangle": 1.0, "circle": np.pi / 4, "triangle": 0.5}
    for scene in SCENES:
        for thing in scene.things:
            x0, y0, x1, y1 = thing.box
            share = thing.mask(scene.width, scene.height).sum() / ((x1 - x0) * (y1 - y0))
            assert abs(share - shares[thing.shape]) < 0.04


def test_there_is_every_kind_and_it_is_always_the_same():
    assert {scene.ground for scene in SCENES} == {*GROUNDS}
    assert {len(scene.things) for scene in SCENES} == {1, 2, 3, 4}
    assert {thing.size for scene in SCENES for thing in scene.things} == {"small", "large"}
    for scene in SCENES:
        ratio = max(scene.width, scene.height) / min(scene.width, scene.height)
        assert min(abs(ratio - a / b) for a, b in RATIOS) < 0.02
    again = make_scene(random.Random(7))
    assert again == SCENES[7] != SCENES[8]
    assert again.draw().tobytes() == SCENES[7].draw().tobytes()
    # Written down: the same on every machine and version of Python.
    (thing,) = again.things
    assert (again.width, again.height, again.ground) == (201, 161, "plain")
    assert (thing.shape, thing.colour, thing.box) == ("triangle", "gray", (15, 130, 46, 155))
