"""What a table lacks is named."""

from __future__ import annotations

import pandas as pd
import pytest

from mm_lens import InputError
from mm_lens.drawing.charts.columns import require_columns


def test_a_column_or_a_row_that_is_missing_is_named():
    table = pd.DataFrame({"layer": [1]})
    require_columns(table, ["layer"])
    require_columns(table.iloc[:0], ["layer"], empty=True)
    with pytest.raises(InputError, match="no column 'x', but layer"):
        require_columns(table, ["layer", "x"])
    with pytest.raises(InputError, match="no row"):
        require_columns(table.iloc[:0], ["layer"])
