"""What a table must have to be drawn."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from mm_lens.errors import InputError


def require_columns(table: pd.DataFrame, names: Iterable[str], *, empty: bool = False) -> None:
    """Refuse a table without one of these columns, or without a row.

    Raises:
        InputError: naming the column, or that there is nothing to draw.
    """
    if missing := [name for name in names if name not in table]:
        raise InputError(
            f"The table has no column {missing[0]!r}, but {', '.join(map(str, table))}."
        )
    if not empty and not len(table):
        raise InputError("The table has no row: there is nothing to draw.")
