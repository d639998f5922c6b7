"""Scores."""

from __future__ import annotations

from typing import Any

import easy_vqa
import pandas as pd
import pytest

from demo_training import evaluate
from mm_lens.data import datasets


@pytest.mark.slow
def test_accuracy_with_and_without_the_image(model: Any, processor: Any) -> None:
    samples = datasets.load("easy-vqa", "test", limit=300, seed=1)
    seen = evaluate.evaluate(model, processor, samples)
    assert seen["all"].total == 300
    assert sum(seen[name].total for name in ("yes/no", "shape", "colour")) == 300
    assert seen["present"].total + seen["absent"].total == seen["yes/no"].total
    assert min(seen[name].accuracy for name in ("present", "absent")) > 0.9
    assert seen["all"].accuracy >= 0.95
    blank = evaluate.evaluate(model, processor, samples, blank=True)
    assert blank["all"].accuracy < 0.72
    assert blank["shape"].accuracy < 0.6
    assert blank["colour"].accuracy < 0.4


def test_best_blind_guess_is_the_most_frequent_answer() -> None:
    train = pd.DataFrame(
        dict(zip(["text", "answer", "image"], easy_vqa.get_train_questions(), strict=True))
    )
    best = train.groupby("text")["answer"].agg(lambda a: a.value_counts().index[0])
    samples = datasets.load("easy-vqa", "test", limit=400)
    expected = sum(best[sample.text] == sample.answer for sample in samples)
    got = evaluate.score(samples, evaluate.best_guesses(samples))["all"]
    assert (got.right, got.total) == (expected, 400)
