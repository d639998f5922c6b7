"""The protocols of ScienceQA against texts and answers written out by hand, rule by rule."""

from __future__ import annotations

import pytest

from mm_lens.data.samples import Sample
from mm_lens.errors import InputError
from mm_lens.evaluating import scienceqa


def sample(question="Which one?", options=("north", "south"), right=1, **about):
    given = {"question": question, **about}
    return Sample("7", "unused", None, options[right], options, right, given)


DIRECTLY = "Answer with the option's letter from the given choices directly."


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (
            sample(hint="Look  at the map."),
            "Context: Look at the map.\nQuestion: Which one?\nOptions: (A) north (B) south\n",
        ),
        (
            sample("Which   one? ", hint=""),  # three spaces become two: one pass
            "Context: N/A\nQuestion: Which  one? \nOptions: (A) north (B) south\n",
        ),
        (
            sample(options=("a", "b", "c", "d", "e"), hint=" "),
            "Context: N/A\nQuestion: Which one?\nOptions: (A) a (B) b (C) c (D) d (E) e\n",
        ),
    ],
)
def test_llava_asks(asked, expected):
    assert scienceqa.ask_as_llava(asked) == expected + DIRECTLY


@pytest.mark.parametrize(
    ("written", "letter"),
    [
        ("B", "B"),
        (" B \n", "B"),
        ("B. south", "B"),
        ("B. ", ""),  # stripped before it is judged
        ("B.", ""),
        ("B.south", ""),
        ("(B)", ""),
        ("b", ""),
        ("BA", ""),
        ("AB", ""),
        ("", ""),
        ("C", ""),  # no such option
        ("E. east", ""),
        ("The answer is B.", "B"),
        ("So I think: The answer is B, south", "B"),
        ("The answer is B", ""),  # nothing behind it
        ("The answer is B\nindeed", ""),
        ("The answer is b.", ""),
        ("The answer is A. No: The answer is B.", ""),
        ("The answer is Because.", "B"),  # so its expression has it
        ("south", ""),
    ],
)
def test_llava_reads(written, letter):
    assert scienceqa.read_as_llava(written, sample()) == letter


def test_llava_has_five_letters():
    with pytest.raises(InputError, match="has 6 options, and the protocol llava has letters for"):
        scienceqa.ask_as_llava(sample(options=tuple("uvwxyz")))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (sample(hint="Look."), "Context: Look.\nWhich one?\nA. north\nB. south\n"),
        (sample(hint=""), "Which one?\nA. north\nB. south\n"),
        (sample("Which  one?"), "Which  one?\nA. north\nB. south\n"),
    ],
)
def test_lmms_eval_asks(asked, expected):
    assert scienceqa.ask_as_lmms(asked) == expected + DIRECTLY


@pytest.mark.parametrize(
    ("written", "right"),
    [
        ("B", True),
        ("b", True),
        (" B\n", True),
        ("B. south", True),
        ("B.", True),
        ("B.south", True),
        ("b. south", False),
        ("B south", False),
        ("(B)", False),
        ("The answer is B.", False),
        ("A", False),
        ("A. B", False),
        ("C", False),
        ("", False),
    ],
)
def test_lmms_eval_judges(written, right):
    read = scienceqa.read_as_lmms(written, sample())
    assert (read == scienceqa.right_letter(sample())) == right


def test_letters():
    assert scienceqa.letters_of(sample()) == ("A", "B")
    assert scienceqa.right_letter(Sample("1", "?", None, "x")) is None
