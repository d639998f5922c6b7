"""Questions about scenes for training: as those of the data set, but any number, and balanced."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from mm_lens.data.sets.scenes.drawing import COLOURS, SHAPES, Scene
from mm_lens.data.sets.scenes.questions import KINDS, Question

EVENLY = dict.fromkeys(KINDS, 1.0)


def every_question() -> list[Question]:
    """All questions that can be asked about any scene."""
    counted = [("", c) for c in COLOURS] + [(s, "") for s in SHAPES]
    return [
        *(Question("colour", s) for s in SHAPES),
        *(Question(kind, "", c) for kind in ("shape", "left", "right") for c in COLOURS),
        *(Question("count", s, c) for s, c in counted),
        *(Question("present", s, c) for s in SHAPES for c in COLOURS),
    ]


def ask(
    scene: Scene, chance: random.Random, n: int, weights: Mapping[str, float] = EVENLY
) -> list[tuple[str, Question, str]]:
    """`n` questions: their kind (of `KINDS`), and the answer. One may come twice.

    Args:
        scene: what is asked about.
        chance: of the choice.
        n: how many.
        weights: how often each kind is asked.
    """
    choices = dict(_choices(scene))
    kinds = [kind for kind in KINDS if kind in choices]
    asked = chance.choices(kinds, [weights[kind] for kind in kinds], k=n)
    found = []
    for kind in asked:
        # Evenly over the answers: three in four counts are one.
        by_answer = choices[kind]
        answer = chance.choice([*by_answer])
        found.append((kind, chance.choice(by_answer[answer]), answer))
    return found


def _choices(scene: Scene) -> Iterator[tuple[str, dict[str, list[Question]]]]:
    """Of each kind that makes sense of the scene, the questions by their answer."""
    shapes, colours = {t.shape for t in scene.things}, {t.colour for t in scene.things}
    there = {(t.shape, t.colour) for t in scene.things}
    others = [(s, c) for s in SHAPES for c in COLOURS if (s, c) not in there]
    both = [(s, c) for s, c in others if s in shapes and c in colours]
    one = [(s, c) for s, c in others if s in shapes or c in colours]
    asked = {
        "colour": [Question("colour", s) for s in shapes],
        "count": [Question("count", "", c) for c in colours]
        + [Question("count", s) for s in shapes],
        # Shape and colour are there, and not in one, where that can be.
        "absent": [Question("present", s, c) for s, c in both or one],
        "present": [Question("present", s, c) for s, c in there],
    }
    for kind in ("shape", "left", "right"):
        asked[kind] = [Question(kind, "", c) for c in colours]
    for kind in KINDS:
        by_answer: dict[str, list[Question]] = {}
        for question in sorted(asked[kind], key=lambda q: q.text):
            answer = question.answer(scene)
            if answer is not None:
                by_answer.setdefault(answer, []).append(question)
        if by_answer:
            yield kind, by_answer
