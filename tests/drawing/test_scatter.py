"""A panel for each layer, points of each group in a colour of their own."""

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
    drawn = {
        (panel.get_title(), *map(float, points.get_offsets()[0]), points.get_label())
        for panel in figure.axes
        for points in panel.collections
    }
    assert drawn == {
        ("layer 0", 1, 5, "visual"),
        ("layer 0", 2, 6, "text"),
        ("layer 4", 3, 7, "visual"),
        ("layer 4", 4, 8, "text"),
    }
    colours = {
        (points.get_label(), tuple(points.get_facecolor()[0]))
        for panel in figure.axes
        for points in panel.collections
    }
    assert len(colours) == 2
    assert [t.get_text() for t in draw_scatter(table, "picture").legends[0].texts] == ["0", "1"]
    with pytest.raises(InputError, match="no column 'word'"):
        draw_scatter(table, "word")
    assert len(draw_scatter(table.iloc[:0]).axes) == 1
