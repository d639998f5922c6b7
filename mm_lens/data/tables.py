"""Tables of samples: csv, jsonl and parquet: each cell what it should be, or refused.

A cell that is another thing than its column wants is never turned into text: a list would become
"['a', 'b']", and a missing number "nan".
"""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mm_lens._storage.texts import parse_json
from mm_lens.errors import DataError

SUFFIXES = frozenset({".csv", ".jsonl", ".parquet"})
COLUMNS = ("image", "text", "answer", "id")
MAX_ROWS = 10**7
"""Most rows of a table: a few bytes of parquet may stand for any number."""
MAX_BYTES = 16 * 2**30
"""Most bytes that a parquet file may unpack to: a few may stand for any number."""

_BATCH = 64  # rows of parquet that are unpacked before they are counted

Record: TypeAlias = tuple[str, Any]
"""Where a row stands, and what is in it."""


@dataclass(frozen=True)
class TableRow:
    """A row of a table: its image is a file or the bytes of one, and not looked at yet.

    `table` is the file that it is from; None for what is no row of one.
    """

    id: str
    text: str
    image: Path | bytes | None
    answer: str | None
    table: Path | None = None


def read_table(path: Path) -> list[TableRow]:
    """All rows of a table.

    Raises:
        DataError: it is no table, cannot be read, is too large, or a cell is not what it should be;
            the message names the row and the column.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        known = ", ".join(sorted(SUFFIXES))
        raise DataError(f"{path} is not a table that can be read. Known endings: {known}.")
    if not path.is_file():  # a pipe would be waited for
        raise DataError(f"Table {path} cannot be read (it is not a file). Check the file.")
    rows: list[TableRow] = []
    try:
        for index, (place, record) in enumerate(_READERS[suffix](path)):
            if index == MAX_ROWS:
                raise ValueError(
                    f"it has more than {MAX_ROWS:,} rows: divide it, or raise "
                    "mm_lens.data.tables.MAX_ROWS"
                )
            rows.append(_read_row(path, index, f"Row {index} of {path}{place}", record))
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"Table {path} cannot be read ({error}). Check the file.") from error
    return rows


def _read_row(path: Path, index: int, where: str, record: Any) -> TableRow:
    if not isinstance(record, dict) or "text" not in record or "image" not in record:
        raise DataError(f"{where} needs the columns 'image' (may be empty) and 'text' (may not).")
    text = _as_text(where, "text", record["text"])
    if text is None or not text.strip():
        raise DataError(f"{where}: 'text' is empty. Write a question, or remove the row.")
    name = _as_text(where, "id", record.get("id"))
    return TableRow(
        id=str(index) if name is None else name,
        text=text,
        image=_as_image(where, path.parent, record["image"]),
        answer=_as_text(where, "answer", record.get("answer")),
        table=path,
    )


def _is_empty(cell: Any) -> bool:
    return cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell))


def _as_text(where: str, column: str, cell: Any) -> str | None:
    """A text, or a number or truth value as one; None where nothing is."""
    if not isinstance(cell, (str, int, float, type(None))):
        raise DataError(
            f"{where}: '{column}' is a {type(cell).__name__}. Give one text for each row."
        )
    if _is_empty(cell):
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


def _as_image(where: str, folder: Path, cell: Any) -> Path | bytes | None:
    """The file, the bytes of one, or None where nothing is."""
    if isinstance(cell, dict):  # how the `datasets` library stores images in parquet files
        given = {key: cell.get(key) for key in ("bytes", "path")}
        cell = next((v for v in given.values() if v != b"" and not _is_empty(v)), None)
        if _is_empty(cell):
            raise DataError(
                f"{where}: 'image' is an entry with neither bytes nor path, so its picture would "
                "be missing. Give one of them, or null if the row is meant to have no image."
            )
    if _is_empty(cell):
        return None
    if isinstance(cell, bytes):
        if not cell:
            raise DataError(
                f"{where}: 'image' has no bytes. Give those of an image file, or null if the row "
                "is meant to have no image."
            )
        return cell
    if not isinstance(cell, str):
        raise DataError(
            f"{where}: 'image' is a {type(cell).__name__}. Give a path, relative to the table, or "
            "the bytes of an image file."
        )
    if cell.startswith(("http://", "https://", "data:")):
        raise DataError(
            f"{where}: 'image' is an address. Addresses are not fetched: download the file and "
            "give its path."
        )
    try:
        if b"\0" in os.fsencode(cell):
            raise ValueError("it holds a zero byte")
    except ValueError as error:
        raise DataError(f"{where}: 'image' is no path of a file ({error}). Correct it.") from error
    return folder / cell


def _check_header(names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1 and name in COLUMNS]
    if twice:
        raise ValueError(f"it has the column {twice[0]!r} twice")


def _read_csv(path: Path) -> Iterator[Record]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file, strict=True)
        header = next(lines, [])
        _check_header(header)
        row = 0
        for cells in lines:
            if not cells:  # a blank line
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"row {row}, line {lines.line_num}, has {len(cells)} cells under "
                    f"{len(header)} columns: put quotes around a text that holds a comma"
                )
            yield f" (line {lines.line_num})", dict(zip(header, cells, strict=True))
            row += 1


def _read_jsonl(path: Path) -> Iterator[Record]:
    with path.open(newline="\n", encoding="utf-8-sig") as file:  # U+2028, too, may stand in a text
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield f" (line {number})", parse_json(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow

    try:
        yield from _unpack(path)
    except (pyarrow.ArrowException, TypeError, OverflowError) as error:  # a damaged file
        raise ValueError(str(error).splitlines()[0]) from error


def _unpack(path: Path) -> Iterator[Record]:
    import pyarrow.parquet

    with path.open("rb") as opened:  # by its own name: Arrow takes none that is not UTF-8
        file = pyarrow.parquet.ParquetFile(opened)
        names = file.schema_arrow.names
        _check_header(names)
        about = file.metadata
        if about.num_rows > MAX_ROWS:
            raise ValueError(
                f"it has {about.num_rows:,} rows, more than {MAX_ROWS:,}: divide it, or raise "
                "mm_lens.data.tables.MAX_ROWS"
            )
        size = sum(about.row_group(k).total_byte_size for k in range(about.num_row_groups))
        _check_size(size)
        unpacked = 0
        wanted = [name for name in names if name in COLUMNS]
        for batch in file.iter_batches(_BATCH, columns=wanted):
            _check_size(unpacked + batch.nbytes)
            for record in batch.to_pylist():
                unpacked += sum(map(_count_bytes, record.values()))
                _check_size(unpacked)
                yield "", record


def _count_bytes(cell: Any) -> int:
    if isinstance(cell, dict):
        return sum(map(_count_bytes, cell.values()))
    return len(cell) if isinstance(cell, (bytes, str)) else 8


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ValueError(
            f"it unpacks to more than {MAX_BYTES:,} bytes: divide it, or raise "
            "mm_lens.data.tables.MAX_BYTES"
        )


_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
