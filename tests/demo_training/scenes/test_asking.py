"""Questions for training."""

from __future__ import annotations

import random
from collections import Counter

from demo_training.scenes.asking import ask, every_question
from mm_lens.data.sets.scenes.drawing import make_scene
from mm_lens.data.sets.scenes.questions import ask_all


def test_answers_are_the_truth_and_every_kind_and_answer_comes() -> None:
    chance = random.Random(0)
    seen: Counter[tuple[str, str]] = Counter()
    for _ in range(60):
        scene = make_scene(chance)
        for kind, question, answer in ask(scene, chance, 12):
            assert question.answer(scene) == answer
            assert question.kind == kind.replace("absent", "present")
            seen[kind, answer] += 1
    assert {kind for kind, _ in seen} == {
        "colour",
        "shape",
        "left",
        "right",
        "count",
        "present",
        "absent",
    }
    assert {answer for kind, answer in seen if kind == "present"} == {"yes"}
    assert {answer for kind, answer in seen if kind == "absent"} == {"no"}
    # Of the data set three in four counts are one, and these are asked in half of the scenes.
    assert seen["count", "2"] > seen["count", "1"] / 8


def test_there_are_no_other_questions_in_the_data() -> None:
    chance, every = random.Random(0), {question.text for question in every_question()}
    for _ in range(40):
        assert {question.text for question in ask_all(make_scene(chance), chance)} <= every
