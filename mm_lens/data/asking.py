"""The text of a question from the columns of its row: `"{question}\\n{choices}"`."""

from __future__ import annotations

import string
from collections.abc import Sequence

from mm_lens.data.columns import LETTERS
from mm_lens.data.samples import DataSet, Row
from mm_lens.errors import DataError, InputError

CHOICES = ("choices", "options")
"""What the options are called in a template, one on each line with its letter."""


def letter_options(options: Sequence[str]) -> str:
    """The options, one on each line with its letter: `A. red`."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))


def apply_prompt(samples: DataSet, prompt: str) -> DataSet:
    """The samples with their texts written from a template.

    Args:
        samples: whose rows have the columns.
        prompt: text with the names of columns in braces; `{question}` is the question, `{choices}`
            the options with their letters, `{{` a brace. A column that is empty in a row leaves
            nothing.

    Raises:
        InputError: it is no template, or names a column that no row has.
    """
    parts = _parse(prompt)
    names = {name for _, name in parts if name}
    known = {name for i in range(len(samples)) for name in samples._rows[i].about}
    if unknown := sorted(names - known - {*CHOICES}):
        raise InputError(
            f"The prompt names the column {unknown[0]!r}, which the data do not have. There are: "
            f"{', '.join(sorted(known | {CHOICES[0]}))}."
        )

    def write(row: Row) -> str:
        cells = dict(row.about)
        if row.options:
            cells |= dict.fromkeys(CHOICES, letter_options(row.options))
        text = "".join(part + (str(cells.get(name, "")) if name else "") for part, name in parts)
        if not text.strip():
            raise DataError(
                f"The prompt {prompt!r} leaves nothing of the sample {row.id}: its columns are "
                "empty. Remove the row, or write something into the prompt."
            )
        return text.strip()

    return samples.ask(write)


def _parse(prompt: str) -> list[tuple[str, str]]:
    """Pieces of text, each with the name behind it, "" at the end.

    Nothing but names: a format could reach into objects, or make an enormous text.
    """
    try:
        parts = list(string.Formatter().parse(prompt))
    except ValueError as error:
        raise InputError(f"The prompt {prompt!r} is no template: {error}.") from error
    for _, name, form, conversion in parts:
        if name is not None and (not name.strip() or form or conversion):
            raise InputError(
                f"The prompt {prompt!r} holds braces without the plain name of a column. Write "
                "{question}, {choices}, or a column; {{ and }} are braces."
            )
    return [(text, name or "") for text, name, _, _ in parts]
