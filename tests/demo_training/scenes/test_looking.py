"""Where heads are told to look."""

from __future__ import annotations

import random

import pytest
import torch

from demo_training.scenes import looking
from demo_training.scenes.asking import ask
from demo_training.scenes.packing import Rooms
from mm_lens.data.sets.scenes.drawing import make_scene


def test_told_are_the_places_of_what_the_answer_depends_on() -> None:
    chance, grid = random.Random(0), 6
    seen = set()
    for _ in range(30):
        scene = make_scene(chance)
        for kind, question, answer in ask(scene, chance, 6):
            seen.add(kind)
            for what in (looking.named(scene, question), looking.beside(scene, question)):
                aim = looking.wanted(scene, what, grid, first=2, length=40)
                assert aim.sum().item() == pytest.approx(1)
                if kind == "absent":
                    assert aim[0] == 1
                else:
                    assert aim[2:38].sum().item() == pytest.approx(1)
            if kind in ("left", "right"):
                (other,) = looking.beside(scene, question)
                assert scene.things[other].shape == answer
                (mine,) = looking.named(scene, question)
                left = scene.things[other].box[0] < scene.things[mine].box[0]
                assert left == (kind == "left")
    assert {"left", "right", "absent", "count"} <= seen


def test_straying_is_the_cross_entropy_at_the_end_of_each_question() -> None:
    shares = torch.rand(1, 2, 6, 4).softmax(-1)  # two rooms of three
    rooms = Rooms(4, 3, torch.ones(1, 4, dtype=torch.bool), torch.tensor([[1, 2]]), {5: shares})
    aims = torch.zeros(1, 2, 4)
    aims[0, 0, 3] = aims[0, 1, 0] = 1
    found = looking.stray(rooms, 5, 1, aims, rooms.ends)
    expected = -(shares[0, 1, 1, 3].log() + shares[0, 1, 5, 0].log()) / 2
    assert found.item() == pytest.approx(expected.item(), abs=1e-4)
