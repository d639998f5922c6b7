"""A panel for each layer, a trace for each group."""

from __future__ import annotations

import pandas as pd
import pytest

from mm_lens import InputError
from mm_lens.drawing import draw_scatter


def test_every_point_is_drawn():
    table = pd.DataFrame(
        {
            "layer": [0, 0, 4, 4],
            "group": ["visual", "text"] * 2,
            "picture": [0, 1, 0, 1],
            "x": [1.0, 2.0, 3.0, 4.0],
            "y": [5.0, 6.0, 7.0, 8.0],
        }
    )
    figure = draw_scatter(table)
    drawn = {(float(t.x[0]), float(t.y[0]), t.name) for t in figure.data}
    assert drawn == {(1, 5, "visual"), (2, 6, "text"), (3, 7, "visual"), (4, 8, "text")}
    assert {t.name for t in draw_scatter(table, "picture").data} == {"0", "1"}
    with pytest.raises(InputError, match="no column 'word'"):
        draw_scatter(table, "word")
