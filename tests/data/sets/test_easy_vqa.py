"""easy-VQA: tests/data/test_datasets.py compares it with its package; here, kinds of questions."""

from __future__ import annotations

from collections import Counter

import easy_vqa

from mm_lens.data.sets.easy_vqa import EasyVQA, open_set


def test_kinds_are_those_of_the_answers():
    samples = EasyVQA("test")
    answers = easy_vqa.get_test_questions()[1]
    found = Counter(row.about["kind"] for row in samples._rows)
    assert found["yes/no"] == sum(answer in ("yes", "no") for answer in answers)
    assert found["shape"] == sum(
        answer in ("circle", "rectangle", "triangle") for answer in answers
    )
    assert sum(found.values()) == len(answers)


def test_the_usual_split_is_test():
    assert open_set("", None).split == "test"
