"""A reply as a picture: a bar for each option, or for each token."""

from __future__ import annotations

import math

import pytest
from tiny import random_image

pytestmark = pytest.mark.filterwarnings("ignore:The options hold")


def test_bars_of_options_and_of_tokens(model):
    reply = model.ask("What $is$ it?", random_image(31, 57), options=["a", "b"], max_new_tokens=2)
    shown, bars = reply.plot().axes
    assert shown.images[0].get_array().shape == (31, 57, 3)
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([*reply.options.values()])
    assert [text.get_text() for text in bars.get_yticklabels()] == [*reply.options]
    assert r"What \$is\$ it?" in bars.get_title(loc="left")
    reply.plot()._repr_png_()
    (bars,) = model.ask("Why?", None, max_new_tokens=3).plot().axes
    reply = model.ask("Why?", None, max_new_tokens=3)
    widths = [bar.get_width() for bar in bars.patches]
    assert widths == pytest.approx([math.exp(x) for x in reply.log_probs])


def test_the_title_asks_the_question_without_the_chat_template(model):
    inputs = model.prepare(["What is it?", "Which?"], [random_image(31, 57)] * 2)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}]
    assert inputs.text[0] != inputs.questions[0]
    replies = [*model.ask(inputs, max_new_tokens=2)]
    replies.append(model.ask(model.prepare(chat, random_image(31, 57)), max_new_tokens=2))
    titles = [reply.plot().axes[-1].get_title(loc="left").split("\n")[0] for reply in replies]
    assert titles == ["What is it?", "Which?", "Which?"]
