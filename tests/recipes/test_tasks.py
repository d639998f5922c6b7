"""Vectors of tasks: which states, put where, by plain hooks on the native model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import FAMILIES
from native_runs import native_patched, native_states

from mm_lens.recipes.questions import ask
from mm_lens.recipes.tasks import move_tasks


def test_a_texts_state_stands_in_the_run_of_a_picture(model, samples):
    mine = [
        replace(
            s,
            text=("Which?", "What is it?")[k // 2] if k % 2 else "And of what form?",
            about={"kind": ("colour", "shape")[k % 2]},
            options=("a", "b", "c") if k % 2 else ("c", "b", "a", "d"),
        )
        for k, s in enumerate(samples[:4])
    ]
    asked = ask(model, mine)
    found = move_tasks(model, asked, 0)
    native = FAMILIES["llava-next"]()[0]
    text = {"shape": ["What is it?", "Which?"], "colour": ["And of what form?"]}
    used = {"shape": {s.text for s in mine if s.about["kind"] == "shape"}}
    assert used["shape"] == set(text["shape"])

    def vector(kind, layer):
        """After block `layer`: what enters the next one."""
        with model.text_only_allowed():
            inputs = [model.prepare(x, None).native for x in text[kind]]
        states = [native_states(native, x, layer + 1)[0][0, -1] for x in inputs]
        return torch.stack(states).mean(0)

    tokens = [model.tokenizer.encode(x, add_special_tokens=False)[-1] for x in "cbad"]
    assert len({*tokens}) == 4
    question = asked[0]
    other = next(s.text for s in mine if s.about["kind"] == "shape")
    inputs = model.prepare(other, samples[0].image)
    last = torch.zeros(1, inputs.layout.shape[1], dtype=torch.bool)
    last[0, -1] = True
    for layer in (0, 1):
        for name, kind in (("task", "colour"), ("control", "shape")):
            logits = native_patched(native, inputs.native, layer + 1, last, vector(kind, layer))[
                0, -1, tokens
            ]
            chances, right = logits.softmax(0), "cbad".index(question.sample.answer)
            rows = found.table[(found.table["question"] == 0) & (found.table["layer"] == layer)]
            row = rows[rows["vector"] == name]
            assert row["right"].item() == float(int(logits.argmax()) == right)
            assert row["probability"].item() == pytest.approx(float(chances[right]), abs=1e-6)
    assert "after block" in found.note
    one = move_tasks(model, ask(model, samples, 1), 0)
    assert math.isnan(one.value)
    assert "the data hold one" in one.note
    assert found.low <= found.high or found.value == pytest.approx(found.low)
