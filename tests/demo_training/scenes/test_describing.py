"""What image tokens say, against the scene."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from demo_training.scenes.describing import WORDS, Describer, Window, places, whole
from mm_lens.data.sets.scenes.drawing import make_scene


def test_centres_and_names_can_be_read_off() -> None:
    """The mean place of what says a name is the place of the object, weights are 1 in sum."""
    chance, grid = random.Random(0), 9
    for _ in range(20):
        scene = make_scene(chance)
        said = places(scene, whole(scene), grid).reshape(grid, grid, len(WORDS))
        for name, total in zip(WORDS, said.sum((0, 1)).tolist(), strict=True):
            things = [thing for thing in scene.things if name in (thing.shape, thing.colour)]
            assert total == pytest.approx(len(things), abs=1e-5)
            if len(things) == 1:
                x0, _, x1, _ = things[0].box
                middle = (x0 + x1) / 2 / scene.width * grid
                if 0.5 < middle < grid - 0.5:
                    columns = said[..., WORDS.index(name)].sum(0)
                    found = (columns * (torch.arange(grid) + 0.5)).sum().item()
                    assert found == pytest.approx(middle, abs=1e-4)


def test_what_lies_outside_of_a_tile_is_not_said() -> None:
    scene = make_scene(random.Random(1))
    assert places(scene, Window(scene.width, 0, 10, 10), 4).sum() == 0
    left, right = (
        places(scene, Window(k * scene.width / 2, 0, scene.width / 2, scene.height), 4)
        for k in range(2)
    )
    assert (left + right).sum().item() == pytest.approx(2 * len(scene.things), abs=1e-5)


def test_a_token_is_its_place_and_the_words_it_says() -> None:
    words = nn.Embedding(20, 6)
    describer = Describer(words, torch.arange(len(WORDS)))
    said = torch.zeros(4, len(WORDS))
    said[2, [0, 5]] = 0.5
    tokens = describer(said)
    place = -describer.across + describer.down
    half = (words.weight[0] + words.weight[5]) / 2
    expected = describer.ground + place + describer.loud * (0.5 * describer.thing + half)
    torch.testing.assert_close(tokens[2], expected)
    torch.testing.assert_close(tokens[3] - tokens[1], 2 * describer.down)
