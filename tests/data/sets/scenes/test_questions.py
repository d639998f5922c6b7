"""Answers, worked out from the pixels; partners, from what the picture of each shows."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy import ndimage

from mm_lens.data.sets.scenes.drawing import COLOURS, make_scene
from mm_lens.data.sets.scenes.questions import KINDS, ask_all, find_partner

SCENES = [(scene, k) for k in range(24) if (scene := make_scene(random.Random(k)))]


def seen(image):
    """Shape, colour and box of every object, from the pixels alone."""
    pixels, found = np.asarray(image), []
    for colour, rgb in COLOURS.items():
        labels, _ = ndimage.label((pixels == rgb).all(-1))
        for i, place in enumerate(ndimage.find_objects(labels), start=1):
            share = (labels[place] == i).mean()
            shape = "rectangle" if share > 0.95 else "circle" if share > 0.65 else "triangle"
            found.append((shape, colour, place[1].start, place[1].stop))
    return found


def answer(text, objects):
    """What is right, from the words of the question and what is seen."""
    words = text.rstrip("?").replace("circles", "circle").split()
    words = [word.removesuffix("s") if word.startswith(("rect", "tri")) else word for word in words]
    meant = [
        one
        for one in objects
        if all(word in one for word in words if word in COLOURS)
        and all(word in one for word in words if word in ("circle", "rectangle", "triangle"))
    ]
    if words[:2] == ["is", "there"]:
        return "yes" if meant else "no"
    if words[:2] == ["how", "many"]:
        return str(len(meant))
    ((shape, colour, x0, x1),) = meant
    if "left" in words or "right" in words:
        (beside,) = [one for one in objects if (one[3] <= x0 if "left" in words else one[2] >= x1)]
        return beside[0]
    return colour if "color" in words else shape


def test_answers_and_partners_are_what_the_pixels_say():
    kinds = set()
    for scene, k in SCENES:
        chance = random.Random(k)
        objects = seen(scene.draw())
        for question in ask_all(scene, chance):
            assert question.answer(scene) == answer(question.text, objects), question
            other, index, attribute = find_partner(question, scene, chance)
            after = seen(other.draw())
            assert question.answer(other) == answer(question.text, after)
            assert question.answer(other) != question.answer(scene)
            # One attribute of one object, which the answer depends on.
            (gone,), (came,) = {*objects} - {*after}, {*after} - {*objects}
            same = [a == b for a, b in zip(gone, came, strict=True)]
            assert same == [attribute != "shape", attribute != "colour", True, True]
            assert index in question.subjects(scene)
            kinds.add(question.kind)
    assert kinds == {*KINDS} - {"absent"}


def test_subjects_are_the_objects_whose_pixels_decide():
    """What is painted over that is no subject, changes no answer."""
    for scene, k in SCENES[:15]:
        for question in ask_all(scene, random.Random(k)):
            pixels = np.asarray(scene.draw()).copy()
            kept = {*question.subjects(scene)}
            for i, thing in enumerate(scene.things):
                if i not in kept:
                    pixels[thing.mask(scene.width, scene.height)] = 255
            assert answer(question.text, seen(pixels)) == question.answer(scene)
            assert all(word in question.text.rstrip("?").split() for word in question.words)
            assert question.words


def test_lures_have_shape_and_colour_but_not_in_one():
    """Most of what is absent can be told by binding alone, where there are several objects."""
    lured = asked = 0
    for scene, k in SCENES:
        for question in ask_all(scene, random.Random(k)):
            if question.answer(scene) == "no" and len(scene.things) > 1:
                shapes, colours = (
                    {getattr(t, name) for t in scene.things} for name in ("shape", "colour")
                )
                lured += question.shape in shapes and question.colour in colours
                asked += 1
    assert lured / asked > 0.8


@pytest.mark.parametrize("kind", ["left", "right"])
def test_what_stands_on_neither_side_is_not_asked_about(kind):
    for scene, k in SCENES:
        for question in ask_all(scene, random.Random(k)):
            if question.kind == kind:
                assert len(question.subjects(scene)) == 2
