"""What a row of a table says, by the names of its columns: each cell what it should be, or refused.

A cell that is another thing than its column wants is never turned into text: a list would become
"['a', 'b']", and a missing number "nan".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mm_lens.data import conversations
from mm_lens.data.samples import Row
from mm_lens.data.sources import ADDRESSES, Address, Content, File, Given, Source, Stored
from mm_lens.errors import DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SEPARATOR = "|"
"""Between the options of a cell that is one text."""


@dataclass(frozen=True)
class Columns:
    """Which column of a table is what.

    Attributes:
        image: columns of images; none: samples of text alone.
        text: column of the question.
        answer: column of the answer; None takes "answer" where it is there.
        options: column of the options, or one column for each; none takes "options" where it is.
        id: column of ids; None takes "id" where it is there, else rows are numbered.
        folder: where relative paths of images begin; None takes the folder of the table.
        fetch: whether images may be addresses, which are then fetched.
    """

    image: tuple[str, ...] = ("image",)
    text: str = "text"
    answer: str | None = None
    options: tuple[str, ...] = ()
    id: str | None = None
    folder: Path | None = None
    fetch: bool = False

    def named(self) -> set[str]:
        """All columns that are read as something."""
        always = {self.text, self.answer or "answer", self.id or "id", conversations.COLUMN}
        return {*always, *self.image, *(self.options or ("options",))}


def read_row(
    record: Any, columns: Columns, where: str, index: int, folder: Path, table: Path | None = None
) -> Row:
    """One row of a table.

    Args:
        record: the cells by column.
        columns: which is what.
        where: how messages call the row.
        index: number of the row: its id, if it has none.
        folder: where relative paths begin.
        table: the file.

    Raises:
        DataError: a column is not there, or a cell is not what it should be; the message names the
            row and the column, and what there is.
    """
    if not isinstance(record, Mapping):
        raise DataError(
            f"{where} is a {type(record).__name__}, not an object of columns. Give one object for "
            'each sample, as {"image": …, "text": …}.'
        )
    if conversations.COLUMN in record and columns.text not in record:
        answer_column = columns.answer or "answer"
        record = conversations.flatten(record, columns.text, answer_column, columns.image, where)
    _require(record, columns, where)
    text = as_text(where, columns.text, record[columns.text])
    if text is None or not text.strip():
        raise DataError(f"{where}: '{columns.text}' is empty. Write a question, or remove the row.")
    name = as_text(where, columns.id or "id", record.get(columns.id or "id"))
    options = _options(record, columns, where)
    answer, right = _answer(record.get(columns.answer or "answer"), options, columns, where)
    base = columns.folder or folder
    return Row(
        id=str(index) if name is None else name,
        text=text,
        images=tuple(
            source
            for column in columns.image
            for source in as_images(where, column, base, record[column], columns.fetch)
        ),
        answer=answer,
        options=options,
        right=right,
        about={"question": text, **_about(record)},
        table=table,
    )


_OPTIONS = {
    "image": "image_column= (--image-column), image_column=None ('') for text alone",
    "text": "text_column= (--text-column)",
    "answer": "answer_column= (--answer-column)",
    "options": "options_column= (--options-column)",
    "id": "id_column= (--id-column)",
}


def _require(record: Mapping[str, Any], columns: Columns, where: str) -> None:
    """See that all columns are there that were named, and those that are needed."""
    asked = [*(("image", name) for name in columns.image), ("text", columns.text)]
    asked += [("options", name) for name in columns.options]
    asked += [(k, name) for k in ("answer", "id") if (name := getattr(columns, k)) is not None]
    for kind, name in asked:
        if name not in record:
            known = [str(key) for key in record]
            near = get_close_matches(name, known, 1)
            raise DataError(
                f"{where} has no column {name!r}. "
                + (f"Did you mean {near[0]!r}? " if near else "")
                + f"There are: {', '.join(known) or 'none'}. "
                f"Name the right one with {_OPTIONS[kind]}."
            )


def is_empty(cell: Any) -> bool:
    """Whether nothing is in a cell."""
    return cell is None or (isinstance(cell, str) and not cell) or _is_nan(cell)


def _is_nan(cell: Any) -> bool:
    return isinstance(cell, float) and math.isnan(cell)


def as_text(where: str, column: str, cell: Any) -> str | None:
    """A text, or a number or truth value as one; None where nothing is."""
    if not isinstance(cell, (str, int, float, type(None))):
        raise DataError(
            f"{where}: '{column}' is a {type(cell).__name__}. Give one text for each row."
        )
    if is_empty(cell):
        return None
    if isinstance(cell, float) and math.isinf(cell):
        raise DataError(f"{where}: '{column}' is {cell}. Give one text for each row.")
    text = str(cell)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: '{column}' holds half of a character ({error.object[error.start]!a}), which "
            "no tokenizer takes. Write the table again, as UTF-8."
        ) from error
    return text


def _about(record: Mapping[str, Any]) -> dict[str, Any]:
    """The texts and numbers of a row by column: for templates of prompts, and for groups."""
    kept = (str, int, float, bool)
    return {str(k): v for k, v in record.items() if isinstance(v, kept) and not _is_nan(v)}


def _options(record: Mapping[str, Any], columns: Columns, where: str) -> tuple[str, ...]:
    if len(columns.options) > 1:
        cells = [as_text(where, name, record[name]) for name in columns.options]
        return tuple(cell for cell in cells if cell is not None)
    name = columns.options[0] if columns.options else "options"
    cell = record.get(name)
    if is_empty(cell):
        return ()
    if isinstance(cell, str):
        cell = _split(where, name, cell)
    if not isinstance(cell, Sequence) or isinstance(cell, bytes):
        raise DataError(
            f"{where}: '{name}' is a {type(cell).__name__}. Give a list of options, a text with "
            f"{SEPARATOR!r} between them, or one column for each."
        )
    found = [as_text(where, name, option) for option in cell]
    if len(found) < 2 or None in found:
        raise DataError(f"{where}: '{name}' holds fewer than two options, or an empty one.")
    return tuple(option for option in found if option is not None)


def _split(where: str, name: str, cell: str) -> Any:
    """The options of a cell that is one text: a JSON list, or with bars between them."""
    if not cell.lstrip().startswith("["):
        return [option.strip() for option in cell.split(SEPARATOR)]
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: '{name}' begins as a list of JSON and is none ({error}). Write "
            f'["one", "other"], or {SEPARATOR!r} between the options.'
        ) from error


def _answer(
    cell: Any, options: tuple[str, ...], columns: Columns, where: str
) -> tuple[str | None, int | None]:
    """The answer, and which of the options it is.

    It may be written as the option itself, as its letter, or as its number from 0.
    """
    name = columns.answer or "answer"
    text = as_text(where, name, cell)
    if not options or text is None:
        return text, None
    numbers = [] if isinstance(cell, str) else [cell]
    if isinstance(cell, str):
        if options.count(text) == 1:
            return text, options.index(text)
        letter = text.strip().strip("().")
        numbers += [LETTERS.index(letter)] if len(letter) == 1 and letter in LETTERS else []
        numbers += [int(letter)] if letter.isdecimal() else []
    for number in numbers:
        if number == int(number) and 0 <= number < len(options):
            return options[int(number)], int(number)
    raise DataError(
        f"{where}: the answer {text!r} of '{name}' is none of the {len(options)} options. Write "
        "the option itself, its letter (A is the first) or its number (0 is the first)."
    )


def as_images(
    where: str, column: str, folder: Path, cell: Any, fetch: bool = False
) -> tuple[Source, ...]:
    """Where the images of a cell are: one, several in a list, or none where nothing is."""
    if isinstance(cell, Stored):
        return (cell,)
    if isinstance(cell, (list, tuple)):
        if not all(isinstance(part, (str, bytes, dict)) or _is_picture(part) for part in cell):
            raise DataError(f"{where}: '{column}' is a {type(cell).__name__}. {_FORMS}")
        found = [as_images(where, column, folder, part, fetch) for part in cell]
        return tuple(source for sources in found for source in sources)
    source = _image(where, column, folder, cell, fetch)
    return () if source is None else (source,)


_FORMS = (
    "Give a path, relative to the table, or the bytes of an image file; a list of these where a "
    "sample has several."
)


def _image(where: str, column: str, folder: Path, cell: Any, fetch: bool) -> Source | None:
    if isinstance(cell, dict):  # how the `datasets` library stores images in parquet files
        given = {key: cell.get(key) for key in ("bytes", "path")}
        cell = next((v for v in given.values() if v != b"" and not is_empty(v)), None)
        if is_empty(cell):
            raise DataError(
                f"{where}: '{column}' is an entry with neither bytes nor path, so its picture "
                "would be missing. Give one of them, or null if the row is meant to have no image."
            )
    if is_empty(cell):
        return None
    if isinstance(cell, bytes):
        if not cell:
            raise DataError(
                f"{where}: '{column}' has no bytes. Give those of an image file, or null if the "
                "row is meant to have no image."
            )
        return Content(cell)
    if _is_picture(cell):
        return Given(cell)
    if not isinstance(cell, (str, os.PathLike)):
        raise DataError(f"{where}: '{column}' is a {type(cell).__name__}. {_FORMS}")
    name = os.fspath(cell)
    if name.startswith(ADDRESSES):
        if fetch:
            return Address(name)
        raise DataError(
            f"{where}: '{column}' is an address, and addresses are fetched only when asked for: "
            "fetch=True (--fetch). Or download the file and give its path."
        )
    try:
        if b"\0" in os.fsencode(name):
            raise ValueError("it holds a zero byte")
    except ValueError as error:
        raise DataError(
            f"{where}: '{column}' is no path of a file ({error}). Correct it."
        ) from error
    return File(folder / name)


def _is_picture(cell: Any) -> bool:
    """Whether it is a picture in memory: of Pillow, an array, or a tensor. No library is loaded."""
    return hasattr(cell, "size") and (hasattr(cell, "convert") or hasattr(cell, "ndim"))
