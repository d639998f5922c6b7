"""Log-probabilities against native passes over prompt and answer together, in float64."""

from __future__ import annotations

import pytest
import torch
from tiny import random_image, tiny_llava_next

import mm_lens
from mm_lens import InputError
from mm_lens.evaluating.scoring import score_answers

ANSWERS = [["red", "two words", "a"], ["no", "yes indeed"]]
TEXTS, IMAGES = ["What is it?", "And without a picture, then?"], [random_image(31, 57), None]


def test_equal_those_of_native_passes(model):
    native, processor = tiny_llava_next()
    inputs = model.prepare(TEXTS, IMAGES, padding_side="left")
    found = score_answers(model, inputs, ANSWERS)
    means = score_answers(model, inputs, ANSWERS, mean=True)
    for row, (text, image) in enumerate(zip(TEXTS, IMAGES, strict=True)):
        alone = model.prepare(text, image)
        for k, answer in enumerate(ANSWERS[row]):
            spelled = {
                tuple(processor.tokenizer(space + answer, add_special_tokens=False)["input_ids"])
                for space in ("", " ")
            }
            ways = [spell(native, alone, ids) for ids in spelled]
            total = torch.logsumexp(torch.tensor([sum(way) for way in ways]), 0).item()
            assert found[row][k] == pytest.approx(total, abs=2e-4)
            longest = len(max(ways, key=sum))
            assert means[row][k] == pytest.approx(total / longest, abs=2e-4)


def spell(native, alone, ids):
    """Log-probability of each token of an answer."""
    full = torch.cat([alone.input_ids, torch.tensor([ids])], 1)
    tensors = {k: v for k, v in alone.native.items() if k != "attention_mask"}
    with torch.no_grad():
        logits = native(**{**tensors, "input_ids": full}).logits
    logs = logits[0].double().log_softmax(-1)
    begin = alone.input_ids.shape[1]
    return [float(logs[begin - 1 + i, token]) for i, token in enumerate(ids)]


def test_an_answer_without_tokens_is_refused(model):
    inputs = model.prepare("What?", random_image(20, 20))
    with pytest.raises(InputError, match="'' has no tokens"):
        score_answers(model, inputs, [["red", ""]])


def test_a_trained_model_prefers_what_it_writes():
    model = mm_lens.load("demo/llava-next", check=False)
    data = mm_lens.datasets.load("easy-vqa", limit=12, seed=5)
    samples = [sample for sample in data if sample.answer in ("yes", "no")][:8]
    asked = {"progress": False, "conditions": ["given"]}
    chosen = mm_lens.evaluate(model, samples, protocol="options", options=["no", "yes"], **asked)
    assert chosen.accuracy > 0.8
    assert chosen.table.chance[0] == 0.5
