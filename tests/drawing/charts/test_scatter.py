"""A panel for each layer, points of each group in a colour of their own."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib import colormaps

from mm_lens import InputError
from mm_lens.drawing import draw_scatter

TABLE = pd.DataFrame(
    {
        "layer": [0, 0, 4, 4],
        "group": ["visual", "text"] * 2,
        "picture": [0, 1, 0, 1],
        "x": [1.0, 2.0, 3.0, 4.0],
        "y": [5.0, 6.0, 7.0, 8.0],
    }
)


def test_every_point_is_drawn():
    figure = draw_scatter(TABLE)
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
    assert [t.get_text() for t in draw_scatter(TABLE, "picture").legends[0].texts] == ["0", "1"]
    with pytest.raises(InputError, match="no column 'word'"):
        draw_scatter(TABLE, "word")
    assert len(draw_scatter(TABLE.iloc[:0]).axes) == 1


def test_layers_and_fractions_are_shades_of_a_scale():
    """Of all layers one panel: they are told apart by their colour."""
    panel, bar = draw_scatter(TABLE, "layer").axes
    (points,) = panel.collections
    assert len(points.get_offsets()) == 4
    assert bar.get_ylabel() == "layer"
    want = colormaps["cividis"]([0.0, 0.0, 1.0, 1.0])
    np.testing.assert_allclose(points.get_facecolor()[:, :3], want[:, :3])
    shaded = draw_scatter(TABLE.assign(norm=[0.5, 1.5, 2.5, 2.5]), "norm")
    assert [axis.get_title() for axis in shaded.axes[:2]] == ["layer 0", "layer 4"]
    want = colormaps["cividis"]([0.0, 0.5])
    drawn = shaded.axes[0].collections[0].get_facecolor()
    np.testing.assert_allclose(drawn[:, :3], want[:, :3])


def test_a_principal_plane_says_how_much_it_holds():
    table = TABLE.copy()
    table.attrs["explained"] = {0: 0.25, 4: float("nan")}
    first, second = draw_scatter(table).axes
    assert first.get_xlabel() == "25% of the variance"
    assert second.get_xlabel() == ""
