"""Questions about scenes: what the answer is, what it depends on, and what would change it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mm_lens.data.sets.scenes.drawing import COLOURS, SHAPES, Scene, Thing

KINDS = ("colour", "shape", "left", "right", "count", "present", "absent")
"""`present` and `absent` are both "is there a …?"; their answers are yes and no."""
CHECKED = ("left", "right", "count")
"""Kinds that may have no partner: what would have to come about is there already."""


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        kind: of `KINDS`; "present" stands for both kinds of "is there".
        shape: the shape that it names, or "".
        colour: the colour that it names, or "".
    """

    kind: str
    shape: str = ""
    colour: str = ""

    @property
    def text(self) -> str:
        """In words."""
        if self.kind == "colour":
            return f"what color is the {self.shape}?"
        if self.kind == "shape":
            return f"what shape is the {self.colour} one?"
        if self.kind in ("left", "right"):
            return f"what shape is {self.kind} of the {self.colour} one?"
        if self.kind == "count":
            counted = f"{self.colour} shapes" if self.colour else f"{self.shape}s"
            return f"how many {counted} are there?"
        return f"is there a {self.colour} {self.shape}?"

    @property
    def words(self) -> tuple[str, ...]:
        """The words that decide what is asked: with another, it is another question."""
        relation = (self.kind,) if self.kind in ("left", "right") else ()
        named = (self.colour, f"{self.shape}s" if self.kind == "count" else self.shape)
        return (*relation, *(word for word in named if word.strip("s")))

    def meant(self, scene: Scene) -> list[int]:
        """The objects that it names."""
        return [
            i
            for i, thing in enumerate(scene.things)
            if self.shape in ("", thing.shape) and self.colour in ("", thing.colour)
        ]

    def answer(self, scene: Scene) -> str | None:
        """What is right; None where the question makes no sense of the scene."""
        meant = self.meant(scene)
        if self.kind == "present":
            return "yes" if meant else "no"
        if self.kind == "count":
            return str(len(meant))
        if len(meant) != 1:
            return None
        if self.kind in ("colour", "shape"):
            found: str = getattr(scene.things[meant[0]], self.kind)
            return found
        beside = self._beside(scene, meant[0])
        return scene.things[beside[0]].shape if len(beside) == 1 else None

    def _beside(self, scene: Scene, index: int) -> list[int]:
        """The objects that stand wholly on the side that it asks for."""
        x0, _, x1, _ = scene.things[index].box
        return [
            i
            for i, thing in enumerate(scene.things)
            if (thing.box[2] <= x0 if self.kind == "left" else thing.box[0] >= x1)
        ]

    def subjects(self, scene: Scene) -> list[int]:
        """The objects that the answer depends on: all of them where one that is not there is asked
        for, or where they are counted."""
        meant = self.meant(scene)
        if self.kind == "count" or not meant:
            return [*range(len(scene.things))]
        if self.kind in ("left", "right"):
            return sorted({*meant, *self._beside(scene, meant[0])})
        return meant


def ask_all(scene: Scene, chance: random.Random) -> list[Question]:
    """At most one question of each kind, in the order of `KINDS`: one that makes sense, and whose
    answer a change of one attribute would change."""
    shapes, colours = [t.shape for t in scene.things], [t.colour for t in scene.things]
    there = {(t.shape, t.colour) for t in scene.things}
    lures = [(s, c) for s in SHAPES for c in COLOURS if (s in shapes) or (c in colours)]
    lures = [pair for pair in lures if pair not in there and _may_become(scene, *pair)]
    both = [pair for pair in lures if pair[0] in shapes and pair[1] in colours]
    # Where shape and colour are there, and not in one: what only binding can tell.
    absent = chance.choice(both or lures)
    counted = chance.choice([("", c) for c in colours] + [(s, "") for s in shapes])
    found = []
    for kind, pairs in (
        ("colour", [(s, "") for s in shapes]),
        ("shape", [("", c) for c in colours]),
        ("left", [("", c) for c in colours]),
        ("right", [("", c) for c in colours]),
        ("count", [counted]),
        ("present", [chance.choice(sorted(there))]),
        ("present", [absent]),
    ):
        asked = [Question(kind, shape, colour) for shape, colour in dict.fromkeys(pairs)]
        asked = [
            question
            for question in asked
            if question.answer(scene) is not None
            and (kind not in CHECKED or find_partner(question, scene, chance))
        ]
        if asked:
            found.append(chance.choice(asked))
    return found


def _may_become(scene: Scene, shape: str, colour: str) -> bool:
    """Whether a change of one attribute would bring such an object about."""
    return any(
        thing.shape == shape or (thing.colour == colour and (shape != "circle" or thing.square))
        for thing in scene.things
    )


def find_partner(
    question: Question, scene: Scene, chance: random.Random
) -> tuple[Scene, int, str] | None:
    """A scene with one attribute of one object changed, in which the answer is another one.

    Returns:
        The scene, the object, and "colour" or "shape"; None if there is none.
    """
    before = question.answer(scene)
    changes = [*_changes(scene)]
    chance.shuffle(changes)
    for index, what, thing in changes:
        there = {(t.shape, t.colour) for i, t in enumerate(scene.things) if i != index}
        if (thing.shape, thing.colour) in there or index not in question.subjects(scene):
            continue
        other = scene.with_thing(index, thing)
        if question.answer(other) not in (None, before):
            return other, index, what
    return None


def _changes(scene: Scene) -> Iterator[tuple[int, str, Thing]]:
    for i, thing in enumerate(scene.things):
        for colour in COLOURS:
            if colour != thing.colour:
                yield i, "colour", replace(thing, colour=colour)
        for shape in SHAPES:
            if shape != thing.shape and (shape != "circle" or thing.square):
                yield i, "shape", replace(thing, shape=shape)
