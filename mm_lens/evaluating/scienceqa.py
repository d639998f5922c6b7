"""The two usual protocols of ScienceQA: how questions are written, and what counts as an answer.

**llava** (haotian-liu/LLaVA, v1.2): `scripts/convert_sqa_to_llava.py` with the format CQM-A makes
the question, `llava/eval/model_vqa_science.py --single-pred-prompt --temperature 0` asks it, and
`llava/eval/eval_science_qa.py` judges. Two spaces become one, in one pass. A lone letter of A to E
counts; one with `. ` behind it, at the beginning; or the letter of the only `The answer is X` that
has something behind it. All else is wrong, and so is the letter of an option that there is not.

**lmms-eval** (task `scienceqa`): no word before the question, a hint only where there is one,
options on lines, 16 tokens. The letter counts in either case; a capital with a full stop behind it
counts at the beginning, whatever follows; all else is wrong. (Until 2025 a lone letter had to be a
capital.)
"""

from __future__ import annotations

import re

from mm_lens.data.columns import LETTERS
from mm_lens.data.samples import Sample
from mm_lens.errors import InputError

DIRECTLY = "Answer with the option's letter from the given choices directly."
LLAVA_LETTERS = "ABCDE"
_SENTENCE = re.compile("The answer is ([A-Z])[^\n]")


def ask_as_llava(sample: Sample) -> str:
    """The question of LLaVA's file; the image goes before it.

    Raises:
        InputError: there are more options than LLaVA has letters.
    """
    if len(sample.options) > len(LLAVA_LETTERS):
        raise InputError(
            f"The sample {sample.id} has {len(sample.options)} options, and the protocol llava has "
            "letters for five. Take lmms-eval."
        )
    context = _hint(sample).strip() or "N/A"
    options = " ".join(f"({a}) {b}" for a, b in zip(LLAVA_LETTERS, sample.options, strict=False))
    text = f"Context: {context}\nQuestion: {_question(sample)}\nOptions: {options}\n"
    text = text.replace("  ", " ").strip().replace("<image>", "").strip()
    return f"{text}\n{DIRECTLY}"


def read_as_llava(written: str, sample: Sample) -> str:
    """The letter that an answer is taken to name, or ""."""
    said = written.strip()
    if said not in LLAVA_LETTERS or len(said) != 1:
        if said[:1] in (*LLAVA_LETTERS,) and said[1:3] == ". ":
            said = said[0]
        else:
            named = _SENTENCE.findall(said)
            said = named[0] if len(named) == 1 else ""
    return said if said in letters_of(sample) else ""


def ask_as_lmms(sample: Sample) -> str:
    """The question of lmms-eval's task `scienceqa`; the image goes before it."""
    hint = _hint(sample)
    lines = [f"Context: {hint}"] if hint else []
    lines.append(_question(sample))
    lines += [f"{letter}. {text}" for letter, text in zip(LETTERS, sample.options, strict=False)]
    return "\n".join([*lines, DIRECTLY])


def read_as_lmms(written: str, sample: Sample) -> str:
    """The letter that an answer is taken to name, or "": any letter, of an option or not."""
    said = written.strip()
    if len(said) == 1:
        return said.upper()
    if len(said) >= 2 and said[0].isupper() and said[1] == ".":
        return said[0]
    return ""


def letters_of(sample: Sample) -> tuple[str, ...]:
    """A letter for each option."""
    return (*LETTERS[: len(sample.options)],)


def right_letter(sample: Sample) -> str | None:
    """The letter of the right option; None where it is not known."""
    return None if sample.right is None else LETTERS[sample.right]


def _question(sample: Sample) -> str:
    return str(sample.about.get("question", sample.text))


def _hint(sample: Sample) -> str:
    return str(sample.about.get("hint") or "")
