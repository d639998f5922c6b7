"""scenes: pictures of one to four coloured shapes, drawn when they are looked at, with the truth.

Splits train (2,000 pictures) and test (500); up to seven questions about each (what color is the
circle, what shape is the red one, what shape is left of it, how many, is there a …), and `seed=`
makes others. Objects are small or large, grounds plain, gradients or textured, pictures as
photographs in ratio. `data.truth(i)` says which pixels and which words the answer depends on, and
has a partner: the same picture with one attribute of one object changed, and another answer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Bool

from mm_lens.data.samples import DataSet, Row, Sample
from mm_lens.data.sets.scenes.drawing import Box, Scene, make_scene
from mm_lens.data.sets.scenes.questions import Question, ask_all, find_partner
from mm_lens.errors import DataError

PICTURES = {"train": 2000, "test": 500}


@dataclass(frozen=True)
class Truth:
    """What is known of a sample because it was made.

    Attributes:
        scene: what the picture shows, with every object's place.
        subjects: the objects that the answer depends on.
        words: the words of the question that it depends on.
        partner: the same question about the same picture but for one attribute of one object.
        changed: which object that is.
        attribute: "colour" or "shape".
    """

    scene: Scene
    subjects: tuple[int, ...]
    words: tuple[str, ...]
    partner: Sample
    changed: int
    attribute: str

    @property
    def boxes(self) -> list[Box]:
        """Of the objects that the answer depends on."""
        return [self.scene.things[i].box for i in self.subjects]

    @property
    def mask(self) -> Bool[np.ndarray, "height width"]:
        """Their pixels."""
        size = (self.scene.width, self.scene.height)
        found: Bool[np.ndarray, "height width"] = np.logical_or.reduce(
            [self.scene.things[i].mask(*size) for i in self.subjects]
        )
        return found


class Scenes(DataSet):
    """The samples; see the module."""

    def __init__(self, split: str = "test", seed: int = 0) -> None:
        if split not in PICTURES:
            raise DataError(f"scenes has no split {split!r}. Available: {', '.join(PICTURES)}.")
        rows, self._asked = [], cast("dict[str, Question]", {})
        for k in range(PICTURES[split]):
            chance = random.Random(f"{seed}/{split}/{k}")
            scene = make_scene(chance)
            for question in ask_all(scene, chance):
                name = f"{split}/{seed}/{k}/{question.text}"
                if name in self._asked:
                    continue
                self._asked[name] = question
                rows.append(_row(name, question, scene))
        super().__init__(rows, f"scenes {split}", split)

    def truth(self, index: int) -> Truth:
        """What is known of a sample."""
        row = self._rows[index]
        scene, question = cast(Scene, row.images[0]), self._asked[row.id]
        found = find_partner(question, scene, random.Random(row.id))
        assert found is not None, "every question has one"
        other, changed, attribute = found
        partner = _row(f"{row.id} ({attribute} {changed} changed)", question, other).read()
        subjects = tuple(question.subjects(scene))
        return Truth(scene, subjects, question.words, partner, changed, attribute)

    def _with(self, rows: Sequence[Row]) -> DataSet:
        other = object.__new__(Scenes)
        DataSet.__init__(other, rows, self.name, self.split)
        other._asked = self._asked
        return other


def _row(name: str, question: Question, scene: Scene) -> Row:
    answer = question.answer(scene)
    about: Mapping[str, str | int] = {
        "question": question.text,
        "kind": "absent" if (question.kind, answer) == ("present", "no") else question.kind,
        "things": len(scene.things),
        "ground": scene.ground,
    }
    return Row(name, question.text, (scene,), answer, about=about)


def open_set(where: str, split: str | None, seed: int = 0) -> DataSet:
    """The data set; it is made, and so nowhere."""
    if where:
        raise DataError(f"scenes are made: leave out what stands behind it ({where!r}).")
    return Scenes(split or "test", seed)
