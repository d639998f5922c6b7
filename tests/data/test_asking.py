"""Templates of prompts: columns in braces, and nothing else."""

from __future__ import annotations

import pytest

from mm_lens.data import datasets
from mm_lens.data.asking import letter_options
from mm_lens.errors import DataError, InputError

RECORD = {
    "image": None,
    "text": "Which {one}?",
    "hint": "Look.",
    "no hint": "",
    "choices": ["red", "blue"],
}


def ask(prompt: str, **record: object) -> str:
    rows = [RECORD | record, RECORD]
    return datasets.load(rows, options_column="choices", prompt=prompt)[0].text


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("{question}\n{choices}", "Which {one}?\nA. red\nB. blue"),
        ("{hint} {text} {options}", "Look. Which {one}? A. red\nB. blue"),
        ("{{{no hint}}} {question}", "{} Which {one}?"),
        ("No column at all", "No column at all"),
    ],
)
def test_columns_are_filled_in(prompt, expected):
    assert ask(prompt) == expected


def test_options_are_lettered():
    assert letter_options(["a", "b", "c"]) == "A. a\nB. b\nC. c"


@pytest.mark.parametrize("prompt", ["{", "{}", "{question!r}", "{question:>9999999}"])
def test_what_is_no_plain_name_is_refused(prompt):
    with pytest.raises(InputError, match=r"The prompt .*(is no template|plain name)"):
        ask(prompt)


@pytest.mark.parametrize("name", ["question.__class__", "hint[0]", "nope"])
def test_a_column_that_is_not_there_is_named_with_those_that_are(name):
    with pytest.raises(InputError, match=r"names the column .*: choices, hint, .*question"):
        ask(f"{{{name}}}")


def test_a_prompt_that_leaves_nothing_is_refused():
    with pytest.raises(DataError, match="leaves nothing of the sample 0"):
        ask("{no hint}")
