"""Tables of samples: csv, tsv, json, jsonl and parquet, read row by row within bounds."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from mm_lens._storage.texts import parse_json
from mm_lens.data.columns import Columns, read_row
from mm_lens.data.samples import Row
from mm_lens.errors import DataError

MAX_ROWS = 10**7
"""Most rows of a table: a few bytes of parquet may stand for any number."""
MAX_BYTES = 16 * 2**30
"""Most bytes that a parquet file may unpack to: a few may stand for any number."""
MAX_JSON = 2**31
"""Most bytes of a JSON file of samples, 2 GiB: objects take several times that in memory."""
SEPARATORS = (",", ";", "\t", "|")
"""What a csv file may have between its cells: the one that its first line has most of."""

_BATCH = 64  # rows of parquet that are unpacked before they are counted

Record: TypeAlias = tuple[str, Any]
"""Where a row stands, and what is in it."""


def read_table(
    path: Path, columns: Columns | None = None, separator: str | None = None
) -> list[Row]:
    """All rows of a table.

    Args:
        path: the file.
        columns: which column is what; None takes the usual names.
        separator: between the cells of a csv; None takes a tab for .tsv, else what the first line
            has most of. With it, any ending is one of a csv.

    Raises:
        DataError: it is no table, cannot be read, is too large, lacks a column, or a cell is not
            what it should be; the message names the row and the column.
    """
    which, suffix = columns or Columns(), path.suffix.lower()
    if suffix not in SUFFIXES and separator is None:
        known = ", ".join(sorted(SUFFIXES))
        raise DataError(
            f"{path} is not a table that can be read. Known endings: {known}; of a csv of another "
            "ending say what is between its cells: separator= (--separator)."
        )
    rows: list[Row] = []
    for index, (place, record) in enumerate(read_records(path, which.named(), separator)):
        where = f"Row {index} of {path}{place}"
        rows.append(read_row(record, which, where, index, path.parent, path))
    return rows


def read_records(
    path: Path, wanted: Collection[str] | None = None, separator: str | None = None
) -> Iterator[Record]:
    """The rows of a table as they stand there, in bounds.

    Args:
        path: the file.
        wanted: columns that are needed whatever is in them; of parquet, others are read only if
            they are texts or numbers. None reads all.
        separator: as in `read_table`.

    Raises:
        DataError: it cannot be read, or is too large.
    """
    if not path.is_file():  # a pipe would be waited for
        raise DataError(f"Table {path} cannot be read (it is not a file). Check the file.")
    try:
        for index, found in enumerate(_choose(path, wanted, separator)):
            if index == MAX_ROWS:
                raise ValueError(
                    f"it has more than {MAX_ROWS:,} rows: divide it, or raise "
                    "mm_lens.data.tables.MAX_ROWS"
                )
            yield found
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"Table {path} cannot be read ({error}). Check the file.") from error


def _choose(path: Path, wanted: Collection[str] | None, separator: str | None) -> Iterator[Record]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(path, wanted)
    if suffix in _READERS and separator is None:
        return _READERS[suffix](path)
    return _read_csv(path, wanted or (), "\t" if suffix == ".tsv" else separator)


def _check_header(names: Sequence[str], wanted: Collection[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1 and name in wanted]
    if twice:
        raise ValueError(f"it has the column {twice[0]!r} twice")


def _read_csv(path: Path, wanted: Collection[str], separator: str | None) -> Iterator[Record]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        if separator is None:
            first = file.readline(2**20)
            separator = max(SEPARATORS, key=first.count)  # of as many, the first
            file.seek(0)
        lines = csv.reader(file, strict=True, delimiter=separator)
        header = next(lines, [])
        _check_header(header, wanted)
        row = 0
        for cells in lines:
            if not cells:  # a blank line
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"row {row}, line {lines.line_num}, has {len(cells)} cells under "
                    f"{len(header)} columns: put quotes around a text that holds "
                    f"{_SPOKEN.get(separator, repr(separator))}"
                )
            yield f" (line {lines.line_num})", dict(zip(header, cells, strict=True))
            row += 1


_SPOKEN = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}


def _read_json(path: Path) -> Iterator[Record]:
    if (size := path.stat().st_size) > MAX_JSON:
        raise ValueError(
            f"it has {size:,} bytes, more than {MAX_JSON:,}: write jsonl, one object on each line, "
            "or raise mm_lens.data.tables.MAX_JSON"
        )
    found = parse_json(path.read_text("utf-8-sig"))
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list)]
        if found and all(isinstance(value, dict) for value in found.values()):
            found = [{"id": name, **value} for name, value in found.items()]
        elif len(lists) == 1:
            found = lists[0]
    if not isinstance(found, list):
        raise ValueError(
            "it holds no list of samples, nor an object of them by their ids: write "
            '[{"image": …, "text": …}, …]'
        )
    for number, record in enumerate(found):
        yield f" (entry {number})", record


def _read_jsonl(path: Path) -> Iterator[Record]:
    with path.open(newline="\n", encoding="utf-8-sig") as file:  # U+2028, too, may stand in a text
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield f" (line {number})", parse_json(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error


def _read_parquet(path: Path, wanted: Collection[str] | None) -> Iterator[Record]:
    import pyarrow

    try:
        yield from _unpack(path, wanted)
    except (pyarrow.ArrowException, TypeError, OverflowError) as error:  # a damaged file
        raise ValueError(str(error).splitlines()[0]) from error


def _unpack(path: Path, wanted: Collection[str] | None) -> Iterator[Record]:
    import pyarrow.parquet

    with path.open("rb") as opened:  # by its own name: Arrow takes none that is not UTF-8
        file = pyarrow.parquet.ParquetFile(opened)
        schema = file.schema_arrow
        _check_header(schema.names, schema.names if wanted is None else wanted)
        about = file.metadata
        if about.num_rows > MAX_ROWS:
            raise ValueError(
                f"it has {about.num_rows:,} rows, more than {MAX_ROWS:,}: divide it, or raise "
                "mm_lens.data.tables.MAX_ROWS"
            )
        size = sum(about.row_group(k).total_byte_size for k in range(about.num_row_groups))
        _check_size(size)
        unpacked = 0
        kept = [f.name for f in schema if wanted is None or f.name in wanted or _is_plain(f.type)]
        for batch in file.iter_batches(_BATCH, columns=kept):
            _check_size(unpacked + batch.nbytes)
            for record in batch.to_pylist():
                unpacked += sum(map(_count_bytes, record.values()))
                _check_size(unpacked)
                yield "", record


def _is_plain(kind: Any) -> bool:
    """Whether a column of this type is one of texts or numbers."""
    from pyarrow import types

    inner = kind.value_type if types.is_dictionary(kind) else kind
    texts = types.is_string(inner) or types.is_large_string(inner)
    numbers = types.is_integer(inner) or types.is_floating(inner) or types.is_boolean(inner)
    return bool(texts or numbers)


def _count_bytes(cell: Any) -> int:
    if isinstance(cell, dict):
        return sum(map(_count_bytes, cell.values()))
    if isinstance(cell, list):
        return sum(map(_count_bytes, cell))
    return len(cell) if isinstance(cell, (bytes, str)) else 8


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ValueError(
            f"it unpacks to more than {MAX_BYTES:,} bytes: divide it, or raise "
            "mm_lens.data.tables.MAX_BYTES"
        )


_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
}

SUFFIXES = frozenset({".csv", ".tsv", ".parquet", *_READERS})
