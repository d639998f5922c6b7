"""Tables and objects that were read from files, held to what their readers take for granted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

MAX_ROWS = 10**7
"""Most rows of a table of results: a few bytes of parquet may stand for any number."""


def read_frame(path: Path) -> pd.DataFrame:
    """A table of results from a parquet file.

    Raises:
        ValueError: it is none, is damaged, or has more than `MAX_ROWS`.
        OSError: it cannot be read.
    """
    import pyarrow.parquet

    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError(f"{path.name} is not a file")
    with path.open("rb") as opened:
        try:
            file = pyarrow.parquet.ParquetFile(opened)
            if file.metadata.num_rows > MAX_ROWS:
                raise ValueError(f"{file.metadata.num_rows:,} rows are more than {MAX_ROWS:,}")
            frame: pd.DataFrame = file.read().to_pandas()
        except MemoryError:
            raise
        except Exception as error:  # damage fails in any layer of the format
            told = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"{path.name} cannot be read: {told}") from error
    return frame


def require_columns(file: str, frame: pd.DataFrame, kinds: Mapping[str, type]) -> None:
    """See that a table has rows, and columns of these kinds.

    Args:
        file: what messages call it.
        frame: the table.
        kinds: `str`, `int` or `float` of each column; a float may be missing (NaN) or whole.

    Raises:
        ValueError: it has not.
    """
    if frame.columns.has_duplicates:
        raise ValueError(f"{file} has a column twice")
    for name, kind in kinds.items():
        if name not in frame:
            raise ValueError(f"{file} has no column {name!r}")
        column = frame[name]
        if kind is str:
            right = all(isinstance(value, str) for value in column)
        elif kind is int:
            right = pd.api.types.is_integer_dtype(column) and not column.isna().any()
        else:
            right = pd.api.types.is_numeric_dtype(column) and not (
                pd.api.types.is_bool_dtype(column) or pd.api.types.is_complex_dtype(column)
            )
        if not right:
            meant = {str: "texts", int: "whole numbers", float: "numbers"}[kind]
            raise ValueError(f"{file}: the column {name!r} holds something else than {meant}")
    if frame.empty:
        raise ValueError(f"{file} has no rows")


def require_entries(file: str, found: Any, kinds: Mapping[str, type]) -> None:
    """See that an object has entries of these kinds; dots lead to inner ones.

    Raises:
        ValueError: it has not.
    """
    for name, kind in kinds.items():
        value = found
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{file} has no {name} that is a {kind.__name__}")
