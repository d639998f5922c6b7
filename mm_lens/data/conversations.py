"""Rows in the format of LLaVA's training and test files, `{"image": …, "conversations": […]}`.

A record holds turns, `{"from": "human", "value": …}` and `{"from": "gpt", "value": …}`, and its
image stands as `<image>` in the first. That turn is the question, without the placeholder: the
image goes where the model's own template has it. The first answer is the answer.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from mm_lens.errors import DataError, MMLensWarning

COLUMN = "conversations"
PLACEHOLDER = "<image>"

_said: list[str] = []


def flatten(
    record: Mapping[str, Any], text: str, answer: str, image: Sequence[str], where: str
) -> dict[str, Any]:
    """The record with question, answer and image as columns; without an image, text alone.

    Args:
        record: the cells by column.
        text: what the column of the question is to be called.
        answer: and that of the answer.
        image: and those of images.
        where: how messages call the row.

    Raises:
        DataError: it holds no turn of a human, or something else than turns.

    Warns:
        MMLensWarning: the first time that there are turns after the first answer: they are left
            out, since a model is asked each question alone.
    """
    turns = record[COLUMN]
    whole = isinstance(turns, list) and all(
        isinstance(turn, Mapping)
        and isinstance(turn.get("from"), str)
        and isinstance(turn.get("value"), str)
        for turn in turns
    )
    if not whole or not turns or turns[0]["from"] != "human":
        raise DataError(
            f"{where}: '{COLUMN}' is no list of turns that a human begins. Write "
            '[{"from": "human", "value": …}, {"from": "gpt", "value": …}].'
        )
    said = turns[1]["value"] if len(turns) > 1 and turns[1]["from"] == "gpt" else None
    if len(turns) > 2 and not _said:
        warnings.warn(LATER_TURNS, MMLensWarning, stacklevel=2)
        _said.append(LATER_TURNS)
    rest = {key: value for key, value in record.items() if key != COLUMN}
    asked = turns[0]["value"].replace(PLACEHOLDER, "").strip()
    missing = dict.fromkeys(name for name in image if name not in rest)
    return {**missing, **rest, text: asked, answer: said}


LATER_TURNS = (
    "Conversations of the data have several questions: only the first of each is asked. Make a row "
    "of each that is to be asked."
)
