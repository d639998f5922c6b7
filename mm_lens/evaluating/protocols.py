"""Protocols: what a model is asked, how long it may write, and what counts as right.

Published numbers differ by these alone, so each protocol follows one program to the letter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mm_lens.data.samples import Sample
from mm_lens.errors import InputError
from mm_lens.evaluating import scienceqa


@dataclass(frozen=True)
class Protocol:
    """One way to ask and to judge.

    Attributes:
        name: what it is called.
        ask: the text that a sample becomes; its image goes where the model's template has it.
        read: what an answer is taken to say, of a text that a model wrote; "" if nothing. Compared
            with `right`.
        right: what the right answer says.
        tokens: most tokens that a model may write.
        options: whether it is for samples with options alone.
        candidates: texts that are scored by their log-probability instead of being written; None
            lets the model write.
        mean: whether a log-probability is divided by the number of its tokens.
    """

    name: str
    ask: Callable[[Sample], str]
    read: Callable[[str, Sample], str]
    right: Callable[[Sample], str | None]
    tokens: int = 16
    options: bool = True
    candidates: Callable[[Sample], tuple[str, ...]] | None = None
    mean: bool = False


def _text(sample: Sample) -> str:
    return sample.text


def _answer(sample: Sample) -> str | None:
    return sample.answer


def _as_written(written: str, sample: Sample) -> str:
    return written.strip()


def _options(sample: Sample) -> tuple[str, ...]:
    return sample.options


EXACT = Protocol("exact", _text, _as_written, _answer, options=False)
"""The text as it stands; right is what is written exactly as the answer, but for space around."""

LLAVA = Protocol(
    "llava", scienceqa.ask_as_llava, scienceqa.read_as_llava, scienceqa.right_letter, 1024
)
"""LLaVA's `model_vqa_science.py` and `eval_science_qa.py`, as its `v1_5/eval/sqa.sh` runs them."""

LMMS_EVAL = Protocol(
    "lmms-eval", scienceqa.ask_as_lmms, scienceqa.read_as_lmms, scienceqa.right_letter, 16
)
"""The task `scienceqa` of lmms-eval."""

OPTIONS = Protocol("options", _text, _as_written, _answer, candidates=_options)
"""The text as it stands; the option whose tokens are the most probable is the answer."""

OPTIONS_MEAN = Protocol("options-mean", _text, _as_written, _answer, candidates=_options, mean=True)
"""The same with the mean over an option's tokens: longer options are not at a disadvantage."""

LETTERS = Protocol(
    "letters",
    scienceqa.ask_as_lmms,
    _as_written,
    scienceqa.right_letter,
    candidates=scienceqa.letters_of,
)
"""Asked as by lmms-eval; the letter that is the most probable is the answer."""

PROTOCOLS = {p.name: p for p in (EXACT, LLAVA, LMMS_EVAL, LETTERS, OPTIONS, OPTIONS_MEAN)}


def find_protocol(protocol: str | Protocol) -> Protocol:
    """A protocol by its name.

    Raises:
        InputError: there is none of that name.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise InputError(f"No protocol is called {protocol!r}. Known: {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[protocol]
