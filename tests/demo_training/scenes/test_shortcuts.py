"""Rules without sight: on scenes made by hand, where it is plain what they answer."""

from __future__ import annotations

import pytest

from demo_training.scenes.shortcuts import learn_texts, outermost, share_of_others, tabulate
from mm_lens.data.samples import Row
from mm_lens.data.sets.scenes.drawing import Scene, Thing


def scene(*things):
    """Objects of shape and colour from left to right, 10 pixels each."""
    placed = [Thing(s, c, "small", (20 * k, 0, 20 * k + 11, 11)) for k, (s, c) in enumerate(things)]
    return Scene(100, 40, "plain", 0, tuple(placed))


def row(kind, text, answer, picture):
    return Row(text, text, (picture,), answer, about={"kind": kind})


def test_the_outermost_is_right_without_the_one_that_is_named():
    three = scene(("circle", "red"), ("triangle", "blue"), ("rectangle", "teal"))
    assert (outermost(three, "left"), outermost(three, "right")) == ("circle", "rectangle")
    asked = "what shape is left of the blue one?"
    assert share_of_others(three, asked, "circle") == 0.5
    told = [
        row("left", asked, "circle", three),
        row("right", "what shape is right of the red one?", "triangle", three),
    ]
    table = tabulate([], told)
    assert table.loc["left", ["n", "text", "other", "outermost"]].to_list() == [1, 0, 0.5, 1]
    assert table.loc["right", "outermost"] == 0


def test_the_text_alone_gives_the_most_frequent_answer_of_training():
    one = scene(("circle", "red"))
    train = [row("count", "how many?", answer, one) for answer in "1121"]
    assert learn_texts(train) == {"how many?": "1"}
    test = [row("count", text, "1", one) for text in ("how many?", "how many?", "new?")]
    table = tabulate(train, test)
    assert table.loc["count", "text"] == pytest.approx(2 / 3)
    assert table.loc["count", ["other", "outermost"]].isna().all()
