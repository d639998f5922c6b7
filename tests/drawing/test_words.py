"""Words stand in the cells of their tokens, texts beside the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import random_image

from mm_lens import InputError
from mm_lens.drawing import draw_texts, draw_words
from mm_lens.layout import Box


def test_each_word_stands_in_its_cell(model):
    image = random_image(30, 50)
    layout = model.prepare("What is it?", image).layout
    cells = layout.positions("base")[0].tolist()
    cells = [p for p in cells if layout.tile[0, p] == 0]
    words = [[[] for _ in range(layout.shape[1])] for _ in range(2)]
    words[0][cells[0]], words[1][cells[-1]] = ["red", "blue"], ["$a_b$"]
    values = torch.full((2, layout.shape[1]), torch.nan)
    values[0, cells[0]], values[1, cells[-1]] = 0.0, 1.0
    figure = draw_words(image, layout, words, values, label="cosine", names=["layer 0", "layer 9"])
    first, second, bar = figure.axes
    told = [text for text in first.texts if text.get_text()]
    assert [text.get_text() for text in told] == ["red"]
    x0, y0, x1, y1 = layout.box[0, cells[0]].tolist()
    assert told[0].get_position() == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2))
    assert [text.get_text() for text in second.texts if text.get_text()] == ["$a_b$"]
    assert [first.get_title(), second.get_title()] == ["layer 0", "layer 9"]
    assert bar.get_ylabel() == "cosine"
    plain = draw_words(image, layout, {cells[1]: "circle"})
    assert len(plain.axes) == 1
    assert [text.get_text() for text in plain.axes[0].texts if text.get_text()] == ["circle"]
    with pytest.raises(InputError, match="no word at any token"):
        draw_words(image, layout, {})
    with pytest.raises(InputError, match="values of 1 layers, and words of 2"):
        draw_words(image, layout, words, values[0])
    with pytest.raises(InputError, match="Words of 6 layers"):
        draw_words(image, layout, words * 3)


def test_texts_stand_beside_the_picture_and_the_box_on_it():
    image = random_image(30, 50)
    shown, beside = draw_texts(
        image, {"as it is": "a $red$ circle", "without": ""}, box=Box(5, 6, 20, 30), about="what?"
    ).axes
    assert [text.get_text() for text in beside.texts] == [
        "as it is", "a $red$ circle", "without", "(nothing)",
    ]  # fmt: skip
    (box,) = shown.patches
    assert (*box.get_xy(), box.get_width(), box.get_height()) == (5, 6, 15, 24)
    assert np.asarray(shown.images[0].get_array()).shape == (30, 50, 3)
    assert shown.get_title() == "what?"
    with pytest.raises(InputError, match="nothing to draw"):
        draw_texts(image, {})
